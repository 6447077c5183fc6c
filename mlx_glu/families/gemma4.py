"""Gemma 4 (text)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..fields import Config, block, flag, size
from .family import FULL, SLIDING, Family, alternating
from .gemma import GEMMA, PER_LAYER, shared_layers

_GEMMA4 = {
    **GEMMA,
    **PER_LAYER,
    "hidden_activation": "gelu_pytorch_tanh",
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "global_head_dim": 512,
    "attention_k_eq_v": False,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "enable_moe_block": False,
}
#: The 12B model has neither experts nor inputs of layers.
_UNIFIED = {
    **_GEMMA4,
    "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 262144,
    "sliding_window": 1024,
}
_GEMMA4_ROPE = {
    FULL: {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
    },
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
}


def _ends_full(c: Config, layers: int) -> list[str]:
    """As `alternating`, but the last layer is always full."""
    return [*alternating(c, layers)[:-1], FULL]


def _gemma4(c: Config) -> Config:
    """One name for both; attention is causal but for images; rotations by default."""
    changed = {**c, "model_type": "gemma4_text"}
    bidirectional = {"vision": False, "all": True}
    key = "use_bidirectional_attention"
    if isinstance(c.get(key), str):
        changed[key] = bidirectional.get(c[key], c[key])
    rope = block(c, "rope_parameters") or _GEMMA4_ROPE
    changed["rope_parameters"] = {k: _whole(v) for k, v in rope.items()}
    return changed


def _whole(rope: Any) -> Any:
    """Transformers' default rotation is of whole heads, whatever their share is."""
    share = "partial_rotary_factor"
    if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default":
        return rope
    return {k: v for k, v in rope.items() if k != share}


def _overrides(c: Config) -> dict[str, Any] | None:
    """What transformers 5 says of each full layer; None where it does not."""
    if c.get("per_layer_config") is None:
        return None
    given = block(c, "per_layer_config")
    kinds = _ends_full(c, c["num_hidden_layers"])
    full_layers = {str(i) for i, kind in enumerate(kinds) if kind == FULL}
    first: Any = next(iter(given.values()), {})
    if (
        (given and {str(k) for k in given} != full_layers)
        or not isinstance(first, Mapping)
        or first.keys() - {"head_dim", "num_key_value_heads"}
        or any(each != first for each in given.values())
    ):
        raise ValueError(
            "[config] per_layer_config must give every full_attention layer the same "
            "head_dim and num_key_value_heads, and no other layer any"
        )
    return dict(first)


def _full_head_dim(c: Config, key: str) -> int:
    given = _overrides(c)
    value = c[key] if given is None else given.get("head_dim", c["head_dim"])
    head_dim = size({key: value}, key, 4)
    if head_dim % 2 or head_dim > 10000:
        raise ValueError(f"[config] {key} must be even, at most 10000, not {head_dim}")
    return head_dim


def _full_kv_heads(c: Config, key: str) -> int:
    """Fewer where keys are values too; as many as in other layers if none is given."""
    given = _overrides(c)
    if given is not None:
        value = given.get("num_key_value_heads")
    else:
        value = c.get(key) if c["attention_k_eq_v"] else None
    if value is None:
        value = c["num_key_value_heads"]
    kv_heads, heads = size({key: value}, key), c["num_attention_heads"]
    if heads % kv_heads:
        raise ValueError(
            f"[config] num_attention_heads {heads} is not a multiple of {key} "
            f"{kv_heads}"
        )
    return kv_heads


def _of_experts(c: Config, key: str) -> int | None:
    if not c["enable_moe_block"]:
        return None
    count, most = size(c, key), size(c, "num_experts")
    if key == "top_k_experts" and count > most:
        raise ValueError(f"[config] {key} {count} is more than num_experts {most}")
    return count


def _family(defaults: Mapping[str, Any]) -> Family:
    old = ("rope_theta", "rope_scaling", "rope_local_base_freq")
    or_none = partial(size, least=0)

    def export(c: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """mlx-lm has other defaults, and transformers would obey old keys."""
        every = {**defaults, **c, **own, "model_type": "gemma4_text"}
        return {k: v for k, v in every.items() if k not in old}

    return Family(
        defaults,
        _ends_full,
        variant="geglu_tanh",
        qk_norm=True,
        own={
            "vocab_size_per_layer_input": or_none,
            "hidden_size_per_layer_input": or_none,
            "attention_k_eq_v": flag,
            "global_head_dim": _full_head_dim,
            "num_global_key_value_heads": _full_kv_heads,
            "num_kv_shared_layers": shared_layers(_ends_full),
            "use_double_wide_mlp": flag,
            "enable_moe_block": flag,
            "num_experts": _of_experts,
            "top_k_experts": _of_experts,
            "moe_intermediate_size": _of_experts,
        },
        normal=_gemma4,
        export=export,
    )


GEMMA4 = {
    "gemma4_text": _family(_GEMMA4),
    "gemma4_unified_text": _family(_UNIFIED),
}
