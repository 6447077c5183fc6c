"""FFN sizes of known models; read by ``--help``, so nothing heavy is imported."""

from __future__ import annotations

import re
from typing import NamedTuple


class Shape(NamedTuple):
    """An FFN.

    Attributes:
        name: of the model, or "KxN".
        K: hidden_size.
        N: intermediate_size.
        variant: of the gated linear unit.
        source: the Hugging Face repository whose config.json says so; "" for a
            user's own.
    """

    name: str
    K: int
    N: int
    variant: str = "swiglu"
    source: str = ""


_ROWS = (
    Shape("smollm2-135m", 576, 1536, "swiglu", "HuggingFaceTB/SmolLM2-135M"),
    Shape("smollm2-360m", 960, 2560, "swiglu", "HuggingFaceTB/SmolLM2-360M"),
    Shape("smollm2-1.7b", 2048, 8192, "swiglu", "HuggingFaceTB/SmolLM2-1.7B"),
    Shape("qwen2.5-0.5b", 896, 4864, "swiglu", "Qwen/Qwen2.5-0.5B"),
    Shape("qwen2.5-1.5b", 1536, 8960, "swiglu", "Qwen/Qwen2.5-1.5B"),
    Shape("qwen2.5-3b", 2048, 11008, "swiglu", "Qwen/Qwen2.5-3B"),
    Shape("qwen2.5-7b", 3584, 18944, "swiglu", "Qwen/Qwen2.5-7B"),
    Shape("qwen3-0.6b", 1024, 3072, "swiglu", "Qwen/Qwen3-0.6B"),
    Shape("qwen3-1.7b", 2048, 6144, "swiglu", "Qwen/Qwen3-1.7B"),
    Shape("qwen3-4b", 2560, 9728, "swiglu", "Qwen/Qwen3-4B"),
    Shape("qwen3-8b", 4096, 12288, "swiglu", "Qwen/Qwen3-8B"),
    Shape("tinyllama-1.1b", 2048, 5632, "swiglu", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    Shape("llama-3.2-1b", 2048, 8192, "swiglu", "meta-llama/Llama-3.2-1B"),
    Shape("llama-3.2-3b", 3072, 8192, "swiglu", "meta-llama/Llama-3.2-3B"),
    Shape("llama-2-7b", 4096, 11008, "swiglu", "meta-llama/Llama-2-7b-hf"),
    Shape("llama-3-8b", 4096, 14336, "swiglu", "meta-llama/Meta-Llama-3-8B"),
    Shape("mistral-7b", 4096, 14336, "swiglu", "mistralai/Mistral-7B-v0.3"),
    Shape("gemma-2b", 2048, 16384, "geglu_tanh", "google/gemma-2b"),
    Shape("gemma-2-2b", 2304, 9216, "geglu_tanh", "google/gemma-2-2b"),
    Shape("gemma-2-9b", 3584, 14336, "geglu_tanh", "google/gemma-2-9b"),
    Shape("gemma-3-1b", 1152, 6912, "geglu_tanh", "google/gemma-3-1b-pt"),
    Shape("gemma-3-4b", 2560, 10240, "geglu_tanh", "google/gemma-3-4b-pt"),
)

#: By name of the model.
SHAPES: dict[str, Shape] = {row.name: row for row in _ROWS}

#: Activations that mlx-lm runs, which the stock arm of a size of one's own can have.
VARIANTS = ("swiglu", "geglu", "geglu_tanh", "reglu")


def parse(text: str) -> Shape:
    """A shape by the name of a model, or from "KxN" or "KxN:variant".

    Raises:
        ValueError: it is neither; the message lists the names.
    """
    known = SHAPES.get(text.lower())
    if known:
        return known
    own = re.fullmatch(r"(\d+)x(\d+)(?::(\w+))?", text)
    if not own:
        raise ValueError(
            f"--shape is a model or sizes KxN but got {text!r}; choose from "
            f"{', '.join(SHAPES)}, or give for instance 2048x8192:geglu_tanh"
        )
    K, N, variant = int(own[1]), int(own[2]), own[3] or "swiglu"
    if variant not in VARIANTS:
        raise ValueError(
            f"--shape has a variant that mlx-lm runs, {', '.join(VARIANTS)}, but got "
            f"{variant!r}; leave it out for swiglu"
        )
    if min(K, N) < 8:
        raise ValueError(f"--shape has K and N of at least 8 but got {text!r}")
    return Shape(f"{K}x{N}", K, N, variant)
