"""config.json: both generations mean the same, and nonsense is refused."""

import json
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoint import CASES, FAMILIES, MORE, ROPE_SCALING, config_of

from mlx_glu.config import ModelConfig, export
from mlx_glu.families import FAMILIES as KNOWN
from mlx_glu.families import FULL, SLIDING
from mlx_glu.models import build

LAYERS = 3


def read(model_type, **changes):
    return ModelConfig.from_dict(config_of(model_type, **changes))


def refusal(config):
    """The message of the error, after checking that it is one quick line."""
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"\A\[(config|rope|variants)\] ") as caught:
        ModelConfig.from_dict(config)
    message = str(caught.value)
    assert time.perf_counter() - start < 1
    assert "\n" not in message
    assert len(message) < 1000
    return message


# Both generations


def block_of(config):
    """The rotation as transformers 5 calls it."""
    rope = dict(config.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return rope


def as_v5(config):
    """The config as transformers 5 writes it: rotation in one block, layer types."""
    old = ("rope_theta", "rope_scaling", "rope_local_base_freq", "max_window_layers")
    old += ("sliding_window_pattern", "hidden_act")
    new = {k: v for k, v in config.items() if k not in old}
    rope = block_of(config) | {"rope_theta": config["rope_theta"]}
    model_type, layers = config["model_type"], config["num_hidden_layers"]
    new["rope_parameters"] = rope
    new["dtype"] = "bfloat16"
    if "sliding_window_pattern" in KNOWN[model_type].defaults:
        pattern = config.get("sliding_window_pattern", 2)
        kinds = [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
        new["layer_types"] = kinds
    if model_type in ("gemma2", "gemma3_text"):
        new["hidden_activation"] = "gelu_pytorch_tanh"
    elif model_type == "gemma":
        new["hidden_act"] = "gelu_pytorch_tanh"
    elif model_type in ("qwen2", "qwen3"):
        first = config.get("max_window_layers", 28)
        slides = config.get("use_sliding_window", False)
        kinds = [SLIDING if slides and i >= first else FULL for i in range(layers)]
        new["layer_types"] = kinds
        new["sliding_window"] = config.get("sliding_window") if slides else None
    elif model_type == "qwen2_moe":
        new["max_window_layers"] = config["max_window_layers"]
    if "rope_local_base_freq" in config:
        local = {"rope_type": "default", "rope_theta": config["rope_local_base_freq"]}
        new["rope_parameters"] = {FULL: rope, SLIDING: local}
    return new


#: Gemma 4 came after the first.
BOTH = [name for name in FAMILIES if not name.startswith("gemma4")]
GENERATIONS = {name: config_of(name) for name in BOTH} | {
    f"{name} {kind}": config_of(name, rope_scaling=block)
    for name in ("llama", "qwen2", "gemma3_text")
    for kind, block in ROPE_SCALING.items()
}


@pytest.mark.parametrize("config", GENERATIONS.values(), ids=GENERATIONS)
def test_both_generations_mean_the_same(config):
    old, new = ModelConfig.from_dict(config), ModelConfig.from_dict(as_v5(config))
    assert old == new
    full = old.rope[FULL]
    assert full.theta == config["rope_theta"]
    assert full.as_config().items() >= block_of(config).items()


@pytest.mark.parametrize("config", GENERATIONS.values(), ids=GENERATIONS)
def test_export_means_the_same(config):
    """And again without either generation's keys."""
    meant = ModelConfig.from_dict(config)
    for source in (config, as_v5(config)):
        written = json.loads(json.dumps(export(source, meant)))
        meant = replace(meant, tie_word_embeddings=written["tie_word_embeddings"])
        assert ModelConfig.from_dict(written) == meant
        for old in (
            ("rope_theta", "rope_scaling", "rope_local_base_freq"),
            ("rope_parameters",),
        ):
            cut = {k: v for k, v in written.items() if k not in old}
            assert ModelConfig.from_dict(cut) == meant


def test_gemma3_with_equal_bases_survives_export():
    """5000 in full and in sliding layers; the default of the latter is 10000."""
    config = config_of("gemma3_text", rope_theta=5e3, rope_local_base_freq=5e3)
    new = as_v5(config)
    written = export(new, ModelConfig.from_dict(new))
    assert ModelConfig.from_dict(written).rope[SLIDING].theta == 5e3
    assert written["rope_parameters"].keys() == {FULL, SLIDING}


def test_export_keeps_unknown_keys_and_drops_stale_ones():
    unknown = {"architectures": ["X"], "bos_token_id": None, "new": {"a": [1, None]}}
    stale = {"_name_or_path": "/home/me", "quantization": {"bits": 4}}
    stale["quantization_config"] = stale["quantization"]
    config = config_of("llama", **unknown, **stale)
    written = export(config, ModelConfig.from_dict(config))
    assert written.items() >= unknown.items()
    assert not written.keys() & stale.keys()
    assert config.keys() >= stale.keys()


# What transformers assumes

REQUIRED = {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "vocab_size": 1000,
}
SAME = {
    "rms_norm_eps": 1e-6,
    "sliding_window": None,
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
GEMMA = {
    "max_position_embeddings": 8192,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "variant": "geglu_tanh",
    "tie_word_embeddings": True,
    "query_scale": 256**-0.5,
}
#: The configuration classes of transformers 5.23, with the sizes of REQUIRED.
DEFAULTS = {
    "llama": {
        "max_position_embeddings": 2048,
        "num_key_value_heads": 32,
        "head_dim": 32,
        "variant": "swiglu",
        "tie_word_embeddings": None,
    },
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 32,
        "sliding_window": 4096,
        "variant": "swiglu",
    },
    "qwen2": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 32,
        "qkv_bias": True,
    },
    "qwen3": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "qk_norm": True,
    },
    "gemma": GEMMA,
    "gemma2": GEMMA
    | {
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": GEMMA
    | {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "qk_norm": True,
    },
}
for _module in MORE:
    DEFAULTS |= getattr(_module, "DEFAULTS", {})
#: model_type -> every how many layers one sees all.
PERIODS = {"mistral": 99, "gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
#: Of full layers, where it is not 1e4.
THETAS = {"gemma3_text": 1e6, "smollm3": 2e6, "cohere": 5e5}
THETAS |= {"mixtral": 1e6, "gpt_oss": 1.5e5, "gemma3n_text": 1e6}
THETAS |= {"gemma4_text": 1e6, "gemma4_unified_text": 1e6}
PERIODS |= {"gemma3n_text": 5, "gemma4_text": 6, "gemma4_unified_text": 6}
ROTATIONS = {"gpt_oss": "yarn"}
ROTATIONS |= dict.fromkeys(("gemma4_text", "gemma4_unified_text"), "proportional")


@pytest.mark.parametrize("model_type", KNOWN)
def test_defaults(model_type):
    config = ModelConfig.from_dict({"model_type": model_type, **REQUIRED})
    for key, value in (SAME | DEFAULTS[model_type]).items():
        assert getattr(config, key) == value, key
    theta = THETAS.get(model_type, 1e4)
    has_local = "rope_local_base_freq" in KNOWN[model_type].defaults
    assert config.rope[FULL].theta == theta
    assert config.rope[SLIDING].theta == (1e4 if has_local else theta)
    assert config.rope[FULL].rope_type == ROTATIONS.get(model_type, "default")
    period = PERIODS.get(model_type, 1)
    kinds = [SLIDING if (i + 1) % period else FULL for i in range(30)]
    assert list(config.layer_types) == kinds


@pytest.mark.parametrize("key", REQUIRED)
def test_sizes_have_no_default(key):
    config = {"model_type": "llama", **REQUIRED}
    del config[key]
    assert f"{key} must be" in refusal(config)
    assert "is missing" in refusal(config | {key: None})


@pytest.mark.parametrize("model_type", KNOWN)
def test_null_is_not_missing(model_type):
    """As in transformers: null is none for these, the default for the others."""
    changes = dict.fromkeys(
        ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
    )
    config = read(model_type, **changes)
    assert config.sliding_window is None
    assert set(config.layer_types) == {FULL}
    assert config.attn_logit_softcapping is None
    assert config.final_logit_softcapping is None
    assert read(model_type, num_key_value_heads=None).num_key_value_heads == 6
    silent = ("rope_theta", "rms_norm_eps", "rope_scaling", "hidden_act", "head_dim")
    nulls = dict.fromkeys((*silent, "rope_parameters", "layer_types"))
    missing = {k: v for k, v in config_of(model_type).items() if k not in silent}
    missing["layer_types"] = None
    assert read(model_type, **nulls) == ModelConfig.from_dict(missing)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_qwen_slides_only_where_it_is_switched_on(model_type):
    """transformers drops the window then, whatever layer_types says."""
    kinds = [SLIDING] * LAYERS
    changes = {"sliding_window": 8, "layer_types": kinds}
    off = read(model_type, **changes, use_sliding_window=False)
    assert (off.sliding_window, set(off.layer_types)) == (None, {FULL})
    on = read(model_type, **changes, use_sliding_window=True)
    assert (on.sliding_window, list(on.layer_types)) == (8, kinds)


# What is refused


@pytest.mark.parametrize("model_type", [None, "", "mamba", 7, ["llama"], {"a": 1}])
def test_unknown_model_type(model_type):
    message = refusal(config_of("llama") | {"model_type": model_type})
    for name in KNOWN:
        assert name in message


def test_hidden_act():
    assert read("llama", hidden_act="gelu_pytorch_tanh").variant == "geglu_tanh"
    for act in ("mish", "SiLU", "", 7, [], {"a": 1}):
        message = refusal(config_of("llama", hidden_act=act))
        assert "silu" in message
        assert str(act) in message


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_hidden_act_of_gemma(model_type):
    """hidden_act was wrong in Gemma's own configs; hidden_activation is obeyed."""
    assert read(model_type, hidden_act="gelu").variant == "geglu_tanh"
    both = {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}
    assert read(model_type, **both).variant == "geglu_tanh"
    assert read(model_type, hidden_activation="silu").variant == "swiglu"
    assert read(model_type, hidden_act="silu").variant == "geglu_tanh"
    assert "'mish'" in refusal(config_of(model_type, hidden_activation="mish"))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "mxfp4", 7])
def test_quant_method(method):
    block = {"quant_method": method, "bits": 4}
    message = refusal(config_of("llama", quantization_config=block))
    assert repr(method) in message
    assert "MLX format" in message
    for block in (None, {}, {"bits": 4, "group_size": 64}, {"quant_method": None}):
        read("llama", quantization_config=block)


@pytest.mark.parametrize("value", [0, -1, True, 96.0, "96", [96], 2**31, 10**400])
@pytest.mark.parametrize(
    "key",
    [*REQUIRED, "max_position_embeddings", "num_key_value_heads", "head_dim"],
)
def test_impossible_sizes(key, value):
    assert f"{key} must be an integer" in refusal(config_of("llama", **{key: value}))


def test_heads():
    assert "not a multiple of num_key_value_heads 4" in refusal(
        config_of("llama", num_key_value_heads=4)
    )
    config = config_of("llama", head_dim=None, hidden_size=97)
    assert "hidden_size 97 is not a multiple" in refusal(config)
    for odd in (1, 2, 23):
        assert f"head_dim {odd}" in refusal(config_of("llama", head_dim=odd))


def test_a_deep_model_is_refused_quickly():
    assert "num_hidden_layers" in refusal(config_of("llama", num_hidden_layers=10**8))


NO_NUMBERS = [
    0,
    -1.0,
    True,
    "1e-5",
    [1],
    float("nan"),
    float("inf"),
    10**400,
    1e39,
    1e-46,
]


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize(
    "key",
    [
        "rms_norm_eps",
        "rope_theta",
        "rope_local_base_freq",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "partial_rotary_factor",
    ],
)
def test_impossible_numbers(key, value):
    message = refusal(config_of("gemma3_text", **{key: value}))
    assert "must be a positive number" in message


@pytest.mark.parametrize("value", ["false", 0, 1, [], {}])
@pytest.mark.parametrize(
    "key",
    [
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "use_sliding_window",
        "use_bidirectional_attention",
    ],
)
def test_flags_are_flags(key, value):
    """The string "false" is true in Python."""
    assert f"{key} must be true or false" in refusal(config_of("llama", **{key: value}))


def test_encoders_are_refused():
    for model_type in ("gemma", "gemma2", "gemma3_text"):
        config = config_of(model_type, use_bidirectional_attention=True)
        assert "encoder" in refusal(config)
        read(model_type, use_bidirectional_attention=False)
        read(model_type, use_bidirectional_attention=None)


@pytest.mark.parametrize(
    "kinds",
    [
        [],
        [FULL],
        [FULL] * 4,
        [FULL, FULL, "chunked_attention"],
        [FULL, FULL, None],
        [FULL, FULL, [FULL]],
        "abc",
        7,
        {FULL: 1, SLIDING: 2, "x": 3},
        False,
    ],
)
@pytest.mark.parametrize("model_type", KNOWN)
def test_layer_types(model_type, kinds):
    message = refusal(config_of(model_type, layer_types=kinds))
    assert "layer_types must name" in message
    assert f"{LAYERS} layers" in message


def test_patterns():
    for value in (0, -2, "2", 2.0, True, [2]):
        config = config_of("gemma3_text", sliding_window_pattern=value)
        assert "sliding_window_pattern must be" in refusal(config)
        config = config_of("qwen2", max_window_layers=value)
        if value == 0 and value is not False:
            assert ModelConfig.from_dict(config).layer_types == (SLIDING,) * LAYERS
        else:
            assert "max_window_layers must be" in refusal(config)
        config = config_of("mistral", sliding_window=value)
        assert "sliding_window must be" in refusal(config)
    pattern = read("gemma2", sliding_window_pattern=None).layer_types
    assert pattern == (SLIDING, FULL, SLIDING)


_ORIGINAL = "original_max_position_embeddings"
LONGROPE = CASES["longrope"]["rope_scaling"]
YARN, LLAMA3 = ROPE_SCALING["yarn"], ROPE_SCALING["llama3"]
BAD_ROPES = {
    "unknown": ({"rope_type": "mrope", "factor": 2.0}, "'mrope'"),
    "no lists": ({"rope_type": "longrope", "factor": 2.0}, "short_factor of longrope"),
    "old name": ({"type": "su", "factor": 2.0}, "short_factor of longrope"),
    "short list": (LONGROPE | {"long_factor": [1.0] * 11}, "a list of 12 numbers"),
    "no list": (LONGROPE | {"long_factor": {"0": 1}}, "a list of 12 numbers"),
    "divisor": (LONGROPE | {"short_factor": ["1"] * 12}, "short_factor must be"),
    "divisor 0": (LONGROPE | {"long_factor": [0] * 12}, "long_factor must be"),
    "divisor nan": (LONGROPE | {"long_factor": [float("nan")] * 12}, "long_factor"),
    "huge divisor": (LONGROPE | {"long_factor": [1e38] * 12}, "longrope rotation is"),
    "length 1": (LONGROPE | {_ORIGINAL: 1}, "longrope rotation is"),
    "scale": (LONGROPE | {"attention_factor": "1"}, "attention_factor must be"),
    "no type": ({"factor": 2.0}, "names no rope_type"),
    "type is a list": ({"rope_type": ["linear"], "factor": 2.0}, "names no rope_type"),
    "type is a number": ({"rope_type": 7}, "names no rope_type"),
    "no factor": ({"rope_type": "linear"}, "'factor'"),
    "null factor": ({"rope_type": "linear", "factor": None}, "'factor'"),
    "0": ({"rope_type": "linear", "factor": 0}, "factor must be"),
    "negative": ({"rope_type": "dynamic", "factor": -2.0}, "factor must be"),
    "boolean": ({"rope_type": "linear", "factor": True}, "factor must be"),
    "string": ({"rope_type": "yarn", "factor": "4"}, "factor must be"),
    "nan": ({"rope_type": "linear", "factor": float("nan")}, "factor must be"),
    "no frequencies": ({"rope_type": "llama3", "factor": 8.0}, "'low_freq_factor'"),
    "high": (LLAMA3 | {"high_freq_factor": "4"}, "high_freq_factor must be"),
    "length 0": (YARN | {"original_max_position_embeddings": 0}, "original_max"),
    "beta": (YARN | {"beta_fast": "32"}, "beta_fast must be"),
    "mscale": (YARN | {"mscale": "1", "mscale_all_dim": [1]}, "yarn rotation is"),
    "truncate": (YARN | {"truncate": "false"}, "truncate must be"),
    "theta 1": (YARN | {"rope_theta": 1.0}, "yarn rotation is impossible"),
    "theta": ({"rope_theta": 0}, "rope_theta must be"),
    "huge theta": ({"rope_theta": 1e39}, "rope_theta must be"),
    "overflow": ({"rope_type": "linear", "factor": 1e38}, "rotation is impossible"),
    "share 0": ({"partial_rotary_factor": 0}, "partial_rotary_factor must be"),
    "share over 1": ({"partial_rotary_factor": 1.5}, "number up to 1; it is 1.5"),
    "odd share": ({"partial_rotary_factor": 5 / 24}, "rotation is impossible"),
    "list": ([1], "must be an object"),
    "string block": ("linear", "must be an object"),
    "nested list": ({FULL: [1]}, f"{FULL} must be an object"),
}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("block", "part"), BAD_ROPES.values(), ids=BAD_ROPES)
def test_impossible_rotations(block, part, key):
    assert part in refusal(config_of("llama", **{key: block}))


def test_rotations_that_disagree():
    """transformers takes rope_scaling then, and mlx-lm knows nothing else."""
    new = {"rope_type": "default", "rope_theta": 1e4}
    old = {"rope_type": "linear", "factor": 4.0}
    config = config_of("llama", rope_parameters=new, rope_scaling=old)
    assert "rope_parameters and rope_scaling differ in 'rope_type'" in refusal(config)
    new |= old
    agreeing = read("llama", rope_parameters=new, rope_scaling=old)
    assert agreeing == read("llama", rope_scaling=old)
    legacy = {"type": "linear", "factor": 4}
    assert read("llama", rope_parameters=new, rope_scaling=legacy) == agreeing


def test_top_level_original_length():
    """Phi-3's habit; it wins over the block's, as in transformers."""
    config = read("llama", rope_scaling=YARN, original_max_position_embeddings=8)
    assert config.rope[FULL].scaling["original_max_position_embeddings"] == 8
    assert read("llama", original_max_position_embeddings=8).rope[FULL].theta == 1e4


# Anything

KEYS = sorted(
    {key for name in FAMILIES for key in config_of(name)}
    | {key for row in KNOWN.values() for key in (*row.defaults, *row.own)}
    | {"rope_scaling", "rope_parameters", "layer_types", "use_bidirectional_attention"}
    | {"quantization_config", "original_max_position_embeddings", "hidden_activation"}
    | {"partial_rotary_factor", "use_sliding_window", "max_window_layers"}
)
ROPE_KEYS = sorted(
    {key for block in (*ROPE_SCALING.values(), LONGROPE) for key in block}
    | {FULL, SLIDING, "type", "rope_theta", "attention_factor", "partial_rotary_factor"}
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 130),
    st.integers(),
    st.floats(),
    st.sampled_from([1e-320, 1e308, 10**400, FULL, SLIDING, "default", "yarn", "silu"]),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(ROPE_KEYS), st.text()), inner),
    ),
    max_leaves=8,
)
ROPES = st.one_of(
    VALUES,
    st.builds(
        lambda block, changes: {**block, **changes},
        st.sampled_from([*ROPE_SCALING.values(), LONGROPE]),
        st.dictionaries(st.sampled_from(ROPE_KEYS), VALUES, max_size=3),
    ),
)
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
CHANGES = st.builds(
    lambda values, ropes: values | ropes,
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    st.dictionaries(
        st.sampled_from(["rope_scaling", "rope_parameters"]), ROPES, max_size=2
    ),
)


@settings(max_examples=400, **PATIENT)
@given(st.sampled_from(sorted(FAMILIES)), CHANGES)
def test_any_object_is_a_config_or_an_error(model_type, changes):
    """And what is a config can be exported, read again and built."""
    config = config_of(model_type) | changes
    refused = None
    try:
        meant = ModelConfig.from_dict(config)
    except ValueError as error:
        refused = str(error)
    if refused is not None:
        assert refused.startswith("[")
        return
    meant = replace(meant, tie_word_embeddings=bool(meant.tie_word_embeddings))
    assert ModelConfig.from_dict(export(config, meant)) == meant
    if meant.num_hidden_layers < 50:
        build(meant)


@settings(max_examples=100, **PATIENT)
@given(st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text()), VALUES))
def test_any_object_alone(config):
    assert refusal(config)
