"""GGUF: the same numbers as MLX's own reader, the same model as the HF folder."""

import contextlib
import struct
import time
import tracemalloc

import mlx.core as mx
import numpy as np
import pytest
from gguf_writer import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import config_of, token_ids, weights_of, write_checkpoint

from mlx_glu import load_model
from mlx_glu.checkpoints.checkpoint import open_checkpoint
from mlx_glu.checkpoints.gguf import GGUFFile
from mlx_glu.quantization import dequantize, read_off
from mlx_glu.rope import RopeParameters, inverse_frequencies
from mlx_glu.weights import examine

RNG = np.random.default_rng(0)
KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"]


@pytest.mark.parametrize("kind", KINDS)
def test_reads_as_mlx_does(kind, tmp_path):
    array = RNG.standard_normal((6, 64)).astype(np.float32)
    path = write_gguf(tmp_path / "a.gguf", {"a.b": 1}, {"x.weight": (array, kind)})
    parts = GGUFFile(path).load("x.weight")
    theirs = mx.load(str(path))
    names = ["x.weight", "x.scales", "x.biases"]
    for name, ours in zip(names, parts, strict=False):
        assert ours.shape == theirs[name].shape
        assert mx.array_equal(ours, theirs[name])
    if kind == "F32":
        assert np.array_equal(np.array(parts[0]), array)
    assert len(parts) == (3 if kind.startswith("Q") else 1)


def test_metadata(tmp_path):
    metadata = {
        "text": "größe",
        "flag": True,
        "count": 7,
        "share": 0.5,
        "words": ["a", "", "ü"],
        "scores": [0.5, -1.0],
        "types": [1, -3],
    }
    read = GGUFFile(write_gguf(tmp_path / "a.gguf", metadata, {})).metadata
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in read.items()}
    assert plain == metadata


ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
SANDWICH = BLOCK | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


def as_llama_cpp(config, kind="F32"):
    """Metadata and tensors as llama.cpp's converter writes them for a config."""
    arch = ARCHITECTURES[config["model_type"]]
    block = SANDWICH if arch in ("gemma2", "gemma3") else BLOCK
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    tensors = {}
    for name, array in weights_of(config).items():
        module, _, suffix = name.rpartition(".")
        if module in TOP:
            out = f"{TOP[module]}.{suffix}"
        elif module == "lm_head":
            out = "output.weight"
        else:
            _, _, layer, rest = module.split(".", 3)
            out = f"blk.{layer}.{block[rest]}.{suffix}"
        if arch == "llama" and module.endswith(tuple(heads)):
            n = config[heads[module.rpartition(".")[2]]]
            halves = array.reshape(n, 2, len(array) // n // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        fits = array.ndim == 2 and array.shape[-1] % 32 == 0
        tensors[out] = (array, kind if fits else "F32")
    keys = {
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "block_count": "num_hidden_layers",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "rope.freq_base": "rope_theta",
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    }
    metadata = {f"{arch}.{k}": config[v] for k, v in keys.items() if v in config}
    return {"general.architecture": arch} | metadata, tensors


def gguf_config(model_type, **changes):
    """A config whose settings GGUF can say."""
    changes |= {"mlp_bias": False}
    if model_type == "llama":
        changes |= {"attention_bias": False}
    if model_type == "qwen2":
        changes |= {"use_sliding_window": False, "sliding_window": None}
        return {k: v for k, v in config_of(model_type, **changes).items() if v}
    if model_type == "qwen3":
        changes |= {"attention_bias": False}
    if model_type in ("gemma2", "gemma3_text"):
        changes |= {"query_pre_attn_scalar": 24}
    if model_type == "gemma3_text":
        changes |= {"sliding_window_pattern": 6, "num_hidden_layers": 7}
    return config_of(model_type, **changes)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_model_is_the_hugging_face_one(model_type, tmp_path):
    config = gguf_config(model_type)
    expected = load_model(write_checkpoint(tmp_path / "hf", config))
    path = write_gguf(tmp_path / "m.gguf", *as_llama_cpp(config))
    ids = mx.array(token_ids())
    expected, ours = np.array(expected(ids)), np.array(load_model(path)(ids))
    assert np.abs(ours - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantized_groups_survive_conversion(kind, tmp_path):
    """Packed weights, scales and biases arrive bit for bit, q and k unpermuted."""
    config = gguf_config("llama", head_dim=16)
    path = write_gguf(tmp_path / "m.gguf", *as_llama_cpp(config, kind))
    source = open_checkpoint(path)
    reread = mx.load(str(path))
    name = "model.layers.0.mlp.up_proj"
    assert read_off(name, 96, source.tensors).group_size == 32
    for part in ("weight", "scales", "biases"):
        ours = source.load(f"{name}.{part}")
        assert mx.array_equal(ours, reread[f"blk.0.ffn_up.{part}"])
    q = "model.layers.0.self_attn.q_proj"
    packed = read_off(q, 96, source.tensors)
    parts = [source.load(f"{q}.{part}") for part in ("weight", "scales", "biases")]
    dense = dequantize(*parts, packed)
    wanted = weights_of(config)[f"{q}.weight"]
    assert np.abs(np.array(dense) - wanted).max() < 0.5 / 8


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_found_again(factor, tmp_path):
    """llama.cpp keeps only the factors of Llama 3.1's rotation."""
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = gguf_config("llama", rope_theta=500000.0, rope_scaling=scaling)
    metadata, tensors = as_llama_cpp(config)
    plain = inverse_frequencies(RopeParameters(5e5, 32), 24)[0]
    scaled = inverse_frequencies(RopeParameters(5e5, 32, "llama3", scaling), 24)[0]
    factors = np.divide(plain, scaled).astype(np.float32)
    assert factors.max() == pytest.approx(factor)
    tensors["rope_freqs.weight"] = (factors, "F32")
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    assert open_checkpoint(path).config["rope_scaling"] == scaling
    tensors["rope_freqs.weight"] = (factors * 1.01, "F32")
    with pytest.raises(ValueError, match="rope_freqs"):
        open_checkpoint(write_gguf(tmp_path / "n.gguf", metadata, tensors))


def test_damaged_files_are_refused(tmp_path):
    """Cut anywhere, or with any byte of the header changed: an error, no crash."""
    config = gguf_config("llama", num_hidden_layers=1)
    whole = write_gguf(tmp_path / "m.gguf", *as_llama_cpp(config)).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 400, 7), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.gguf"):
            open_checkpoint(path)
    for position in range(0, 1200, 5):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        path.write_bytes(changed)
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint.tensors:
                checkpoint.load(name)
        except ValueError:
            continue


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a small file, and where its header ends."""
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    metadata, tensors = as_llama_cpp(gguf_config("llama", num_hidden_layers=1))
    metadata |= {"words": ["a", "bc"], "numbers": [1, 2], "general.alignment": 32}
    write_gguf(path, metadata, tensors)
    places = GGUFFile(path).tensors.values()
    return path.read_bytes(), min(place.offset for place in places)


EDITS = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([1, 4, 8]),
    st.one_of(
        st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**60, 2**63, 2**64 - 1]),
        st.integers(0, 2**64 - 1),
    ),
)


@settings(deadline=5000, max_examples=300)
@given(edits=st.lists(EDITS, min_size=1, max_size=4), cut=st.floats(0.01, 4))
def test_any_header_opens_or_is_refused(edits, cut, whole, tmp_path_factory):
    """Whatever stands in it, without delay."""
    content, header = bytearray(whole[0]), whole[1]
    for where, size, value in edits:
        at = int(where * header)
        content[at : at + size] = value.to_bytes(8, "little")[:size]
    path = tmp_path_factory.getbasetemp() / "edited.gguf"
    path.write_bytes(content[: max(1, int(cut * header))] if cut < 1 else content)
    with contextlib.suppress(ValueError):
        checkpoint = open_checkpoint(path)
        examine(checkpoint)
        for name in checkpoint.tensors:
            mx.eval(checkpoint.load(name))


def text(value):
    return struct.pack("<Q", len(value)) + value


def key(value, kind, name=b"k"):
    return text(name) + struct.pack("<I", kind) + value


def place(*dims, name=b"x", n_dims=None, kind=0, offset=0):
    n_dims = len(dims) if n_dims is None else n_dims
    head = struct.pack(f"<I{len(dims)}Q", n_dims, *dims)
    return text(name) + head + struct.pack("<IQ", kind, offset)


ALIGNMENT = b"general.alignment"
#: tensors, keys, what follows, and what the refusal says.
LIES = {
    "tensors": (2**60, 0, b"", "claims 1152921504606846976 tensors"),
    "keys": (0, 2**60, b"", "claims 1152921504606846976 metadata keys"),
    "tensors that are not there": (2**16, 0, b"", "'' has an impossible shape"),
    "string": (0, 1, key(struct.pack("<Q", 2**63), 8), "breaks inside"),
    "key": (0, 1, text(b"k" * 2000) + bytes(5), "breaks inside"),
    "array": (0, 1, key(struct.pack("<IQ", 4, 2**62), 9), "breaks inside"),
    "array of strings": (0, 1, key(struct.pack("<IQ", 8, 2**61), 9), "breaks inside"),
    "string in an array": (
        0, 1, key(struct.pack("<IQQ", 8, 1, 2**40), 9), "breaks inside"
    ),
    "no UTF-8": (0, 1, key(text(b"\xff"), 8), "breaks inside"),
    "nested arrays": (0, 1, key(struct.pack("<IQ", 9, 1) * 99, 9), "array type 9"),
    "value of no type": (0, 1, key(b"", 77), "metadata type 77"),
    "key twice": (0, 2, key(b"a", 0) * 2, "'k' occurs twice"),
    "dimensions": (1, 0, place(n_dims=2**31), "has 2147483648 dimensions"),
    "five dimensions": (1, 0, place(1, 1, 1, 1, 1), "has 5 dimensions"),
    "no dimension": (1, 0, place(), "impossible shape"),
    "dimension of 0": (1, 0, place(32, 0), "impossible shape"),
    "part of a block": (1, 0, place(32, kind=12), "impossible shape"),
    "product": (1, 0, place(2**63, 2**63, 2**63), "ends after the file"),
    "offset": (1, 0, place(1, offset=2**63), "ends after the file"),
    "odd offset": (1, 0, place(1, offset=4), "at no multiple of 32"),
    "overlap": (
        2, 0, place(16) + place(8, name=b"y", offset=32), "'y' begins inside another"
    ),
    "tensor type": (1, 0, place(1, kind=99), "'x' is of type 99"),
    "alignment 0": (0, 1, key(bytes(4), 4, ALIGNMENT), "power of two"),
    "alignment 24": (0, 1, key(struct.pack("<I", 24), 4, ALIGNMENT), "power of two"),
    "alignment true": (0, 1, key(b"\1", 7, ALIGNMENT), "power of two"),
    "alignment of words": (0, 1, key(text(b"32"), 8, ALIGNMENT), "power of two"),
    "huge alignment": (
        1, 1, key(struct.pack("<I", 2**31), 4, ALIGNMENT) + place(1), "after the file"
    ),
    "words": (
        0, 1, key(struct.pack("<IQ", 8, 2**21 + 1) + bytes(2**24 + 8), 9),
        "more than 2097152 strings",
    ),
    "size of the header": (
        0, 1, key(struct.pack("<IQ", 0, 2**26) + bytes(2**26), 9), "breaks inside"
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused_at_once(lie, tmp_path):
    n_tensors, n_keys, rest, message = LIES[lie]
    path = tmp_path / "lie.gguf"
    head = struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, n_keys)
    path.write_bytes(head + rest + bytes(128))
    start = time.monotonic()
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        GGUFFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - start < 1
    assert peak < 2**23 + path.stat().st_size  # the header, as far as it is there
    assert str(path) in str(caught.value)


def test_unreadable_type_is_named(tmp_path):
    tensors = {"token_embd.weight": (np.zeros((2, 256), np.float32), "IQ2_XXS")}
    path = write_gguf(tmp_path / "k.gguf", {"general.architecture": "llama"}, tensors)
    with pytest.raises(ValueError, match=r"token_embd.weight.* IQ2_XXS.*Q8_0"):
        open_checkpoint(path)


def test_unknown_architecture_is_named(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"general.architecture": "mamba"}, {})
    with pytest.raises(ValueError, match=r"'mamba'.*llama"):
        open_checkpoint(path)


def test_gemma_is_not_converted_to_float16(tmp_path):
    """Gemma's activations overflow float16; a GGUF's own scales are float16."""
    config = gguf_config("gemma", head_dim=16)
    path = write_gguf(tmp_path / "m.gguf", *as_llama_cpp(config, "Q8_0"))
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["torch_dtype"] == "float32"
    scales = checkpoint.load("model.layers.0.mlp.up_proj.scales")
    assert scales.dtype == mx.float32
    assert mx.array_equal(scales, mx.load(str(path))["blk.0.ffn_up.scales"])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_conversion_computes_in_what_the_file_holds(kind, tmp_path):
    config = gguf_config("llama", head_dim=16)
    path = write_gguf(tmp_path / "m.gguf", *as_llama_cpp(config, kind))
    wanted = {"F32": "float32", "BF16": "bfloat16"}.get(kind, "float16")
    assert open_checkpoint(path).config["torch_dtype"] == wanted
