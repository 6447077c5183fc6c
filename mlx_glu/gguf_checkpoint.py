"""A GGUF file seen as a Hugging Face checkpoint: names, shapes, config.

Undone here, because llama.cpp does it on conversion: the row permutation of
LLaMA's q and k, and the 1 that it adds to Gemma's norm weights.
"""

import json
import math
import re
import reprlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .checkpoint import Checkpoint
from .config import ModelConfig
from .families import FULL
from .gguf import GROUP_SIZE, GGUFFile
from .rope import inverse_frequencies
from .safetensors import TensorInfo

#: general.architecture -> model_type.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: Gemma 2 and 3 norm both sides of each half.
_SANDWICH = {
    **_BLOCK,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROPE_FREQS = "rope_freqs.weight"


class GGUFCheckpoint(Checkpoint):
    """A GGUF file of an architecture this package has.

    Raises:
        ValueError: an architecture, key or tensor that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        # A packed tensor is asked for in three parts, one after the other.
        self._last: tuple[str, tuple[mx.array, ...]] = "", ()
        self._architecture = str(self._file.metadata.get("general.architecture"))
        if self._architecture not in ARCHITECTURES:
            raise ValueError(
                f"[gguf] {path}: architecture {self._architecture!r} is not "
                f"supported; supported: {', '.join(ARCHITECTURES)}"
            )
        self._dtype = self._activations()
        self.tensors: dict[str, TensorInfo] = {}
        self._place_of: dict[str, tuple[str, int]] = {}
        for name in self._file.tensors:
            if name != _ROPE_FREQS:
                self._add(name)
        self.config = self._config()

    def load(self, name: str) -> mx.array:
        """Read one tensor."""
        place, part = self._place_of[name]
        if self._last[0] != place:
            self._last = place, self._file.load(place)
        array = self._last[1][part].astype(self.tensors[name].dtype)
        if self._architecture == "llama":
            for projection, key in (
                (".q_proj.", "attention.head_count"),
                (".k_proj.", "attention.head_count_kv"),
            ):
                if projection in name:
                    array = _unpermute(array, self._number(key))
        if self._architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array - 1.0
        return array

    def write_tokenizer(self, folder: Path) -> None:
        """Rebuild the tokenizer's files from the metadata."""
        from .tokenizer.gguf_tokenizer import write_tokenizer

        write_tokenizer(self._file.metadata, folder)
        tokens = {k: v for k, v in self.config.items() if k.endswith("_token_id")}
        text = json.dumps(tokens, indent=2)
        (folder / "generation_config.json").write_text(text + "\n", encoding="utf-8")

    def _activations(self) -> mx.Dtype:
        """The dtype to compute in: that of the matrices, if it is a float."""
        matrix = self._file.tensors.get("blk.0.ffn_down.weight")
        kind = matrix.format.name if matrix else ""
        if kind in ("F32", "BF16"):
            return mx.float32 if kind == "F32" else mx.bfloat16
        # float16 holds all of a GGUF's scales, but not all of Gemma's activations.
        is_gemma = self._architecture.startswith("gemma")
        return mx.float32 if is_gemma else mx.float16

    def _add(self, name: str) -> None:
        tensor = self._file.tensors[name]
        hf_name = self._hf_name(name)
        bits = tensor.format.bits
        if bits is None:
            dtypes = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
            parts = [(hf_name, dtypes[tensor.format.name], tensor.shape)]
        else:
            *rows, K = tensor.shape
            module, groups = hf_name.removesuffix(".weight"), (*rows, K // GROUP_SIZE)
            parts = [
                (hf_name, mx.uint32, (*rows, K * bits // 32)),
                (f"{module}.scales", self._dtype, groups),
                (f"{module}.biases", self._dtype, groups),
            ]
        for part, (part_name, dtype, shape) in enumerate(parts):
            self.tensors[part_name] = TensorInfo(dtype, tuple(shape))
            self._place_of[part_name] = (name, part)

    def _hf_name(self, name: str) -> str:
        base, _, suffix = name.rpartition(".")
        block = _SANDWICH if self._architecture in ("gemma2", "gemma3") else _BLOCK
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)", base)
        if match and match[2] in block:
            return f"model.layers.{match[1]}.{block[match[2]]}.{suffix}"
        if base in _TOP:
            return f"{_TOP[base]}.{suffix}"
        raise ValueError(f"[gguf] {self.path}: unknown tensor {name!r}")

    def _number(self, key: str, default: float | None = None) -> Any:
        full = f"{self._architecture}.{key}"
        value = self._file.metadata.get(full, default)
        if isinstance(value, np.ndarray) and len(set(value.tolist())) == 1:
            value = value.tolist()[0]
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(
                f"[gguf] {self.path}: {full} is {reprlib.repr(value)}, "
                "not a positive number"
            )
        return value

    def _config(self) -> dict[str, Any]:
        number, metadata = self._number, self._file.metadata
        embeddings = self.tensors.get("model.embed_tokens.weight")
        if embeddings is None:
            raise ValueError(f"[gguf] {self.path} lacks tensor 'token_embd.weight'")
        heads = number("attention.head_count")
        hidden = number("embedding_length")
        config: dict[str, Any] = {
            "model_type": ARCHITECTURES[self._architecture],
            "hidden_size": hidden,
            "intermediate_size": number("feed_forward_length"),
            "num_hidden_layers": number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": number("attention.head_count_kv", heads),
            "head_dim": number("attention.key_length", hidden // heads),
            "rms_norm_eps": round(number("attention.layer_norm_rms_epsilon"), 12),
            "max_position_embeddings": number("context_length"),
            "rope_theta": float(number("rope.freq_base", 10000.0)),
            "vocab_size": embeddings.shape[0],
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            "torch_dtype": str(self._dtype).removeprefix("mlx.core."),
        }
        for key in ("bos", "eos", "padding"):
            value = metadata.get(f"tokenizer.ggml.{key}_token_id")
            if isinstance(value, int):
                config[f"{key.removesuffix('ding')}_token_id"] = value
        for key, name in (
            ("attention.sliding_window", "sliding_window"),
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ):
            if f"{self._architecture}.{key}" in metadata:
                config[name] = number(key)
        if "sliding_window" in config and config["model_type"] == "llama":
            config["model_type"] = "mistral"
        if self._architecture in ("gemma2", "gemma3"):
            # llama.cpp knows the 27B models, which scale otherwise, by their depth.
            is_27b = config["num_hidden_layers"] in (46, 62)
            scalar = hidden // heads if is_27b else config["head_dim"]
            config["query_pre_attn_scalar"] = scalar
        scaling = self._rope_scaling(config)
        return config | ({"rope_scaling": scaling} if scaling else {})

    def _rope_scaling(self, config: dict[str, Any]) -> dict[str, Any] | None:
        kind = self._file.metadata.get(f"{self._architecture}.rope.scaling.type")
        if _ROPE_FREQS in self._file.tensors:
            return self._llama3_scaling(config)
        if kind in (None, "none"):
            return None
        block = {"rope_type": kind, "factor": self._number("rope.scaling.factor")}
        old = f"{self._architecture}.rope.scaling.original_context_length"
        if old in self._file.metadata:
            block["original_max_position_embeddings"] = self._file.metadata[old]
        return block

    def _llama3_scaling(self, config: dict[str, Any]) -> dict[str, Any]:
        """The factors are all that llama.cpp keeps: find the settings behind them."""
        found = np.array(self._file.load(_ROPE_FREQS)[0])
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
            f"[gguf] {self.path}: {_ROPE_FREQS} is not Llama 3.1's or 3.2's scaling"
        )


def _unpermute(array: mx.array, n_heads: int) -> mx.array:
    """Rows of interleaved rotary pairs back to halves; fits packed rows as well."""
    shape = array.shape
    array = array.reshape(n_heads, shape[0] // n_heads // 2, 2, *shape[1:])
    return array.swapaxes(1, 2).reshape(shape)
