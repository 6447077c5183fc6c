"""Phi-3, SmolLM3, OLMo 2, Granite, Cohere: what other tests leave open."""

import json

import mlx.core as mx
import numpy as np
import pytest
from conftest import assert_no_worse, f64
from test_models import in_chunks
from tiny_checkpoint import (
    CASES,
    HF,
    config_of,
    hf_weights,
    token_ids,
    write_checkpoint,
)
from tiny_dense import FAMILIES

from mlx_glu import GatedMLP, convert, load_model
from mlx_glu.config import ModelConfig, export
from mlx_glu.generation import generate_step
from mlx_glu.layers import scaled
from mlx_glu.sample import Sampler, Sampling

IDS = token_ids()
PHI3 = CASES["phi3"]
DIVISORS = PHI3["rope_scaling"]


def logits_of(folder, case, ids=IDS, **changes):
    """Logits of a case's weights under a changed config."""
    config = CASES[case] | changes
    model = load_model(write_checkpoint(folder, config, hf_weights(case)))
    return np.array(model(mx.array(ids)))


#: What Hugging Face's logits of a case must have noticed, to prove that we do.
SETTINGS = [
    ("phi3", {"rope_scaling": DIVISORS | {"long_factor": DIVISORS["short_factor"]}}),
    ("phi3", {"max_position_embeddings": 64}),
    ("phi3_short", {"rope_scaling": DIVISORS | {"short_factor": [1.0] * 6}}),
    ("phi3_window", {"sliding_window": None}),
    ("phi3_window", {"partial_rotary_factor": 1.0}),
    ("longrope", {"rope_scaling": CASES["longrope"]["rope_scaling"] | {"factor": 2.0}}),
    ("smollm3", {"no_rope_layer_interval": 4}),
    ("smollm3_window", {"no_rope_layers": [1, 0, 1]}),
    ("smollm3_window", {"sliding_window": 9}),
    ("olmo2", {"rms_norm_eps": 1e-3}),
    ("granite", {"embedding_multiplier": 11.0}),
    ("granite", {"attention_multiplier": 0.25}),
    ("granite", {"residual_multiplier": 0.2}),
    ("granite", {"logits_scaling": 8.0}),
    ("cohere", {"layer_norm_eps": 1e-5}),
    ("cohere", {"logit_scale": 0.25}),
    ("cohere2", {"sliding_window": 9}),
    ("cohere2", {"sliding_window_pattern": 3}),
]
NAMES = [f"{case} {next(iter(change))}" for case, change in SETTINGS]


@pytest.mark.parametrize(("case", "change"), SETTINGS, ids=NAMES)
def test_the_references_depend_on_every_setting(case, change, tmp_path):
    saved = np.load(HF / f"{case}.npz")
    ours = logits_of(tmp_path, case, **change)[:, saved["positions"]]
    differ = np.abs(ours - saved["logits"]).max() / np.abs(saved["logits"]).max()
    assert differ > 1e-4, differ


def test_the_gate_is_the_first_half(tmp_path):
    """Swapped halves of gate_up_proj are another model; so are swapped keys, values."""
    saved = np.load(HF / "phi3.npz")
    for name, parts in (("gate_up_proj", (128, 128)), ("qkv_proj", (96, 32, 32))):
        weights = hf_weights("phi3")
        for key in [key for key in weights if name in key]:
            *first, a, b = np.split(weights[key], np.cumsum(parts)[:-1])
            weights[key] = np.concatenate([*first, b, a])
        model = load_model(write_checkpoint(tmp_path / name, PHI3, weights))
        ours = np.array(model(mx.array(IDS)))[:, saved["positions"]]
        assert np.abs(ours - saved["logits"]).max() > 0.1


@pytest.mark.parametrize("quantized", [False, True])
def test_a_packed_mlp_is_one_of_two_layers(quantized):
    mx.random.seed(0)
    packed = GatedMLP(64, 96, bias=True, packed=True)
    plain = GatedMLP(64, 96, bias=True)
    for part, array in packed.gate_up_proj.parameters().items():
        plain.gate_proj[part], plain.up_proj[part] = mx.split(array, 2)
    plain.down_proj = packed.down_proj
    if quantized:
        packed, plain = packed.to_quantized(32, 4), plain.to_quantized(32, 4)
        assert packed.gate_up_proj.bits == 4
    x = mx.random.normal((3, 64))
    assert_no_worse(packed(x), plain(x), f64(plain(x)), terms=64 * 96)


# Longrope


def test_longrope_turns_to_its_long_list_beyond_the_original_context(tmp_path):
    """The short one at 32 tokens, the long one for all of them at 33."""
    short, long = DIVISORS["short_factor"], DIVISORS["long_factor"]
    for length, used, unused in ((32, short, long), (33, long, short)):
        ids = IDS[:, :length]
        ours = logits_of(tmp_path, "phi3", ids)
        both = DIVISORS | {"short_factor": used, "long_factor": used}
        same = logits_of(tmp_path, "phi3", ids, rope_scaling=both)
        assert np.array_equal(ours, same)
        both = DIVISORS | {"short_factor": unused, "long_factor": unused}
        other = logits_of(tmp_path, "phi3", ids, rope_scaling=both)
        assert np.abs(ours - other).max() > 1e-2


def steps_of(model, prompt, count, **options):
    """Tokens and log-probabilities [count, V] of greedy generation."""
    sampler = Sampler(Sampling())
    steps = generate_step(prompt, model, max_tokens=count, sampler=sampler, **options)
    tokens, rows = zip(*steps, strict=True)
    return list(tokens), np.array(mx.stack(rows))


def expected_steps(model, prompt, tokens):
    """Log-probabilities of each token, all that is before it read at once."""
    texts = [[*prompt, *tokens[:i]] for i in range(len(tokens))]
    rows = [model(mx.array([text]), last_only=True)[0, -1] for text in texts]
    return np.array(mx.stack([row - mx.logsumexp(row) for row in rows]))


@pytest.mark.parametrize("size", [2048, 7])
@pytest.mark.parametrize("case", ["phi3", "dynamic"])
def test_generation_past_the_original_context(case, size, tmp_path):
    """Phi-3's equals transformers' own: at 33 tokens all are read anew.

    A long prompt in chunks is rotated as if it came at once.
    """
    model = load_model(write_checkpoint(tmp_path, CASES[case], hf_weights(case)))
    prompts = {24: 16, 32: 2, 33: 2, 40: 1}
    if case == "dynamic":
        prompts = {40: 1}  # each new token has another base than those in the cache
    for length, count in prompts.items():
        prompt = IDS[0, :length].tolist()
        tokens, ours = steps_of(model, prompt, count, prefill_step_size=size)
        assert np.abs(ours - expected_steps(model, prompt, tokens)).max() < 1e-5


def test_a_conversation_past_the_original_context(tmp_path):
    model = load_model(write_checkpoint(tmp_path, PHI3, hf_weights("phi3")))
    first, second = IDS[0, :20].tolist(), IDS[1, :20].tolist()
    _, whole = steps_of(model, first + second, 8)

    def continued(**options):
        cache = model.make_cache()
        model(mx.array([first]), cache)
        _, rows = steps_of(model, second, 8, prompt_cache=cache, **options)
        assert cache[0].offset == len(first + second) + 7
        return rows

    assert np.abs(continued(cached=first) - whole).max() < 1e-5
    with pytest.raises(ValueError, match="give the ids that prompt_cache holds"):
        continued()


def test_a_long_prompt_in_chunks_is_rotated_as_one(tmp_path):
    model = load_model(write_checkpoint(tmp_path, PHI3, hf_weights("phi3")))
    whole = in_chunks(model, IDS, 40)
    assert np.abs(in_chunks(model, IDS, 9) - whole).max() < 1e-5
    cache = model.make_cache()  # which does not know what is to come
    model(mx.array(IDS[:, :20]), cache)
    mixed = np.array(model(mx.array(IDS[:, 20:]), cache))
    assert np.abs(mixed - whole[:, 20:]).max() > 1e-2


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
@pytest.mark.parametrize("old", ["su", "yarn"])
def test_longrope_has_older_names(old, name, key):
    lists = {k: v for k, v in DIVISORS.items() if k != "type"}
    config = {k: v for k, v in PHI3.items() if k != "rope_scaling"}
    read = ModelConfig.from_dict(config | {key: {**lists, name: old}})
    assert read == ModelConfig.from_dict(PHI3)


@pytest.mark.parametrize("generation", ["v4", "v5"])
def test_phi3_is_written_as_transformers_4_demands(generation):
    """Three keys in the block, or it refuses; the rest beside it."""
    config = PHI3
    if generation == "v5":
        config = json.loads(str(np.load(HF / "phi3.npz")["config"]))
    written = export(config, ModelConfig.from_dict(config))
    assert written["rope_scaling"] == DIVISORS
    assert written["original_max_position_embeddings"] == 32
    assert written["partial_rotary_factor"] == 0.75


# 16 bits


def test_a_factor_is_not_rounded_to_16_bits():
    x = mx.random.normal((200,)).astype(mx.bfloat16)
    right = (f64(x) * 0.22).astype(np.float32)
    assert mx.array_equal(scaled(x, 0.22), mx.array(right).astype(mx.bfloat16))
    assert not mx.array_equal(scaled(x, 0.22), x * 0.22)


# mlx-lm's folders


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_ours_opens_mlx_lms(family, tmp_path):
    """Quantized as mlx-lm does it: some layers of Granite have 8 bits."""
    utils = pytest.importorskip("mlx_lm.utils")
    even = {"hidden_size": 128, "num_attention_heads": 8, "head_dim": 16}
    source = write_checkpoint(tmp_path / "hf", config_of(family, **even))
    convert(source, tmp_path / "mlx")  # mlx-lm would misread the source's config
    model, config = utils.load_model(tmp_path / "mlx")
    model, config = utils.quantize_model(
        model, config, 64, 4, quant_predicate=getattr(model, "quant_predicate", None)
    )
    (tmp_path / "theirs").mkdir()
    utils.save_model(tmp_path / "theirs", model)
    utils.save_config(config, tmp_path / "theirs" / "config.json")
    theirs, _ = utils.load_model(tmp_path / "theirs")
    expected = np.array(theirs(mx.array(IDS)))
    model = load_model(tmp_path / "theirs")
    ours = np.array(model(mx.array(IDS)))
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
    tokens, rows = steps_of(model, IDS[0, :5].tolist(), 4)
    assert len(tokens) == 4
    assert np.isfinite(rows).all()


# What is refused

BAD = [
    ("smollm3", "no_rope_layers", [1, 0], "list of 0 or 1 for each of the 3 layers"),
    ("smollm3", "no_rope_layers", [1, 0, 2], "list of 0 or 1"),
    ("smollm3", "no_rope_layers", "101", "list of 0 or 1"),
    ("smollm3", "no_rope_layers", [[1], [0], [1]], "list of 0 or 1"),
    ("smollm3", "no_rope_layer_interval", 0, "no_rope_layer_interval must be"),
    ("granite", "embedding_multiplier", "12", "must be a positive number"),
    ("granite", "attention_multiplier", float("nan"), "must be a positive number"),
    ("granite", "residual_multiplier", [0.22], "must be a positive number"),
    ("granite", "logits_scaling", 0, "must be a positive number"),
    ("cohere", "layer_norm_eps", -1.0, "must be a positive number"),
    ("cohere", "logit_scale", True, "must be a positive number"),
    ("cohere", "use_qk_norm", "false", "must be true or false"),
    ("cohere2", "sliding_window_pattern", 0, "sliding_window_pattern must be"),
    ("phi3", "original_max_position_embeddings", "32", "original_max_position"),
    ("phi3", "partial_rotary_factor", "0.75", "must be a positive number"),
    ("phi3", "partial_rotary_factor", 0.5, "must be a list of 4 numbers"),
]


@pytest.mark.parametrize(("family", "key", "value", "part"), BAD)
def test_impossible_settings(family, key, value, part):
    with pytest.raises(ValueError, match=r"\A\[config\] ") as caught:
        ModelConfig.from_dict(config_of(family, **{key: value}))
    assert key in str(caught.value) or "short_factor" in str(caught.value)
    assert part in str(caught.value)


def test_smollm3_without_a_list_rotates_all_but_each_fourth():
    read = ModelConfig.from_dict(config_of("smollm3", no_rope_layer_interval=None))
    assert read.own["no_rope_layers"] == (True, True, True)
    read = ModelConfig.from_dict(config_of("smollm3", no_rope_layers=None))
    assert read.own["no_rope_layers"] == (True, False, True)
