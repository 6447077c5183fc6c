"""Checkpoints that do not fit: one clear line, nothing written, nothing guessed.

Every refusal is asked for three times: of `open_checkpoint` and `examine`, of
`load_model`, and of `convert`, which must leave nothing behind.
"""

import json
import os

import mlx.core as mx
import numpy as np
import pytest
from gguf_writer import write_gguf
from test_gguf import as_llama_cpp, gguf_config
from tiny_checkpoint import config_of, tensor, token_ids, weights_of, write_checkpoint

from mlx_glu import convert, load_model
from mlx_glu.checkpoints.checkpoint import INDEX, open_checkpoint
from mlx_glu.conversion.writer import Writer
from mlx_glu.tensor_info import TensorInfo
from mlx_glu.weights import examine

SMALL = {
    "num_hidden_layers": 1,
    "attention_bias": False,
    "mlp_bias": False,
    "head_dim": 16,
}
CONFIG = config_of("llama", **SMALL)
UP = "model.layers.0.mlp.up_proj"
PACK = {"quantize": True, "q_group_size": 32}
IDS = mx.array(token_ids()[:, :5])


def listing(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def refusals(source, tmp_path, error=ValueError):
    """The one message of all who open ``source``; the disk stays as it is."""
    before = listing(tmp_path)
    messages = set()
    for use in (
        lambda: examine(open_checkpoint(source)),
        lambda: load_model(source),
        lambda: convert(source, tmp_path / "out" / "mlx"),
        lambda: convert(source, tmp_path / "mlx", **PACK),
    ):
        with pytest.raises(error) as caught:
            use()
        messages.add(str(caught.value))
        assert listing(tmp_path) == before
    (message,) = messages
    assert "\n" not in message
    assert message.startswith("[")
    return message


@pytest.fixture
def weights():
    return weights_of(CONFIG)


@pytest.fixture
def hf(tmp_path, weights):
    """A folder with a config and one file."""
    return write_checkpoint(tmp_path / "hf", CONFIG, weights)


@pytest.fixture
def sharded(tmp_path, weights):
    """A folder of two files with an index."""
    folder = tmp_path / "hf"
    folder.mkdir()
    weight_map = {}
    for part in (0, 1):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        own = {name: mx.array(weights[name]) for name in list(weights)[part::2]}
        mx.save_safetensors(str(folder / file), own)
        weight_map |= dict.fromkeys(own, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def reindex(folder, **changes):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= changes
    (folder / INDEX).write_text(json.dumps(index))


def set_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_shards_and_one_file_are_the_same_model(sharded, tmp_path, weights):
    whole = load_model(write_checkpoint(tmp_path / "one", CONFIG, weights))
    assert np.array_equal(load_model(sharded)(IDS), whole(IDS))


# What is there


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_checkpoint("~no-such-user/model")
    for use in (open_checkpoint, load_model, convert):
        with pytest.raises(FileNotFoundError, match=r"\A.*missing does not exist.*\Z"):
            use(tmp_path / "missing")
    assert not listing(tmp_path)


def test_no_config(hf, tmp_path):
    (hf / "config.json").unlink()
    message = refusals(hf, tmp_path, FileNotFoundError)
    assert f"{hf / 'config.json'} does not exist" in message
    assert "model.safetensors" in message


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 99_999, b"1" * 9999]
)
def test_unreadable_config(text, hf, tmp_path):
    (hf / "config.json").write_bytes(text)
    assert str(hf / "config.json") in refusals(hf, tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.bin"])
def test_a_file_that_is_no_gguf(name, hf, tmp_path):
    (hf / name).touch()
    message = refusals(hf / name, tmp_path)
    assert name in message
    assert "give the folder" in message


@pytest.mark.parametrize(
    "name", ["model.bin", "consolidated.safetensors", "weights.00.safetensors"]
)
def test_no_weights_lists_what_is_there(name, hf, tmp_path):
    (hf / "model.safetensors").rename(hf / name)
    message = refusals(hf, tmp_path, FileNotFoundError)
    assert "no model*.safetensors" in message
    assert name in message


# The index


def test_missing_shard_is_named(sharded, tmp_path):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    message = refusals(sharded, tmp_path, FileNotFoundError)
    assert "model-00002-of-00002.safetensors" in message
    assert INDEX in message


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/passwd",
        "/tmp/model.safetensors",
        "sub/model.safetensors",
        "./model.safetensors",
        "..",
        ".",
        "",
        "config.json",
        7,
        None,
        ["model.safetensors"],
    ],
)
def test_weight_map_stays_inside(file, sharded, tmp_path):
    reindex(sharded, **{f"{UP}.weight": file})
    message = refusals(sharded, tmp_path)
    assert f"{UP}.weight" in message
    assert repr(file) in message
    assert INDEX in message


def test_file_names_are_printed_on_one_line(sharded, tmp_path):
    reindex(sharded, x="a\nb\0.safetensors")
    assert r"a\nb\x00" in refusals(sharded, tmp_path, FileNotFoundError)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_index_without_a_map(index, sharded, tmp_path):
    (sharded / INDEX).write_text(json.dumps(index))
    assert f"{INDEX} has no weight_map" in refusals(sharded, tmp_path)


def test_tensor_is_not_where_the_index_says(sharded, tmp_path):
    reindex(sharded, **{"model.extra": "model-00001-of-00002.safetensors"})
    message = refusals(sharded, tmp_path)
    assert "'model.extra'" in message
    assert "model-00001-of-00002.safetensors" in message


def test_tensor_in_two_files(hf, tmp_path, weights):
    name = f"{UP}.weight"
    again = {name: mx.array(weights[name])}
    mx.save_safetensors(str(hf / "model-stale.safetensors"), again)
    message = refusals(hf, tmp_path)
    for part in (name, "model-stale.safetensors", "model.safetensors", str(hf)):
        assert part in message


def test_truncated_shard_is_named(sharded, tmp_path):
    file = sharded / "model-00002-of-00002.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    message = refusals(sharded, tmp_path)
    assert str(file) in message
    assert "tensor '" in message


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_file_that_shrinks_after_it_was_opened(size, hf):
    """mx.load would raise a RuntimeError, out of the eval of some later result."""
    checkpoint = open_checkpoint(hf)
    file = hf / "model.safetensors"
    os.truncate(file, size % file.stat().st_size)
    with pytest.raises(ValueError, match=r"\A.*has changed since.*\Z") as caught:
        checkpoint.load(f"{UP}.weight")
    assert str(file) in str(caught.value)


# The tensors


def rewrite(folder, weights):
    arrays = {name: mx.array(a) for name, a in weights.items()}
    mx.eval(arrays)  # some may still be read from the file that is replaced
    infos = {name: TensorInfo(a.dtype, a.shape) for name, a in arrays.items()}
    with Writer(folder / "model.safetensors", infos) as writer:
        for name, array in arrays.items():
            writer.write(name, array)


def test_missing_tensors(hf, tmp_path, weights):
    del weights[f"{UP}.weight"]
    rewrite(hf, weights)
    message = refusals(hf, tmp_path)
    assert str(hf) in message
    assert f"lacks '{UP}.weight'" in message
    for name in [n for n in weights if "self_attn" in n]:
        del weights[name]
    rewrite(hf, weights)
    assert "and 2 more tensors" in refusals(hf, tmp_path)


@pytest.mark.parametrize("name", ["model.visual.weight", f"{UP}.bias", "a\nb"])
def test_unknown_tensor(name, hf, tmp_path, weights):
    rewrite(hf, weights | {name: np.zeros(128, np.float32)})
    message = refusals(hf, tmp_path)
    assert repr(name) in message
    assert "a llama model does not have" in message


@pytest.mark.parametrize("shape", [(128, 97), (96, 128), (12288,), (), (1, 128, 96)])
def test_wrong_shape(shape, hf, tmp_path, weights):
    rewrite(hf, weights | {f"{UP}.weight": np.zeros(shape, np.float32)})
    message = refusals(hf, tmp_path)
    for part in (str(hf), f"{UP}.weight", "[128, 96]", str(list(shape))):
        assert part in message


@pytest.mark.parametrize("dtype", [mx.uint32, mx.int8, mx.uint8, mx.bool_])
def test_integers_without_scales(dtype, hf, tmp_path, weights):
    rewrite(hf, weights | {f"{UP}.weight": mx.zeros((128, 96), dtype)})
    message = refusals(hf, tmp_path)
    assert f"{UP}.weight is {dtype} without scales" in message


def test_more_layers_than_tensors(hf, tmp_path):
    set_config(hf, num_hidden_layers=4)
    assert "model.layers.1." in refusals(hf, tmp_path)


def test_rotary_frequencies_are_ignored(hf, weights):
    """LLaMA 1 checkpoints store them; the config decides."""
    expected = load_model(hf)(IDS)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(hf, weights | {name: np.zeros(12, np.float32)})
    model = load_model(hf)
    assert np.array_equal(model(IDS), expected)
    assert not model.notes


# The output head


def test_tied_with_a_head(hf):
    set_config(hf, tie_word_embeddings=True)
    model = load_model(hf)
    assert "lm_head" not in model
    assert any("lm_head.weight is ignored" in note for note in model.notes)


def test_untied_without_a_head(hf, tmp_path, weights):
    del weights["lm_head.weight"]
    rewrite(hf, weights)
    assert "lm_head.weight" in refusals(hf, tmp_path)


def test_decided_by_tensors_survives_conversion(hf, tmp_path):
    """A silent config with a head is untied; mlx-lm would tie it (formats.md, 4)."""
    set_config(hf, tie_word_embeddings=None)
    report = convert(hf, tmp_path / "mlx")
    assert any("lm_head" in note for note in report.notes)
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert np.array_equal(load_model(tmp_path / "mlx")(IDS), load_model(hf)(IDS))


# Packed weights


@pytest.fixture
def packed(hf, tmp_path):
    """A folder of 4-bit weights in groups of 32, and its tensors."""
    convert(hf, tmp_path / "q", **PACK)
    return tmp_path / "q"


def tensors_of(folder):
    return dict(mx.load(str(folder / "model.safetensors")))


ENTRY = {"group_size": 32, "bits": 4}
BLOCKS = {
    "none": None,
    "empty": {},
    "no mode": ENTRY,
    "null group": {"group_size": None, "bits": 4},
    "wrong": {"group_size": 64, "bits": 8, "mode": "affine"},
    "other mode": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "old prefix": ENTRY | {"language_model.model.layers.0.mlp.up_proj": {"bits": 8}},
    "denied": ENTRY | {UP: False},
    "null entry": ENTRY | {UP: {"group_size": None, "bits": None}},
    "text": "4bit",
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_tensors_win_over_the_block(block, packed, tmp_path):
    """Blocks lack keys, hold nulls or name other paths; shapes cannot be wrong."""
    expected = load_model(packed)(IDS)
    set_config(packed, quantization=block, quantization_config=block)
    assert np.array_equal(load_model(packed)(IDS), expected)
    convert(packed, tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization"] == ENTRY | {"mode": "affine"}
    assert config["quantization_config"] == config["quantization"]


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_block_without_packed_tensors_is_noted(key, hf):
    set_config(hf, **{key: ENTRY})
    assert any("no tensor is packed" in note for note in load_model(hf).notes)


@pytest.mark.parametrize("part", ["weight", "scales", "biases"])
def test_missing_part(part, packed, tmp_path):
    arrays = tensors_of(packed)
    del arrays[f"{UP}.{part}"]
    rewrite(packed, arrays)
    message = refusals(packed, tmp_path)
    assert f"{UP}.weight" in message or f"{UP}.{part}" in message
    assert str(packed) in message


BAD_PARTS = {
    "scales of no format": ("scales", mx.zeros((128, 5))),
    "one scale a row": ("scales", mx.zeros((128, 1))),
    "no scales": ("scales", mx.zeros((128, 0))),
    "scalar scales": ("scales", mx.zeros(())),
    "flat scales": ("scales", mx.zeros((3,))),
    "scales of fewer rows": ("scales", mx.zeros((127, 3))),
    "scales of integers": ("scales", mx.zeros((128, 3), mx.int32)),
    "scales of mxfp4": ("scales", mx.zeros((128, 3), mx.uint8)),
    "biases of fewer groups": ("biases", mx.zeros((128, 2))),
    "biases of integers": ("biases", mx.zeros((128, 3), mx.uint8)),
    "float weight": ("weight", mx.zeros((128, 12))),
    "scalar weight": ("weight", mx.zeros((), mx.uint32)),
    "7-bit weight": ("weight", mx.zeros((128, 21), mx.uint32)),
    "weight of fewer rows": ("weight", mx.zeros((127, 12), mx.uint32)),
    "weight of more axes": ("weight", mx.zeros((1, 128, 12), mx.uint32)),
}


@pytest.mark.parametrize(("part", "array"), BAD_PARTS.values(), ids=BAD_PARTS)
def test_parts_that_fit_no_format(part, array, packed, tmp_path):
    rewrite(packed, tensors_of(packed) | {f"{UP}.{part}": array})
    message = refusals(packed, tmp_path)
    assert UP in message
    assert str(packed) in message


def test_a_packed_norm_is_unknown(packed, tmp_path):
    rewrite(packed, tensors_of(packed) | {"model.norm.scales": mx.zeros((3,))})
    assert "'model.norm.scales'" in refusals(packed, tmp_path)


# Bad configs


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "mamba"}, ("'mamba'", "llama, mistral, qwen2")),
        ({"hidden_act": "mish"}, ("'mish'", "silu", "gelu")),
        ({"quantization_config": {"quant_method": "gptq"}}, ("'gptq'", "MLX format")),
        ({"rope_scaling": {"rope_type": "alibi"}}, ("'alibi'", "yarn")),
        ({"hidden_size": 10**9, "head_dim": 24}, ("must have shape",)),
        ({"vocab_size": 2**31}, ("vocab_size",)),
        ({"num_hidden_layers": 10**9}, ("num_hidden_layers",)),
    ],
)
def test_config_is_refused_before_weights_are_read(changes, parts, hf, tmp_path):
    set_config(hf, **changes)
    message = refusals(hf, tmp_path)
    for part in parts:
        assert part in message


# NaN


@pytest.mark.parametrize("value", [mx.nan, mx.inf, -mx.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", f"{UP}.weight"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"dtype": "bfloat16"}, id="bfloat16"),
        pytest.param({**PACK, "q_mode": "mxfp4"}, id="mxfp4"),
        pytest.param(PACK, id="4-bit"),
    ],
)
def test_check_names_the_tensor(name, value, options, hf, tmp_path, weights):
    """Packing hides NaN: the scales may be finite, and mxfp4 has no float at all."""
    array = mx.array(weights[name]).reshape(-1)
    array[7] = value
    rewrite(hf, weights | {name: array.reshape(weights[name].shape)})
    before = listing(tmp_path)
    message = r"\A.*holds NaN or infinity\Z"
    with pytest.raises(ValueError, match=message) as caught:
        convert(hf, tmp_path / "mlx", check=True, **options)
    assert name in str(caught.value)
    assert str(hf) in str(caught.value)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("options", [{}, {"dequantize": True}])
@pytest.mark.parametrize("part", ["scales", "biases"])
def test_check_of_a_packed_source(part, options, packed, tmp_path):
    array = tensors_of(packed)[f"{UP}.{part}"]
    array[3, 1] = mx.nan
    rewrite(packed, tensors_of(packed) | {f"{UP}.{part}": array})
    with pytest.raises(ValueError, match=f"{UP}.*holds NaN or infinity"):
        convert(packed, tmp_path / "mlx", check=True, **options)


# GGUF


def gguf(tmp_path, changes=(), dropped=(), **metadata):
    keys, tensors = as_llama_cpp(gguf_config("llama", num_hidden_layers=1))
    keys |= {name.replace("__", "."): value for name, value in metadata.items()}
    tensors = {k: v for k, v in tensors.items() if k not in dropped} | dict(changes)
    return write_gguf(tmp_path / "m.gguf", keys, tensors)


def test_gguf_is_found_in_its_folder(tmp_path):
    path = gguf(tmp_path)
    assert open_checkpoint(tmp_path).path == path
    (tmp_path / "n.gguf").write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"m\.gguf, n\.gguf"):
        open_checkpoint(tmp_path)


def test_gguf_behind_a_link(tmp_path):
    """Whoever names a file means what it leads to; a folder's links stay inside."""
    path = gguf(tmp_path)
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "l.gguf"
    link.symlink_to(path)
    stored = open_checkpoint(link)
    assert stored.path == link
    name = "model.norm.weight"
    assert mx.array_equal(stored.load(name), open_checkpoint(path).load(name))
    with pytest.raises(ValueError, match="is a link out of its folder"):
        open_checkpoint(link.parent)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama__attention__head_count", 0),
        ("llama__attention__head_count", "6"),
        ("llama__attention__head_count_kv", 4),
        ("llama__attention__key_length", 23),
        ("llama__embedding_length", 0),
        ("llama__block_count", 10**9),
        ("llama__rope__freq_base", 0.0),
        ("llama__rope__freq_base", float("nan")),
        ("llama__attention__layer_norm_rms_epsilon", float("inf")),
        ("llama__rope__scaling__type", "longrope"),
        ("llama__rope__scaling__type", 7),
    ],
)
@pytest.mark.parametrize("with_frequencies", [False, True])
def test_gguf_with_impossible_settings(key, value, with_frequencies, tmp_path):
    ones = {"rope_freqs.weight": (np.ones(12, np.float32), "F32")}
    factor = {"llama__rope__scaling__factor": 4.0}
    extra = ones if with_frequencies else {}
    source = gguf(tmp_path, extra, **factor, **{key: value})
    refusals(source, tmp_path)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("token_embd.weight", "token_embd.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.0.ffn_up.weight", f"{UP}.weight"),
    ],
)
def test_gguf_without_a_tensor(place, name, tmp_path):
    source = gguf(tmp_path, dropped=[place])
    message = refusals(source, tmp_path)
    assert f"lacks '{name}'" in message or f"lacks tensor '{name}'" in message
    assert str(source) in message


def test_gguf_with_a_wrong_shape(tmp_path):
    wrong = tensor("x", (64, 96))
    source = gguf(tmp_path, {"blk.0.attn_q.weight": (wrong, "F32")})
    message = refusals(source, tmp_path)
    assert "q_proj.weight must have shape [144, 96], got [64, 96]" in message


def test_gguf_with_a_tensor_twice(tmp_path):
    source = gguf(tmp_path, {"blk.0.attn_z.weight": (tensor("x", (2, 2)), "F32")})
    content = source.read_bytes().replace(b"blk.0.attn_z", b"blk.0.attn_q")
    source.write_bytes(content)
    assert "'blk.0.attn_q.weight' occurs twice" in refusals(source, tmp_path)


def test_gguf_with_an_unknown_tensor(tmp_path):
    source = gguf(tmp_path, {"blk.0.attn_z.weight": (tensor("x", (2, 2)), "F32")})
    assert "'blk.0.attn_z.weight'" in refusals(source, tmp_path)


def test_what_a_checkpoint_says_of_its_tensors(hf):
    checkpoint = open_checkpoint(hf)
    assert checkpoint.tensors[f"{UP}.weight"] == TensorInfo(mx.float32, (128, 96))
    first, again = checkpoint.load(f"{UP}.weight"), checkpoint.load(f"{UP}.weight")
    assert mx.array_equal(first, again)
