"""A GGUF file seen as a Hugging Face checkpoint: its tensors and files.

Undone here, because llama.cpp does it on conversion: the row permutation of
LLaMA's q and k, and the 1 that it adds to Gemma's norm weights.
"""

import json
import re
from pathlib import Path

import mlx.core as mx

from ..quantization import Quantization
from ..tensor_info import TensorInfo
from .checkpoint import Checkpoint
from .gguf import GGUFFile
from .gguf_blocks import GROUP_SIZE
from .gguf_config import ROPE_FREQS, architecture, read_config

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


class GGUFCheckpoint(Checkpoint):
    """A GGUF file of an architecture this package has.

    Raises:
        ValueError: an architecture, key or tensor that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        # A packed tensor is asked for in three parts, one after the other.
        self._last: tuple[str, dict[int, mx.array]] = "", {}
        self._architecture = architecture(self._file)
        self._dtype = self._activations()
        self.notes = self._exact_in_float32()
        self.tensors: dict[str, TensorInfo] = {}
        self._place_of: dict[str, tuple[str, int]] = {}
        for name in self._file.tensors:
            if name != ROPE_FREQS:
                self._add(name)
        self.config = read_config(self._file, self._dtype)

    def load(self, name: str) -> mx.array:
        """Read one tensor."""
        place, part = self._place_of[name]
        if self._last[0] != place or part not in self._last[1]:
            self._last = place, dict(enumerate(self._file.load(place)))
        # Handing over the only reference lets the data go when the caller is done.
        array = self._last[1].pop(part).astype(self.tensors[name].dtype)
        if self._architecture == "llama":
            for projection, key in (
                (".q_proj.", "num_attention_heads"),
                (".k_proj.", "num_key_value_heads"),
            ):
                if projection in name:
                    array = _unpermute(array, self.config[key])
        if self._architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array - 1.0
        return array

    def write_tokenizer(self, folder: Path) -> None:
        """Rebuild the tokenizer's files from the metadata."""
        from ..tokenizer.gguf_tokenizer import write_tokenizer

        write_tokenizer(self._file.metadata, folder)
        tokens = {k: v for k, v in self.config.items() if k.endswith("_token_id")}
        text = json.dumps(tokens, indent=2)
        (folder / "generation_config.json").write_text(text + "\n", encoding="utf-8")

    def _activations(self) -> mx.Dtype:
        """The smallest dtype that holds all scales and matrices, and activations."""
        tensors = self._file.tensors.values()
        dtypes = {t.format.dtype for t in tensors if len(t.shape) > 1}
        dtype = dtypes.pop() if len(dtypes) == 1 else mx.float32
        # Those of Gemma 3 270M reach 1e5, which float16 does not hold.
        is_gemma = self._architecture.startswith("gemma")
        return mx.float32 if is_gemma and dtype == mx.float16 else dtype

    def _exact_in_float32(self) -> list[str]:
        formats = {t.format for t in self._file.tensors.values()}
        names = sorted(f.name for f in formats if f.decode and f.dtype == mx.float32)
        if not names:
            return []
        return [
            f"{', '.join(names)} are exact in float32 alone, which is kept; "
            "`convert --dtype bfloat16` takes less memory and rounds once"
        ]

    def _add(self, name: str) -> None:
        kind, shape = self._file.tensors[name][:2]
        hf_name = self._hf_name(name)
        parts = {hf_name: TensorInfo(kind.dtype, shape)}
        if kind.bits is not None:
            packed = Quantization(GROUP_SIZE, kind.bits, kind.mode)
            infos = packed.packed(TensorInfo(self._dtype, shape))
            module = hf_name.removesuffix(".weight")
            parts = {f"{module}.{suffix}": info for suffix, info in infos.items()}
        for part, (part_name, info) in enumerate(parts.items()):
            self.tensors[part_name] = info
            self._place_of[part_name] = (name, part)

    def _hf_name(self, name: str) -> str:
        base, _, suffix = name.rpartition(".")
        block = _SANDWICH if self._architecture in ("gemma2", "gemma3") else _BLOCK
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)", base)
        if suffix in ("weight", "bias"):
            if match and match[2] in block:
                return f"model.layers.{match[1]}.{block[match[2]]}.{suffix}"
            if base in _TOP:
                return f"{_TOP[base]}.{suffix}"
        raise ValueError(f"[gguf] {self.path}: unknown tensor {name!r}")


def _unpermute(array: mx.array, n_heads: int) -> mx.array:
    """Rows of interleaved rotary pairs back to halves; fits packed rows as well."""
    shape = array.shape
    array = array.reshape(n_heads, shape[0] // n_heads // 2, 2, *shape[1:])
    return array.swapaxes(1, 2).reshape(shape)
