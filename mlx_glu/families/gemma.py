"""Gemma 1 to 3, and what 3n and 4 have in common."""

from collections.abc import Callable, Mapping
from typing import Any

from ..fields import Config, size
from .family import Family, Windows, alternating, full
from .llama import LLAMA

GEMMA = {
    **{key: value for key, value in LLAMA.items() if key != "hidden_act"},
    "max_position_embeddings": 8192,
    "head_dim": 256,
    "num_key_value_heads": 16,
    "tie_word_embeddings": True,
}
_GEMMA2 = {
    **GEMMA,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
}
#: With sizes: the text part of a multimodal checkpoint leaves out even those.
_GEMMA3 = {
    **_GEMMA2,
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10000.0,
}


def _spelled_out(c: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """mlx-lm assumes another size of the window."""
    return {**_GEMMA3, **c}


#: Gemma was trained with tanh-GELU whatever its ``hidden_act`` says (transformers
#: PR 29402); another activation must be its ``hidden_activation``.
GEMMAS = {
    "gemma": Family(GEMMA, full, variant="geglu_tanh"),
    "gemma2": Family(
        {**_GEMMA2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        alternating,
        variant="geglu_tanh",
    ),
    "gemma3_text": Family(
        _GEMMA3,
        alternating,
        variant="geglu_tanh",
        qk_norm=True,
        export=_spelled_out,
    ),
}

#: Gemma 3n and 4: a small input for every layer, from an embedding of its own.
PER_LAYER = {
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
}


def shared_layers(windows: Windows) -> Callable[[Config, str], int]:
    """The number of last layers that use the keys and values of earlier ones."""

    def read(c: Config, key: str) -> int:
        layers, count = c["num_hidden_layers"], size(c, key, 0)
        kinds = windows(c, layers)
        if count and set(kinds[: max(layers - count, 0)]) != set(kinds):
            raise ValueError(
                f"[config] {key} is {count}: of {layers} layers, those before must "
                "have every layer type that the sharing ones have"
            )
        return count

    return read
