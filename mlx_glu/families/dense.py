"""Dense families with a block of their own: Phi-3, SmolLM3, OLMo 2, Granite, Cohere."""

import reprlib
from collections.abc import Mapping
from typing import Any

from ..fields import Config, flag, number, size
from .family import FULL, SLIDING, Family, alternating, full, sliding
from .llama import LLAMA


def rotated_layers(c: Config, key: str) -> tuple[bool, ...]:
    """SmolLM3: which layers rotate; by default all but each 4th.

    The list is called ``no_rope_layers``, and 1 stands for a layer that does.
    """
    layers = size(c, "num_hidden_layers")
    interval = size(c, "no_rope_layer_interval")
    if c.get(key) is None:
        return tuple((i + 1) % interval != 0 for i in range(layers))
    given = c[key]
    if (
        not isinstance(given, list | tuple)
        or len(given) != layers
        or not all(value in (0, 1) for value in given)
    ):
        raise ValueError(
            f"[config] {key} must be a list of 0 or 1 for each of the {layers} layers; "
            f"it is {reprlib.repr(given)}"
        )
    return tuple(map(bool, given))


def _unrotated_slide(c: Config, layers: int) -> list[str]:
    """SmolLM3: the layers without rotation, where windows are switched on."""
    if "layer_types" in c:
        return list(c["layer_types"])
    if not c.get("use_sliding_window"):
        return full(c, layers)
    rotated = rotated_layers(c, "no_rope_layers")
    return [FULL if rotates else SLIDING for rotates in rotated]


def _longrope_alone(c: Config) -> Config:
    """Phi-3's only scaling, which older checkpoints call yarn."""
    changed = dict(c)
    for key in ("rope_parameters", "rope_scaling"):
        block = c.get(key)
        if isinstance(block, Mapping):
            name = "rope_type" if "rope_type" in block else "type"
            if block.get(name) == "yarn":
                changed[key] = {**block, name: "longrope"}
    return changed


def _layer_norm(c: Config) -> Config:
    """Cohere's LayerNorm has an epsilon of its own name."""
    changed = {k: v for k, v in c.items() if k != "rms_norm_eps"}
    if c.get("layer_norm_eps") is not None:
        changed["rms_norm_eps"] = number(c, "layer_norm_eps")
    return changed


_GRANITE = dict.fromkeys(
    (
        "embedding_multiplier",
        "attention_multiplier",
        "residual_multiplier",
        "logits_scaling",
    ),
    1.0,
)
_COHERE: dict[str, Any] = {
    **LLAMA,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
}

DENSE = {
    "phi3": Family(
        {
            **LLAMA,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
        sliding,
        normal=_longrope_alone,
    ),
    "smollm3": Family(
        {
            **LLAMA,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2_000_000.0,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
        },
        _unrotated_slide,
        own={"no_rope_layers": rotated_layers},
    ),
    "olmo2": Family({**LLAMA, "rms_norm_eps": 1e-5}, full, qk_norm=True),
    "granite": Family({**LLAMA, **_GRANITE}, full, own=dict.fromkeys(_GRANITE, number)),
    "cohere": Family(
        {**_COHERE, "rope_theta": 500_000.0},
        full,
        own={"logit_scale": number, "use_qk_norm": flag},
        normal=_layer_norm,
    ),
    "cohere2": Family(
        {**_COHERE, "sliding_window": 4096, "sliding_window_pattern": 4},
        alternating,
        own={"logit_scale": number},
        normal=_layer_norm,
    ),
}
