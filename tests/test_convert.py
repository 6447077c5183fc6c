"""Conversion: what comes out, what mlx-lm makes of it, what bad settings do."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from shared_data import SHARED, requires_shared
from tiny_checkpoint import (
    CASES,
    FAMILIES,
    config_of,
    token_ids,
    write_checkpoint,
)

from mlx_glu import convert, load_model
from mlx_glu.checkpoints.checkpoint import INDEX, open_checkpoint
from mlx_glu.checkpoints.safetensors import SafetensorsFile
from mlx_glu.quantization import MODES

IDS = mx.array(token_ids())


def logits_of(folder):
    return np.array(load_model(folder)(IDS))


def tensors_of(folder):
    arrays = {}
    for file in folder.glob("*.safetensors"):
        arrays |= mx.load(str(file))
    return arrays


def assert_same_tensors(a, b):
    a, b = tensors_of(a), tensors_of(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert mx.array_equal(a[name], b[name]), name


@pytest.fixture
def llama(tmp_path):
    return write_checkpoint(tmp_path / "hf", config_of("llama"))


@pytest.mark.parametrize("case", CASES)
def test_float_conversion_changes_nothing(case, tmp_path):
    """In float32 the logits are equal, bit for bit, after a round trip."""
    source = write_checkpoint(tmp_path / "hf", CASES[case])
    convert(source, tmp_path / "mlx")
    assert np.array_equal(logits_of(tmp_path / "mlx"), logits_of(source))
    convert(tmp_path / "mlx", tmp_path / "again")
    assert_same_tensors(tmp_path / "mlx", tmp_path / "again")
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert config == json.loads((tmp_path / "again" / "config.json").read_text())


#: Every width is a multiple of 128.
EVEN = {"hidden_size": 128, "head_dim": 64, "intermediate_size": 256}

FORMATS = [
    pytest.param(mode, bits, group_size, id=f"{mode}-{bits}-{group_size}")
    for mode, known in MODES.items()
    for bits in known.bits
    for group_size in known.group_sizes
]


@pytest.mark.parametrize(("mode", "bits", "group_size"), FORMATS)
def test_every_format(mode, bits, group_size, tmp_path):
    """Packed logits are those of the dequantized model, which are near the float's."""
    source = write_checkpoint(tmp_path / "hf", config_of("llama", **EVEN))
    options = {"q_mode": mode, "q_bits": bits, "q_group_size": group_size}
    report = convert(source, tmp_path / "q", quantize=True, **options)
    assert not report.kept_float
    assert bits < report.bits_per_weight < bits + 2.5
    convert(tmp_path / "q", tmp_path / "d", dequantize=True, dtype="float32")
    packed, dense = logits_of(tmp_path / "q"), logits_of(tmp_path / "d")
    assert np.abs(packed - dense).max() <= 1e-5 * np.abs(dense).max()
    assert not any("scales" in name for name in tensors_of(tmp_path / "d"))
    assert "quantization" not in json.loads((tmp_path / "d/config.json").read_text())


def test_quantized_source_is_kept_bit_for_bit(llama, tmp_path):
    convert(llama, tmp_path / "q", quantize=True, q_group_size=32, dtype="float16")
    convert(tmp_path / "q", tmp_path / "kept")
    assert_same_tensors(tmp_path / "q", tmp_path / "kept")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
def test_mlx_lm_writes_the_same_bits(bits, llama, tmp_path):
    utils = pytest.importorskip("mlx_lm.utils")
    config = json.loads((llama / "config.json").read_text())
    convert(
        llama, tmp_path / "ours", True, q_bits=bits, q_group_size=32, dtype="bfloat16"
    )
    model, config = utils.load_model(llama, lazy=True)
    model.set_dtype(mx.bfloat16)
    model, config = utils.quantize_model(model, config, 32, bits)
    utils.save_model(tmp_path / "theirs", model)
    assert_same_tensors(tmp_path / "ours", tmp_path / "theirs")


#: What mlx-lm 0.32.2 computes as Hugging Face does. It has another activation for
#: Gemma 1, no windows for Gemma 2, Mistral and Qwen2, a rounded embedding scale for
#: Gemma 3, no biases for Qwen3, long divisors for Phi-3's short texts, and other
#: formulas for dynamic and for yarn's mscale.
MLX_LM_IS_RIGHT = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"attention_bias": False},
    "phi3": {},
    "smollm3": {},
    "smollm3_window": {},
    "olmo2": {},
    "granite": {},
    "cohere": {},
    "cohere2": {},
    "gemma3_text": {"hidden_size": 64},
    "linear": {},
    "llama3": {},
    "yarn": {},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("case", MLX_LM_IS_RIGHT)
def test_mlx_lm_opens_ours(case, quantize, tmp_path):
    utils = pytest.importorskip("mlx_lm.utils")
    config = CASES[case] | MLX_LM_IS_RIGHT[case]
    convert(write_checkpoint(tmp_path / "hf", config), tmp_path / "mlx", quantize)
    model, _ = utils.load_model(tmp_path / "mlx")
    ours = logits_of(tmp_path / "mlx")
    assert np.abs(np.array(model(IDS)) - ours).max() <= 1e-4 * np.abs(ours).max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ["4", "8", "mixed"])
def test_ours_opens_mlx_lms(recipe, tmp_path):
    """4-bit, 8-bit, and layers of their own format or none."""
    utils = pytest.importorskip("mlx_lm.utils")
    source = write_checkpoint(tmp_path / "hf", config_of("llama"))

    def mixed(path, module):
        if "o_proj" in path or not hasattr(module, "to_quantized"):
            return False
        return {"bits": 6 if "down" in path else 3, "group_size": 32, "mode": "affine"}

    model, config = utils.load_model(source)
    predicate = mixed if recipe == "mixed" else None
    bits = 4 if recipe == "mixed" else int(recipe)
    model, config = utils.quantize_model(
        model, config, 32, bits, quant_predicate=predicate
    )
    (tmp_path / "theirs").mkdir()
    utils.save_model(tmp_path / "theirs", model)
    utils.save_config(config, tmp_path / "theirs" / "config.json")
    theirs, _ = utils.load_model(tmp_path / "theirs")
    expected = np.array(theirs(IDS))
    ours = logits_of(tmp_path / "theirs")
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


@requires_shared
@pytest.mark.filterwarnings("ignore")
def test_mlx_lm_loads_model_and_tokenizer(tmp_path):
    mlx_lm = pytest.importorskip("mlx_lm")
    convert(SHARED / "stories260K", tmp_path / "mlx", True, q_group_size=32)
    model, tokenizer = mlx_lm.load(str(tmp_path / "mlx"))
    text = "Once upon a time"
    ids = tokenizer.encode(text)
    expected = np.array(model(mx.array([ids])))
    ours = np.array(load_model(tmp_path / "mlx")(mx.array([ids])))
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
    greedy = mlx_lm.generate(model, tokenizer, text, max_tokens=20)
    from mlx_glu import generate, load

    assert generate(*load(tmp_path / "mlx"), text, max_tokens=20) == greedy


def test_layers_that_cannot_be_packed_are_named(tmp_path):
    """96 inputs are no multiple of 64: those layers stay float, the others do not."""
    source = write_checkpoint(tmp_path / "hf", config_of("llama"))
    report = convert(source, tmp_path / "q", quantize=True)
    assert "model.layers.0.mlp.gate_proj" in report.kept_float
    assert "96" in report.kept_float["model.layers.0.mlp.gate_proj"]
    assert "model.layers.0.mlp.down_proj" not in report.kept_float
    block = json.loads((tmp_path / "q/config.json").read_text())["quantization"]
    assert block["model.layers.0.mlp.gate_proj"] is False
    assert np.isfinite(logits_of(tmp_path / "q")).all()


def test_shards_and_index(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_glu.conversion.convert.MAX_SHARD", 100_000)
    report = convert(llama, tmp_path / "mlx", quantize=True, q_group_size=32)
    files = sorted(p.name for p in (tmp_path / "mlx").glob("model-*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "mlx" / INDEX).read_text())
    assert set(index["weight_map"].values()) == set(files)
    weights = tensors_of(tmp_path / "mlx")
    assert weights.keys() == index["weight_map"].keys()
    nbytes = sum(a.nbytes for a in weights.values())
    assert index["metadata"]["total_size"] == nbytes
    count = sum(a.size for _, a in tree_flatten(load_model(llama).parameters()))
    assert index["metadata"]["total_parameters"] == count
    assert report.bits_per_weight == 8 * nbytes / count
    for file in (tmp_path / "mlx").glob("*.safetensors"):
        assert SafetensorsFile(file).tensors
    convert(llama, tmp_path / "one", quantize=True, q_group_size=32, overwrite=True)
    assert np.array_equal(logits_of(tmp_path / "one"), logits_of(tmp_path / "mlx"))


def test_dtype(llama, tmp_path):
    convert(llama, tmp_path / "b", dtype="bfloat16")
    assert {a.dtype for a in tensors_of(tmp_path / "b").values()} == {mx.bfloat16}
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_config_reads_alike_in_both_forms(model_type, tmp_path):
    """The written config, cut down to either generation's keys, means the same."""
    from mlx_glu.config import ModelConfig

    source = write_checkpoint(tmp_path / "hf", config_of(model_type))
    convert(source, tmp_path / "mlx")
    written = open_checkpoint(tmp_path / "mlx").config
    old = ("rope_theta", "rope_scaling", "rope_local_base_freq")
    new = ("rope_parameters", "layer_types")
    only_new = {k: v for k, v in written.items() if k not in old}
    only_old = {k: v for k, v in written.items() if k not in new}
    meant = ModelConfig.from_dict(written)
    for cut in (only_new, only_old):
        read = ModelConfig.from_dict(cut)
        assert (read.layer_types, read.sliding_window) == (
            meant.layer_types,
            meant.sliding_window,
        )
        for kind in set(meant.layer_types):
            assert read.rope[kind].theta == meant.rope[kind].theta


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": True, "q_bits": 7}, "bits 2, 3, 4, 5, 6, 8; got 7"),
        ({"quantize": True, "q_group_size": 100}, "32, 64, 128; got 100"),
        ({"quantize": True, "q_mode": "int4"}, "affine"),
        ({"quantize": True, "q_mode": "mxfp4", "q_bits": 8}, "mxfp4 has bits 4"),
        ({"quantize": True, "q_group_size": 128}, "no layer can be packed"),
        ({"quantize": True, "dequantize": True}, "choose between"),
        ({"dtype": "int8"}, "float16, bfloat16, float32"),
    ],
)
def test_impossible_settings(options, message, tmp_path):
    sizes = {"intermediate_size": 160, "hidden_size": 96}
    source = write_checkpoint(tmp_path / "hf", config_of("llama", **sizes))
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "mlx", **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_check_finds_nan_and_writes_nothing(llama, tmp_path):
    weights = dict(mx.load(str(llama / "model.safetensors")))
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].at[3, 5].add(mx.nan)
    write_checkpoint(llama, config_of("llama"), weights)
    with pytest.raises(ValueError, match=name):
        convert(llama, tmp_path / "mlx", check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]
    convert(llama, tmp_path / "mlx")


@requires_shared
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ["4-bit", "8-bit", "mixed_3_6"])
def test_ours_opens_what_mlx_lm_convert_writes(recipe, tmp_path):
    """Its layers of 172 inputs stay float; with a recipe, blocks hold nulls."""
    mlx_lm = pytest.importorskip("mlx_lm")
    options = {"quant_predicate": recipe} if "mixed" in recipe else {}
    bits = None if options else int(recipe[0])
    mlx_lm.convert(
        str(SHARED / "stories260K"),
        str(tmp_path / "theirs"),
        quantize=True,
        q_bits=bits,
        q_group_size=32,
        **options,
    )
    model, tokenizer = mlx_lm.load(str(tmp_path / "theirs"))
    ids = mx.array([tokenizer.encode("Once upon a time, there was a little girl")])
    expected = np.array(model(ids))
    ours = np.array(load_model(tmp_path / "theirs")(ids))
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("model_type", ["llama", "gemma"])
def test_packed_floats_are_computed_in_float32(mode, model_type, tmp_path, monkeypatch):
    """MLX unpacks these embeddings to bfloat16, which a CPU must not go on with."""
    monkeypatch.setattr("mlx_glu.blas.is_fast", lambda: False)
    source = write_checkpoint(tmp_path / "hf", config_of(model_type, **EVEN))
    convert(source, tmp_path / "q", quantize=True, q_mode=mode)
    convert(tmp_path / "q", tmp_path / "d", dequantize=True, dtype="float32")
    packed, dense = load_model(tmp_path / "q")(IDS), load_model(tmp_path / "d")(IDS)
    assert packed.dtype == mx.float32
    difference = np.abs(np.array(packed) - np.array(dense)).max()
    assert difference <= 2e-5 * np.abs(np.array(dense)).max()


def test_kept_scales_set_the_dtype(llama, tmp_path):
    """One dtype in the whole folder, or a GPU would compute in float32."""
    convert(llama, tmp_path / "q", quantize=True, q_group_size=32, dtype="float16")
    config = json.loads((tmp_path / "q/config.json").read_text())
    config |= {"torch_dtype": "bfloat16", "dtype": "bfloat16"}
    (tmp_path / "q/config.json").write_text(json.dumps(config))
    convert(tmp_path / "q", tmp_path / "kept")
    dtypes = {a.dtype for a in tensors_of(tmp_path / "kept").values()}
    assert dtypes == {mx.uint32, mx.float16}
    written = json.loads((tmp_path / "kept/config.json").read_text())
    assert written["torch_dtype"] == "float16"


@pytest.mark.parametrize("text", ["", '{"a": 1}'])
def test_broken_tokenizer_is_refused(text, llama, tmp_path):
    (llama / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"hf/tokenizer\.json"):
        convert(llama, tmp_path / "mlx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_missing_tokenizer_is_noted(llama, tmp_path):
    assert "no tokenizer" in convert(llama, tmp_path / "mlx").notes[-1]
