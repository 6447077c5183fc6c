"""The config.json that a GGUF file's metadata and tensors stand for."""

import math
import reprlib
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from ..config import ModelConfig
from ..families import FULL
from ..rope import inverse_frequencies
from .gguf import GGUFFile

#: general.architecture -> model_type.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
#: Not a weight: what the rotary frequencies are divided by.
ROPE_FREQS = "rope_freqs.weight"

_ALWAYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_SOMETIMES = {
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


def architecture(file: GGUFFile) -> str:
    """``general.architecture``, a key of ``ARCHITECTURES``.

    Raises:
        ValueError: it is another; the message lists what there is.
    """
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(
            f"[gguf] {file.path}: architecture {reprlib.repr(name)} is not "
            f"supported; supported: {', '.join(ARCHITECTURES)}"
        )
    return name


def read_config(file: GGUFFile, dtype: mx.Dtype) -> dict[str, Any]:
    """Make the config of a file; whether a model can have it is not judged.

    Args:
        file: of a known architecture.
        dtype: to compute in.

    Raises:
        ValueError: a key or tensor is missing, or is nothing of its kind.
    """
    arch = architecture(file)
    embeddings = file.tensors.get("token_embd.weight")
    if embeddings is None:
        raise ValueError(f"[gguf] {file.path} lacks tensor 'token_embd.weight'")
    config = {name: _number(file, key) for name, key in _ALWAYS.items()}
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    config |= {
        "model_type": ARCHITECTURES[arch],
        "num_key_value_heads": _number(file, "attention.head_count_kv", heads),
        "head_dim": _number(file, "attention.key_length", hidden // heads),
        "rms_norm_eps": round(_number(file, "attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": float(_number(file, "rope.freq_base", 10000.0)),
        "vocab_size": embeddings.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": str(dtype).removeprefix("mlx.core."),
    }
    for key in ("bos", "eos", "padding"):
        value = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(value, int):
            config[f"{key.removesuffix('ding')}_token_id"] = value
    for name, key in _SOMETIMES.items():
        if f"{arch}.{key}" in file.metadata:
            config[name] = _number(file, key)
    if "sliding_window" in config and config["model_type"] == "llama":
        config["model_type"] = "mistral"
    if arch in ("gemma2", "gemma3"):
        # llama.cpp knows the 27B models, which scale otherwise, by their depth.
        is_27b = config["num_hidden_layers"] in (46, 62)
        scalar = hidden // heads if is_27b else config["head_dim"]
        config["query_pre_attn_scalar"] = scalar
    scaling = _rope_scaling(file, config)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _number(file: GGUFFile, key: str, default: float | None = None) -> Any:
    full = f"{architecture(file)}.{key}"
    value = file.metadata.get(full, default)
    if isinstance(value, np.ndarray) and len(set(value.tolist())) == 1:
        value = value.tolist()[0]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value < math.inf
    ):
        raise ValueError(
            f"[gguf] {file.path}: {full} is {reprlib.repr(value)}, "
            "not a positive number"
        )
    return value


def _rope_scaling(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any] | None:
    if ROPE_FREQS in file.tensors:
        return _llama3_scaling(file, config)
    prefix = f"{architecture(file)}.rope.scaling"
    kind = file.metadata.get(f"{prefix}.type", "none")
    if not isinstance(kind, str):
        raise ValueError(
            f"[gguf] {file.path}: {prefix}.type is {reprlib.repr(kind)}, not a string"
        )
    if kind == "none":
        return None
    block = {"rope_type": kind, "factor": _number(file, "rope.scaling.factor")}
    old = f"{prefix}.original_context_length"
    if old in file.metadata:
        block["original_max_position_embeddings"] = file.metadata[old]
    return block


def _llama3_scaling(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    """The factors are all that llama.cpp keeps: find the settings behind them."""
    found = np.array(file.load(ROPE_FREQS)[0].astype(mx.float32))
    read = ModelConfig.from_dict(config)
    plain, dims = read.rope[FULL], read.head_dim
    for factor in (8.0, 32.0):
        block = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        scaled = replace(plain, rope_type="llama3", scaling=block)
        wanted = np.divide(
            inverse_frequencies(plain, dims)[0],
            inverse_frequencies(scaled, dims)[0],
        )
        if found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-4):
            return block
    raise ValueError(
        f"[gguf] {file.path}: {ROPE_FREQS} is not Llama 3.1's or 3.2's scaling"
    )
