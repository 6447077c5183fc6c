"""Mixtures of experts: Mixtral, Qwen2-MoE, Qwen3-MoE, gpt-oss."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from ..fields import Config, block, flag, number, size
from .family import FULL, SLIDING, Family, alternating, full, sliding
from .llama import LLAMA

_LOCAL, _EXPERTS = "num_local_experts", "num_experts"


def _named(right: str, wrong: str) -> Callable[[Config], dict[str, Any]]:
    """Either name of the number of experts, as transformers 5 takes it."""

    def normal(c: Config) -> dict[str, Any]:
        found = {k: v for k, v in c.items() if k != wrong}
        if c.get(right) is None and wrong in c:
            found[right] = c[wrong]
        return found

    return normal


_local, _plain = _named(_LOCAL, _EXPERTS), _named(_EXPERTS, _LOCAL)


def _chosen(c: Config, key: str) -> int:
    """How many experts run for a token; no more than there are."""
    chosen, experts = size(c, key), size(c, _LOCAL if _LOCAL in c else _EXPERTS)
    if chosen > experts:
        raise ValueError(f"[config] {key} {chosen} is more than the {experts} experts")
    return chosen


def _layers(c: Config, key: str) -> list[int]:
    """Indices of layers."""
    given, layers = c[key], size(c, "num_hidden_layers")
    if not isinstance(given, list | tuple) or not all(
        isinstance(i, int) and 0 <= i < layers for i in given
    ):
        raise ValueError(
            f"[config] {key} must be a list of integers below {layers}; "
            f"it is {reprlib.repr(given)}"
        )
    return [*map(int, given)]


def _qkv_bias(c: Config) -> dict[str, Any]:
    """Qwen2-MoE's own name for what others call ``attention_bias``."""
    found = {k: v for k, v in _plain(c).items() if k != "attention_bias"}
    if c.get("qkv_bias") is not None:
        found["attention_bias"] = flag(c, "qkv_bias")
    return found


def _extended(c: Config) -> dict[str, Any]:
    """gpt-oss is a YaRN model even where config.json says nothing of it."""
    found = _local(c)
    if not block(c, "rope_parameters") and not block(c, "rope_scaling"):
        found["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        }
    return found


def _odd_layers(c: Config, layers: int) -> list[str]:
    """Qwen2-MoE: every other layer below ``max_window_layers``, where switched on."""
    end = c["max_window_layers"] if c.get("use_sliding_window") else 0
    kinds = [SLIDING if i < end and i % 2 == 0 else FULL for i in range(layers)]
    return list(c.get("layer_types", kinds))


def _switched(c: Config, layers: int) -> list[str]:
    """Qwen3-MoE: all layers or none."""
    return (sliding if c.get("use_sliding_window") else full)(c, layers)


def _spelled_out(c: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """mlx-lm knows one name of each key, and no defaults for most."""
    return {**c, **own}


_QWEN = {
    **LLAMA,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": False,
}
_QWEN_KEYS = {
    _EXPERTS: size,
    "num_experts_per_tok": _chosen,
    "moe_intermediate_size": size,
    "norm_topk_prob": flag,
    "decoder_sparse_step": size,
    "mlp_only_layers": _layers,
}

EXPERTS = {
    "mixtral": Family(
        {
            **LLAMA,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            _LOCAL: 8,
            "num_experts_per_tok": 2,
        },
        sliding,
        own={_LOCAL: size, "num_experts_per_tok": _chosen},
        normal=_local,
        export=_spelled_out,
    ),
    "qwen2_moe": Family(
        {
            **_QWEN,
            "num_key_value_heads": 16,
            "max_window_layers": 28,
            _EXPERTS: 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
        _odd_layers,
        qkv_bias=True,
        out_bias=False,
        own={**_QWEN_KEYS, "shared_expert_intermediate_size": size},
        normal=_qkv_bias,
        export=_spelled_out,
    ),
    "qwen3_moe": Family(
        {
            **_QWEN,
            "num_key_value_heads": 4,
            _EXPERTS: 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        _switched,
        qk_norm=True,
        own=_QWEN_KEYS,
        normal=_plain,
        export=_spelled_out,
    ),
    "gpt_oss": Family(
        {
            "rms_norm_eps": 1e-5,
            "rope_theta": 150_000.0,
            "max_position_embeddings": 131072,
            "head_dim": 64,
            "num_key_value_heads": 8,
            "attention_bias": True,
            "sliding_window": 128,
            "sliding_window_pattern": 2,
            _LOCAL: 128,
            "num_experts_per_tok": 4,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
        },
        alternating,
        variant="swiglu_clamped",
        own={
            _LOCAL: size,
            "num_experts_per_tok": _chosen,
            "swiglu_alpha": number,
            "swiglu_limit": number,
        },
        normal=_extended,
        export=_spelled_out,
        quant_methods=("mxfp4",),
    ),
}
