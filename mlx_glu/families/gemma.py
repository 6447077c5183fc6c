"""Gemma."""

from .family import Family, alternating, full
from .llama import LLAMA

_GEMMA = {
    **LLAMA,
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
GEMMAS = {
    "gemma": Family(_GEMMA, full, variant="geglu_tanh"),
    "gemma2": Family(
        {**_GEMMA2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        alternating,
        variant="geglu_tanh",
    ),
    "gemma3_text": Family(_GEMMA3, alternating, variant="geglu_tanh", qk_norm=True),
}
