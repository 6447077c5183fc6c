"""Every GGUF block format: the values of ggml's own library, whatever the bytes."""

import hashlib
import tracemalloc

import mlx.core as mx
import numpy as np
import pytest
from gguf_writer import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gguf import as_llama_cpp, gguf_config
from tiny_tokenizers import byte_level_metadata

from mlx_glu import convert
from mlx_glu.checkpoints import gguf
from mlx_glu.checkpoints.checkpoint import open_checkpoint
from mlx_glu.checkpoints.gguf import GGUFFile
from mlx_glu.checkpoints.gguf_blocks import FORMATS, GROUP_SIZE, decode_blocks
from mlx_glu.quantization import Quantization, dequantize
from mlx_glu.weights import examine

BLOCKS = {kind.name: kind for kind in FORMATS.values() if kind.decode}
#: Where the float16 scales of a block begin.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}  # fmt: skip
#: Of gguf 0.19.0's values for `blocks_of(kind, 8, 1024)`.
DIGESTS = {
    "Q4_0": "5274d2dba2a103ef",
    "Q4_1": "0a97ac113e20b3be",
    "Q5_0": "a0cd51f30832220e",
    "Q5_1": "825ea6d4effac301",
    "Q8_0": "1cb66ac08efb03f2",
    "Q2_K": "62f6e9b74e996aaa",
    "Q3_K": "ea96f11b53b8912b",
    "Q4_K": "e557d5be9b8f42a5",
    "Q5_K": "088b0974ba42c53c",
    "Q6_K": "7373b03755308d9f",
    "IQ4_NL": "9fcb8a93e5254fd6",
    "IQ4_XS": "174087e37202220b",
    "MXFP4": "dcab1b2a04c03472",
}


def blocks_of(name, rows, K):
    """Arbitrary but fixed blocks [rows, bytes] with scales below 2."""
    kind = BLOCKS[name]
    nbytes = rows * K // kind.block * kind.nbytes
    octets = hashlib.shake_256(name.encode()).digest(nbytes)
    raw = np.frombuffer(octets, np.uint8).reshape(-1, kind.nbytes).copy()
    for at in SCALES[name]:
        raw[:, at + 1] &= 0xBF
    if name == "MXFP4":
        raw[:, 0] = 120 + raw[:, 0] % 16
    return raw.reshape(rows, -1)


def digest(values):
    """Of float32 values; both zeros count as one."""
    return hashlib.sha256((values + np.float32(0)).tobytes()).hexdigest()[:16]


def unpacked(kind, parts):
    """What a loaded tensor stands for, in float32."""
    if kind.bits is None:
        return np.array(parts[0])
    weight, scales, *biases = parts
    packed = Quantization(GROUP_SIZE, kind.bits, kind.mode)
    return np.array(dequantize(weight, scales, *biases or [None], packed))


@pytest.mark.parametrize("name", BLOCKS)
def test_values_are_those_of_ggmls_library(name, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "_SLICE", 1536)  # several slices, and a shorter one
    tensors = {"x.weight": (blocks_of(name, 8, 1024), name)}
    parts = GGUFFile(write_gguf(tmp_path / "a.gguf", {}, tensors)).load("x.weight")
    values = unpacked(BLOCKS[name], parts)
    assert values.shape == (8, 1024)
    assert len(parts) == (1 if BLOCKS[name].bits is None else 2 + (name != "MXFP4"))
    assert digest(values) == DIGESTS[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_digests_are_ggmls(name):
    quants = pytest.importorskip("gguf.quants")
    constants = pytest.importorskip("gguf.constants")
    kind = constants.GGMLQuantizationType[name]
    assert FORMATS[kind.value].name == name
    sizes = (BLOCKS[name].block, BLOCKS[name].nbytes)
    assert constants.GGML_QUANT_SIZES[kind] == sizes
    values = quants.dequantize(blocks_of(name, 8, 1024), kind)
    assert digest(values) == DIGESTS[name]


@pytest.mark.parametrize("name", BLOCKS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_bytes_decode(name, data):
    """NaN and infinite scales too; a warning would be an error here."""
    kind = BLOCKS[name]
    raw = data.draw(st.binary(min_size=kind.nbytes, max_size=kind.nbytes))
    raw = np.frombuffer(raw, np.uint8).reshape(1, -1)
    first, *groups = decode_blocks(kind, raw)
    if kind.bits is None:
        assert (first.dtype, first.shape) == (np.float32, (1, kind.block))
    else:
        assert first.dtype == np.uint32
        assert first.shape == (1, kind.block * kind.bits // 32)
    for group in groups:
        assert group.shape == (1, kind.block // GROUP_SIZE)


def test_a_tensor_is_decoded_a_slice_at_a_time(tmp_path):
    """In flight are the result, its blocks and some MB, not a second copy."""
    tensors = {"x.weight": (np.tile(blocks_of("Q6_K", 64, 4096), (128, 1)), "Q6_K")}
    file = GGUFFile(write_gguf(tmp_path / "a.gguf", {}, tensors))
    tracemalloc.start()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    (array,) = file.load("x.weight")
    mx.eval(array)
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert array.nbytes == 4 * 8192 * 4096
    assert numpy_peak < array.nbytes / 4
    assert mx.get_peak_memory() - before < 1.3 * array.nbytes
    assert mx.array_equal(array[:64], array[-64:])


@pytest.fixture
def mixed(tmp_path):
    """A LLaMA whose matrices are each of another format, with a tokenizer."""
    tokenizer = {
        key: value.tolist() if hasattr(value, "tolist") else value
        for key, value in byte_level_metadata(padding_token_id=None).items()
    }
    config = gguf_config(
        "llama",
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        vocab_size=len(tokenizer["tokenizer.ggml.tokens"]),
        num_hidden_layers=2,
    )
    metadata, tensors = as_llama_cpp(config)
    matrices = [name for name, (array, _) in tensors.items() if array.ndim == 2]
    assert len(matrices) >= len(BLOCKS)
    for i, name in enumerate(matrices):
        kind = [*BLOCKS][i % len(BLOCKS)]
        tensors[name] = (blocks_of(kind, *tensors[name][0].shape), kind)
    return write_gguf(tmp_path / "mixed.gguf", metadata | tokenizer, tensors)


def dense_of(path):
    """Every parameter in float32."""
    weights = examine(open_checkpoint(path))
    return {n: np.array(weights.load_dense(n, mx.float32)) for n in weights.shapes}


def test_q_and_k_are_unpermuted(mixed):
    """llama.cpp puts the two halves of each head's rows in turn."""
    file, ours = GGUFFile(mixed), dense_of(mixed)
    for layer in range(2):
        for short, heads in (("q", 8), ("k", 4)):
            name = f"blk.{layer}.attn_{short}.weight"
            stored = unpacked(file.tensors[name].format, file.load(name))
            wanted = stored.reshape(heads, 16, 2, 256).swapaxes(1, 2).reshape(-1, 256)
            found = ours[f"model.layers.{layer}.self_attn.{short}_proj.weight"]
            assert np.array_equal(found, wanted)


def test_conversion_is_exact_in_float32(mixed, tmp_path):
    report = convert(mixed, tmp_path / "mlx")
    wanted, made = dense_of(mixed), dense_of(tmp_path / "mlx")
    assert made.keys() == wanted.keys()
    for name, array in wanted.items():
        assert np.array_equal(made[name], array), name
    checkpoint = open_checkpoint(tmp_path / "mlx")
    assert checkpoint.config["torch_dtype"] == "float32"
    kept = [n for n in checkpoint.tensors if n.endswith(".scales")]
    stored = examine(open_checkpoint(mixed)).quantization
    assert sorted(kept) == sorted(f"{module}.scales" for module in stored)
    assert any("Q4_K" in note and "float32" in note for note in report.notes)


def test_another_dtype_rounds_once(mixed, tmp_path):
    convert(mixed, tmp_path / "mlx", dtype="bfloat16")
    source, made = open_checkpoint(mixed), open_checkpoint(tmp_path / "mlx")
    for name, info in made.tensors.items():
        wanted = source.load(name)
        if mx.issubdtype(wanted.dtype, mx.floating):
            assert info.dtype == mx.bfloat16
            wanted = wanted.astype(mx.bfloat16)
        assert mx.array_equal(made.load(name), wanted), name


def test_quantizing_again(mixed, tmp_path):
    """From what the blocks stand for; groups of that very format stay."""
    convert(mixed, tmp_path / "mlx", quantize=True, q_bits=8, q_group_size=32)
    wanted, made = dense_of(mixed), dense_of(tmp_path / "mlx")
    before = examine(open_checkpoint(mixed)).quantization
    after = examine(open_checkpoint(tmp_path / "mlx")).quantization
    for module, q in after.items():
        name = f"{module}.weight"
        dense = wanted[name]
        if before.get(module) != q:
            dense = dequantize(*mx.quantize(mx.array(dense), **q.as_config()), q)
        assert q == Quantization(32, 8)
        assert np.array_equal(made[name], dense), name


def test_check_finds_a_scale_that_is_no_number(mixed, tmp_path):
    name = "blk.1.ffn_down.weight"
    tensor = GGUFFile(mixed).tensors[name]
    scale = SCALES[tensor.format.name][0]
    content = bytearray(mixed.read_bytes())
    content[tensor.offset + scale : tensor.offset + scale + 2] = b"\x00\x7e"
    mixed.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.down_proj\.weight holds NaN"
    ):
        convert(mixed, tmp_path / "mlx", check=True)
    assert not (tmp_path / "mlx").exists()


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    """A mapped file would kill the process."""
    path = tmp_path / "model.gguf"
    write_gguf(path, {}, {"a.weight": (np.zeros((64, 1024), np.float32), "F32")})
    file = GGUFFile(path)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    with pytest.raises(ValueError, match="has changed since it was opened"):
        file.load("a.weight")
