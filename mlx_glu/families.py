"""What transformers assumes for each ``model_type`` where config.json is silent.

Source: the configuration classes of transformers 5.23.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .fields import Config

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Family:
    """One ``model_type``.

    Attributes:
        defaults: values of keys that config.json may omit.
        windows: the layer types, from a config and the number of layers.
        variant: the FFN's variant, where ``hidden_act`` does not decide it.
        qkv_bias: q, k and v have biases unless ``attention_bias`` denies it.
        out_bias: ``attention_bias`` includes the output projection.
        qk_norm: queries and keys are normalised per head.
    """

    defaults: Mapping[str, Any]
    windows: Callable[[Config, int], list[str]]
    variant: str | None = None
    qkv_bias: bool = False
    out_bias: bool = True
    qk_norm: bool = False


def _full(c: Config, layers: int) -> list[str]:
    return [FULL] * layers


def _sliding(c: Config, layers: int) -> list[str]:
    return [SLIDING] * layers


def _last_layers(c: Config, layers: int) -> list[str]:
    """Qwen: sliding from ``max_window_layers`` on, where it is switched on."""
    if not c.get("use_sliding_window"):
        return _full(c, layers)
    first = c["max_window_layers"]
    kinds = [SLIDING if i >= first else FULL for i in range(layers)]
    return list(c.get("layer_types", kinds))


def _alternating(c: Config, layers: int) -> list[str]:
    """Gemma: every ``sliding_window_pattern``-th layer is full."""
    pattern = c["sliding_window_pattern"]
    kinds = [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
    return list(c.get("layer_types", kinds))


_LLAMA = {
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}
_QWEN = {
    **_LLAMA,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA = {
    **_LLAMA,
    "max_position_embeddings": 8192,
    "head_dim": 256,
    "num_key_value_heads": 16,
    "tie_word_embeddings": True,
}
_GEMMA2 = {
    **_GEMMA,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
}
_GEMMA3 = {
    **_GEMMA2,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10000.0,
}

#: Gemma was trained with tanh-GELU whatever its ``hidden_act`` says (transformers
#: PR 29402); another activation must be its ``hidden_activation``.
FAMILIES: dict[str, Family] = {
    "llama": Family(_LLAMA, _full),
    "mistral": Family(
        {
            **_LLAMA,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        _sliding,
    ),
    "qwen2": Family(_QWEN, _last_layers, qkv_bias=True, out_bias=False),
    "qwen3": Family({**_QWEN, "head_dim": 128}, _last_layers, qk_norm=True),
    "gemma": Family(_GEMMA, _full, variant="geglu_tanh"),
    "gemma2": Family(
        {**_GEMMA2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _alternating,
        variant="geglu_tanh",
    ),
    "gemma3_text": Family(_GEMMA3, _alternating, variant="geglu_tanh", qk_norm=True),
}


def family_of(config: Config) -> Family:
    """The family that ``model_type`` names.

    Raises:
        ValueError: it is not supported; the message lists what is.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"[config] model_type {name!r} is not supported; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]
