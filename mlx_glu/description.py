"""The settings of a config.json that a reader asks for, of any model type.

What `ModelConfig` has read comes first; of a model type that it does not know, keys
that most of them share.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .config import ModelConfig
from .families import text_part
from .fields import Config
from .variants import VARIANTS, resolve

_SIZES = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"),
    *("sliding_window", "intermediate_size", "moe_intermediate_size"),
)
#: What families call the number of experts, and of those that a token runs.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k")


def text_config(config: Config) -> dict[str, Any]:
    """The config of the text model, of model types that we do not know as well."""
    try:
        known = text_part(config)
    except ValueError:
        known = dict(config)
    inner = known.get("text_config")
    return {**known, **inner} if isinstance(inner, Mapping) else known


def describe(config: Config, read: ModelConfig | None) -> dict[str, Any]:
    """Settings by name; None where one is unknown.

    Args:
        config: config.json as it is; nothing in it need be right.
        read: the same in its normal form, if it has one.

    Returns:
        ``model_type``, ``inside`` (of which multimodal model it is the text part),
        ``config_generation``, sizes under Hugging Face's names, ``layer_types``
        (kind to number), ``rope``, ``variants`` of the FFN, ``num_experts``,
        ``num_experts_per_tok`` and ``tie_word_embeddings``.
    """
    c = text_config(config)
    kind, outer = _text(c.get("model_type")), _text(config.get("model_type"))
    own = {} if read is None else {**vars(read), **read.own}
    c |= {key: value for key, value in own.items() if value is not None}
    tied = c.get("tie_word_embeddings")
    return {
        "model_type": kind,
        "inside": None if outer == kind else outer,
        "config_generation": _generation(text_config(config)),
        **{key: _size(c, key) for key in _SIZES},
        "layer_types": _layer_types(c),
        "rope": _rope(c, read),
        "variants": _variants(c, read),
        "num_experts": _size(c, *_EXPERTS),
        "num_experts_per_tok": _size(c, *_CHOSEN),
        "tie_word_embeddings": tied if isinstance(tied, bool) else None,
    }


#: Our names of what a GGUF file of any architecture says of itself.
_GGUF = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}


def gguf_settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a GGUF file, of architectures that we do not know as well."""
    kind = str(metadata.get("general.architecture"))
    said = {key: metadata.get(f"{kind}.{own}") for key, own in _GGUF.items()}
    return {"model_type": kind, **said}


def formula(variant: str) -> str:
    """A variant as ``phi(gate) * psi(up)``; its name may have parameters behind it."""
    row = VARIANTS.get(variant.split("(")[0])
    if row is None:
        return ""
    gate, up = (
        name if f == "identity" else f"{f}({name})"
        for f, name in ((row.phi, "gate"), (row.psi, "up"))
    )
    return f"{gate} * {up}"


def _text(value: object) -> str | None:
    """A word of a config, of which nothing is known, that can be printed."""
    return ascii(value)[1:-1][:80] if isinstance(value, str) else None


def _size(c: Config, *keys: str) -> int | None:
    for key in keys:
        value = c.get(key)
        if type(value) is int and 0 <= value < 2**63:
            return value
    return None


def _generation(c: Config) -> str | None:
    """Which transformers' keys it has: "4", "5" or "4 and 5"."""
    keys = {"4": ("rope_theta", "rope_scaling"), "5": ("rope_parameters",)}
    found = [name for name, own in keys.items() if any(key in c for key in own)]
    return " and ".join(found) or None


def _layer_types(c: Config) -> dict[str, int] | None:
    kinds = c.get("layer_types")
    if not isinstance(kinds, list | tuple):
        return None
    return dict(Counter(_text(kind) or "?" for kind in kinds))


def _rope(c: Config, read: ModelConfig | None) -> list[dict[str, Any]]:
    """Rotations: of which layers, ``rope_type``, ``theta``; one if all are alike."""
    if read is not None:
        used = {k: read.rope[k] for k in read.layer_types if k in read.rope}
        alike = len(set(map(repr, used.values()))) == 1
        return [
            {
                "layers": None if alike else kind,
                "rope_type": p.rope_type,
                "theta": p.theta,
            }
            for kind, p in list(used.items())[: 1 if alike else None]
        ]
    block = c.get("rope_parameters") or c.get("rope_scaling")
    block = block if isinstance(block, Mapping) else {}
    theta = block.get("rope_theta", c.get("rope_theta"))
    kind = _text(block.get("rope_type", block.get("type", "default")))
    if type(theta) not in (int, float):
        return []
    return [{"layers": None, "rope_type": kind, "theta": float(theta)}]


def _variants(c: Config, read: ModelConfig | None) -> list[str]:
    if read is not None:
        return [str(read.variant)]
    try:
        return [resolve(str(c.get("hidden_activation") or c.get("hidden_act"))).name]
    except ValueError:
        return []
