"""Gemma 3, 3n and 4: multimodal checkpoints, mlx-lm's folders, every setting."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_checkpoint import CASES, HF, hf_weights, token_ids, write_checkpoint
from tiny_gemmas import FULL, ROPE, SLIDING

from mlx_glu import convert, explain, fuse, load_model
from mlx_glu.checkpoints.safetensors import SafetensorsFile
from mlx_glu.config import ModelConfig, export
from mlx_glu.models import build

IDS = token_ids()
#: Without what mlx-lm has no room for.
PLAIN = {"attention_bias": False, "tie_word_embeddings": True}
#: case -> model_type of its multimodal checkpoint and where its text model stands.
PLACES = {
    "gemma3_text": ("gemma3", "language_model.model."),
    "gemma3_linear": ("gemma3", "model.language_model."),
    "gemma3n_text": ("gemma3n", "model.language_model."),
    "gemma4_text": ("gemma4", "model.language_model."),
    "gemma4_shared": ("gemma4", "language_model.model."),
    "gemma4_experts": ("gemma4", "model.language_model."),
    "gemma4_unified_text": ("gemma4_unified", "model.language_model."),
}


def logits_of(model, size=40):
    """Logits [B, L, V], ``size`` tokens at a time, through a cache."""
    cache = model.make_cache()
    parts = [
        model(mx.array(IDS[:, i : i + size]), cache=cache) for i in range(0, 40, size)
    ]
    return np.array(mx.concatenate(parts, axis=1))


def difference(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def multimodal(folder, case, dtype="float32", **changes):
    """A checkpoint of text and images; token ids stand at the top of its config."""
    kind, place = PLACES[case]
    text = CASES[case] | changes
    config = {"model_type": kind, "text_config": text, "vision_config": {"a": 1}}
    config |= {"eos_token_id": [1, 106], "vocab_size": text["vocab_size"]}
    weights = {
        k.replace("model.", place, 1) if k.startswith("model.") else k: v
        for k, v in hf_weights(case).items()
        if not (changes and k.endswith(("bias", "lm_head.weight")))
    }
    images = "model.vision_tower.x.weight" if place[0] == "m" else "vision_tower.x"
    weights[images] = np.zeros((3, 5), np.float32)
    return write_checkpoint(folder, config, weights, dtype)


@pytest.mark.parametrize("case", PLACES)
def test_text_part_of_a_multimodal_checkpoint(case, tmp_path):
    saved = np.load(HF / f"{case}.npz")
    source = multimodal(tmp_path / "hf", case)
    model = load_model(source)
    assert difference(logits_of(model)[:, saved["positions"]], saved["logits"]) < 2e-5
    assert "1 tensors beside the text model, such as" in model.notes[0]
    report = convert(source, tmp_path / "mlx")
    assert report.notes[0] == model.notes[0]
    converted = load_model(tmp_path / "mlx")
    assert np.array_equal(logits_of(converted), logits_of(model))
    assert not converted.notes
    config = json.loads((tmp_path / "mlx/config.json").read_text())
    alone = {"gemma3": "gemma3_text", "gemma3n": "gemma3n"}
    assert config["model_type"] == alone.get(PLACES[case][0], "gemma4_text")
    assert config["eos_token_id"] == [1, 106]
    assert config["tie_word_embeddings"] is CASES[case].get("tie_word_embeddings", True)
    assert "vision_config" not in config


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PLACES)
def test_ours_opens_multimodal_folders_of_mlx_lm(case, tmp_path):
    """Packed, under the names that mlx-lm gives to the parts of each."""
    utils = pytest.importorskip("mlx_lm.utils")
    # mlx-lm reads its own defaults where transformers' text_config is silent.
    convert(multimodal(tmp_path / "hf", case, **PLAIN), tmp_path / "text")
    text = json.loads((tmp_path / "text/config.json").read_text())
    if "text_config" not in text:
        top = {"model_type": PLACES[case][0], "vocab_size": text["vocab_size"]}
        place = "language_model.model."
        file = SafetensorsFile(tmp_path / "text/model.safetensors")
        weights = {k.replace("model.", place, 1): file.load(k) for k in file.tensors}
        write_checkpoint(tmp_path / "text", {**top, "text_config": text}, weights)
    model, config = utils.load_model(tmp_path / "text")
    # mlx-lm fails on a router whose inputs are no multiple of its own 64.
    packs = lambda path, m: hasattr(m, "to_quantized") and "router" not in path
    model, config = utils.quantize_model(model, config, 32, 4, quant_predicate=packs)
    (tmp_path / "theirs").mkdir()
    utils.save_model(tmp_path / "theirs", model)
    utils.save_config(config, tmp_path / "theirs/config.json")
    theirs, _ = utils.load_model(tmp_path / "theirs")
    names = SafetensorsFile(tmp_path / "theirs/model.safetensors").tensors
    assert any(
        "language_model." in k and k.endswith("mlp.up_proj.scales") for k in names
    )
    # mlx-lm rounds the scale of Gemma 3's embeddings.
    bound = 2e-2 if "gemma3_" in case else 1e-4
    assert (
        difference(logits_of(load_model(tmp_path / "theirs")), logits_of(theirs))
        < bound
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize(
    "case",
    [name for name in CASES if name.startswith(("gemma3n", "gemma4"))],
)
def test_mlx_lm_opens_ours(case, quantize, tmp_path):
    utils = pytest.importorskip("mlx_lm.utils")
    config = CASES[case] | PLAIN | {"rope_scaling": None}
    if case.startswith("gemma4"):
        del config["rope_scaling"]
    source = write_checkpoint(tmp_path / "hf", config)
    convert(source, tmp_path / "mlx", quantize, q_group_size=32 if quantize else None)
    theirs, _ = utils.load_model(tmp_path / "mlx")
    ours = load_model(tmp_path / "mlx")
    for size in (40, 1, 9):
        assert difference(logits_of(theirs, size), logits_of(ours, size)) < 1e-4


def test_routers_keep_8_bits(tmp_path):
    config = CASES["gemma4_experts"] | {"hidden_size": 128}
    convert(write_checkpoint(tmp_path / "hf", config), tmp_path / "mlx", True)
    block = json.loads((tmp_path / "mlx/config.json").read_text())["quantization"]
    router = block["model.layers.0.router.proj"]
    assert (router["bits"], router["group_size"]) == (8, 64)
    assert block["bits"] == 4


def test_the_gate_of_experts_comes_first(tmp_path):
    weights = hf_weights("gemma4_experts")
    for name in [k for k in weights if k.endswith("gate_up_proj")]:
        weights[name] = np.concatenate(np.split(weights[name], 2, axis=1)[::-1], axis=1)
    model = load_model(write_checkpoint(tmp_path, CASES["gemma4_experts"], weights))
    saved = np.load(HF / "gemma4_experts.npz")
    swapped = logits_of(model)[:, saved["positions"]]
    assert difference(swapped, saved["logits"]) > 1e-2


def test_packed_experts_are_two_halves(tmp_path):
    weights = hf_weights("gemma4_experts")
    for name in [k for k in weights if k.endswith("gate_up_proj")]:
        weights[name] = np.pad(weights[name], ((0, 0), (0, 1), (0, 0)))
    folder = write_checkpoint(tmp_path, CASES["gemma4_experts"], weights)
    with pytest.raises(ValueError, match=r"gate_up_proj must be .*\[5, 113, 96\]"):
        load_model(folder)


def test_gemma3_does_not_leave_float16(tmp_path):
    """Its residual does, as in the real models; mlx-lm stops at the largest number."""
    weights = hf_weights("gemma3_text")
    for name in [k for k in weights if "post_feedforward" in k]:
        weights[name] += 20000
    folder = write_checkpoint(tmp_path, CASES["gemma3_text"], weights, "float16")
    logits = load_model(folder, as_stored=True)(mx.array(IDS))
    assert mx.isfinite(logits).all()


ROPE3 = {"rope_type": "linear", "factor": 4.0}
ROPE4 = {
    FULL: {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.5,
        "rope_theta": 1e6,
    },
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}
SETTINGS = [
    ("gemma3_linear", {"rope_scaling": None}),
    ("gemma3n_text", {"final_logit_softcapping": None}),
    ("gemma3n_text", {"sliding_window": 9}),
    ("gemma3n_text", {"layer_types": [SLIDING, FULL, FULL]}),
    ("gemma3n_text", {"altup_correct_scale": False}),
    ("gemma3n_text", {"rope_theta": 1e4}),
    ("gemma3n_text", {"rope_local_base_freq": 1e3}),
    ("gemma3n_sparse", {"altup_active_idx": 0}),
    ("gemma3n_sparse", {"rope_scaling": ROPE3}),
    ("gemma3n_sparse", {"activation_sparsity_pattern": [0.0] * 7}),
    ("gemma3n_sparse", {"activation_sparsity_pattern": [0.5] + [0.0] * 6}),
    ("gemma4_text", {"final_logit_softcapping": None}),
    ("gemma4_text", {"sliding_window": 9}),
    ("gemma4_text", {"rope_parameters": ROPE4}),
    ("gemma4_shared", {"rope_parameters": ROPE4}),
    ("gemma4_experts", {"top_k_experts": 3}),
]


@pytest.mark.parametrize(("case", "changes"), SETTINGS)
def test_every_setting_matters(case, changes, tmp_path):
    """The references of Hugging Face would notice each."""
    model = load_model(
        write_checkpoint(tmp_path, CASES[case] | changes, hf_weights(case))
    )
    saved = np.load(HF / f"{case}.npz")
    ours = logits_of(model)[:, saved["positions"]]
    assert difference(ours, saved["logits"]) > 1e-3


def test_sizes_that_the_hub_leaves_out():
    """As google/gemma-3-4b-it has it: nothing of heads or of the vocabulary."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = ModelConfig.from_dict({"model_type": "gemma3", "text_config": text})
    assert (config.vocab_size, config.head_dim) == (262208, 256)
    assert (config.num_attention_heads, config.num_key_value_heads) == (8, 4)
    assert config.rope[FULL].as_config() == {"rope_type": "linear", "factor": 8.0}
    assert (config.rope[FULL].theta, config.rope[SLIDING].theta) == (1e6, 1e4)
    assert config.rope[SLIDING].rope_type == "default"
    assert config.layer_types[:7] == (SLIDING,) * 5 + (FULL, SLIDING)


REAL = {
    "gemma-3n-E4B": {"model_type": "gemma3n_text"},
    "gemma-4-E2B": {
        "model_type": "gemma4_text",
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 35,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
        "layer_types": ([SLIDING] * 4 + [FULL]) * 7,
        "final_logit_softcapping": 30.0,
    },
    "gemma-4-26B-A4B": {
        "model_type": "gemma4_text",
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
        "sliding_window": 1024,
    },
    "gemma-4-12B": {"model_type": "gemma4_unified_text"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REAL)
def test_parameters_are_mlx_lms_at_real_sizes(name):
    """What is written of a config is the same model to mlx-lm."""
    utils = pytest.importorskip("mlx_lm.utils")
    config = ModelConfig.from_dict(REAL[name])
    written = json.loads(json.dumps(export(REAL[name], config)))
    model_class, args_class = utils._get_classes(written)
    theirs = model_class(args_class.from_dict(written)).parameters()
    shapes = lambda tree: {k: a.shape for k, a in tree_flatten(tree)}
    assert shapes(build(config).parameters()) == shapes(theirs)


def test_heads_of_full_layers():
    """The Hub's keys, and the ones that transformers 5 writes."""
    config = CASES["gemma4_text"] | {"num_global_key_value_heads": 3}
    silent = {k: v for k, v in config.items() if k != "global_head_dim"}
    each = lambda heads: {"per_layer_config": {"1": heads, "2": heads}}
    own = lambda c: ModelConfig.from_dict(c).own
    heads = lambda c: (own(c)["global_head_dim"], own(c)["num_global_key_value_heads"])
    assert heads(config) == (32, 2)
    assert heads(silent) == (512, 2)
    assert heads(config | {"attention_k_eq_v": True}) == (32, 3)
    assert heads(config | each({"head_dim": 40})) == (40, 2)
    assert heads(config | each({"num_key_value_heads": 1})) == (24, 1)
    assert heads(config | {"per_layer_config": {}}) == (24, 2)


IMPOSSIBLE = [
    ("gemma3n_text", {"intermediate_size": [128, 136]}, "each of the 3 layers"),
    ("gemma3n_text", {"intermediate_size": [128, 136, "a"]}, "intermediate_size must"),
    ("gemma3n_text", {"activation_sparsity_pattern": 0.95}, "each of the 3 layers"),
    ("gemma3n_text", {"activation_sparsity_pattern": [0, 0, 1]}, "numbers in"),
    ("gemma3n_sparse", {"hidden_activation": "silu"}, "cuts tanh-GELU alone"),
    ("gemma3n_text", {"num_kv_shared_layers": 2}, "every layer type"),
    ("gemma3n_text", {"num_kv_shared_layers": 4}, "every layer type"),
    ("gemma3n_text", {"altup_active_idx": 4}, "below altup_num_inputs 4"),
    ("gemma4_text", {"use_bidirectional_attention": "all"}, "encoder"),
    ("gemma4_text", {"global_head_dim": 33}, "global_head_dim must be even"),
    ("gemma4_text", {"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config"),
    ("gemma4_unified_text", {"num_global_key_value_heads": 4}, "not a multiple"),
    ("gemma4_experts", {"top_k_experts": 6}, "more than num_experts 5"),
    ("gemma4_experts", {"num_experts": None}, "num_experts must be an integer"),
]


@pytest.mark.parametrize(("case", "changes", "message"), IMPOSSIBLE)
def test_impossible_configs(case, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.from_dict(CASES[case] | changes)
    assert "\n" not in str(caught.value)


def test_settings_that_change_no_text():
    """Images alone are seen both ways, and default rotations are of whole heads."""
    config = CASES["gemma4_shared"]
    share = {SLIDING: ROPE[SLIDING] | {"partial_rotary_factor": 0.5}}
    for silent in (
        {"use_bidirectional_attention": "vision"},
        {"rope_parameters": ROPE | share},
    ):
        assert ModelConfig.from_dict(config | silent) == ModelConfig.from_dict(config)


def test_explain_names_the_sparse_layers(tmp_path):
    config = CASES["gemma3n_sparse"]
    model = load_model(write_checkpoint(tmp_path, config))
    text = str(explain(fuse(model, measure=False)))
    assert "model.language_model.layers.0.mlp (GatedMLP)" in text
    for unit in ("gelu_topk ", "gelu_topk(sparsity=0.6)", "geglu_tanh"):
        assert unit in text


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 0.015), ("bfloat16", 0.12)])
@pytest.mark.parametrize("case", ["gemma3n_sparse", "gemma4_shared", "gemma4_experts"])
def test_sixteen_bits_stay_sixteen(case, dtype, bound, tmp_path):
    """And differ from float32, of the same weights, as much as transformers' do."""
    folder = write_checkpoint(tmp_path, CASES[case], hf_weights(case), dtype)
    narrow = load_model(folder, as_stored=True)(mx.array(IDS))
    assert narrow.dtype == getattr(mx, dtype)
    wide = logits_of(load_model(folder))
    error = np.square(np.array(narrow.astype(mx.float32)) - wide).mean()
    assert error < bound**2 * np.square(wide).mean()
