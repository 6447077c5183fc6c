"""Model families: which class builds a ``model_type``."""

from ..config import ModelConfig
from . import (
    cohere,
    gemma,
    gemma3n,
    gemma4,
    gpt_oss,
    granite,
    llama,
    mixtral,
    olmo2,
    phi3,
    qwen_moe,
    smollm3,
)

MODEL_TYPES: dict[str, type[llama.Model]] = {
    "llama": llama.Model,
    "mistral": llama.Model,
    "qwen2": llama.Model,
    "qwen3": llama.Model,
    "phi3": phi3.Model,
    "smollm3": smollm3.Model,
    "olmo2": olmo2.Model,
    "granite": granite.Model,
    "cohere": cohere.Model,
    "cohere2": cohere.WindowedModel,
    "mixtral": mixtral.Model,
    "qwen2_moe": qwen_moe.Qwen2Model,
    "qwen3_moe": qwen_moe.Qwen3Model,
    "gpt_oss": gpt_oss.Model,
    "gemma": gemma.Model,
    "gemma2": gemma.SandwichModel,
    "gemma3_text": gemma.SandwichModel,
    "gemma3n_text": gemma3n.Model,
    "gemma4_text": gemma4.Model,
    "gemma4_unified_text": gemma4.Model,
}


def build(config: ModelConfig) -> llama.Model:
    """The model of ``config``, with weights that are not computed yet."""
    return MODEL_TYPES[config.model_type](config)
