"""What transformers assumes for each ``model_type`` where config.json is silent.

Source: the configuration classes of transformers 5.23.
"""

from typing import Any

from ..fields import Config, block
from .family import FULL, SLIDING, Family
from .gemma import GEMMAS
from .llama import LLAMAS

__all__ = [
    "FAMILIES",
    "FULL",
    "MULTIMODAL",
    "SLIDING",
    "Family",
    "family_of",
    "text_part",
]

FAMILIES: dict[str, Family] = {**LLAMAS, **GEMMAS}

#: model_type of a multimodal checkpoint -> that of its text part.
MULTIMODAL = {"gemma3": "gemma3_text"}


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


def text_part(config: Config) -> dict[str, Any]:
    """The config of the text model: ``text_config`` of a multimodal checkpoint.

    Token ids, dtype and quantization stand beside it.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MULTIMODAL:
        return dict(config)
    beside = ("_token_id", "dtype", "tie_word_embeddings", "quantization")
    kept = {k: v for k, v in config.items() if any(part in k for part in beside)}
    return {**kept, **block(config, "text_config"), "model_type": MULTIMODAL[kind]}
