"""Model families: which class builds a ``model_type``."""

from ..config import ModelConfig
from . import gemma, llama

MODEL_TYPES: dict[str, type[llama.Model]] = {
    "llama": llama.Model,
    "mistral": llama.Model,
    "qwen2": llama.Model,
    "qwen3": llama.Model,
    "gemma": gemma.Model,
    "gemma2": gemma.SandwichModel,
    "gemma3_text": gemma.SandwichModel,
}


def build(config: ModelConfig) -> llama.Model:
    """The model of ``config``, with weights that are not computed yet."""
    return MODEL_TYPES[config.model_type](config)
