"""What transformers assumes for each ``model_type`` where config.json is silent.

Source: the configuration classes of transformers 5.23.
"""

from typing import Any

from ..fields import Config, block
from .dense import DENSE
from .experts import EXPERTS
from .family import BESIDE, FULL, SLIDING, Family
from .gemma import GEMMAS
from .gemma3n import GEMMA3N
from .gemma4 import GEMMA4
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

FAMILIES: dict[str, Family] = {
    **LLAMAS,
    **DENSE,
    **EXPERTS,
    **GEMMAS,
    **GEMMA3N,
    **GEMMA4,
}

#: model_type of a multimodal checkpoint -> that of its text part.
MULTIMODAL = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
}


def family_of(config: Config) -> Family:
    """The family that ``model_type`` names.

    Raises:
        ValueError: it is not supported; the message lists what is.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"[config] model_type {str(name)[:100]!r} is not supported; "
            f"supported: {', '.join([*FAMILIES, *MULTIMODAL])}"
        )
    return FAMILIES[name]


def text_part(config: Config) -> dict[str, Any]:
    """The config of the text model: ``text_config`` of a multimodal checkpoint.

    What stands beside it for the whole checkpoint, such as token ids, wins.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MULTIMODAL:
        return dict(config)
    block(config, "text_config")  # refuses what is none
    beside = {k: config[k] for k in BESIDE if config.get(k) is not None}
    text = config.get("text_config") or {}
    return {**text, **beside, "model_type": MULTIMODAL[kind]}
