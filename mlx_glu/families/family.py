"""What a family is: what config.json may leave out, and what it alone may say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..fields import Config

FULL, SLIDING = "full_attention", "sliding_attention"

#: What stands beside ``text_config``; it is the text model's as well.
BESIDE = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "tie_word_embeddings",
    "quantization",
    "quantization_config",
)

#: From a config and the number of layers to the type of each.
Windows = Callable[[Config, int], list[str]]


def _as_it_is(c: Config) -> Config:
    return c


def _common(c: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return c


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
        own: keys that this family alone reads, each with its reader from
            ``fields``; the values are ``ModelConfig.own``.
        normal: config.json with other spellings turned into the common ones.
        export: what is written as config.json, from the common keys and ``own``.
        quant_methods: whose packed weights the model's ``arrange`` reads.
    """

    defaults: Mapping[str, Any]
    windows: Windows
    variant: str | None = None
    qkv_bias: bool = False
    out_bias: bool = True
    qk_norm: bool = False
    own: Mapping[str, Callable[[Config, str], Any]] = field(default_factory=dict)
    normal: Callable[[Config], Config] = _as_it_is
    export: Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]] = _common
    quant_methods: tuple[str, ...] = ()


def full(c: Config, layers: int) -> list[str]:
    """Every layer sees all."""
    return [FULL] * layers


def sliding(c: Config, layers: int) -> list[str]:
    """Every layer has the window."""
    return [SLIDING] * layers


def last_layers(c: Config, layers: int) -> list[str]:
    """Qwen: sliding from ``max_window_layers`` on, where it is switched on."""
    if not c.get("use_sliding_window"):
        return full(c, layers)
    first = c["max_window_layers"]
    kinds = [SLIDING if i >= first else FULL for i in range(layers)]
    return list(c.get("layer_types", kinds))


def alternating(c: Config, layers: int) -> list[str]:
    """Gemma: every ``sliding_window_pattern``-th layer is full."""
    pattern = c["sliding_window_pattern"]
    kinds = [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
    return list(c.get("layer_types", kinds))
