"""Families with a block of their own: what their tiny checkpoints add."""

#: Divisors of the 6 rotated pairs of a head of 16, within 32 tokens and beyond.
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5],
    "long_factor": [1.1, 1.5, 2.0, 2.5, 4.0, 6.0],
}
#: As Phi-4-mini: three quarters of each head are rotated.
PHI3_LONG = {
    "head_dim": 16,  # transformers counts the divisors by hidden_size / heads
    "rope_scaling": LONGROPE,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.11,
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
}
COHERE = {"layer_norm_eps": 0.01, "logit_scale": 0.3}

#: model_type -> changes to `tiny_checkpoint.BASE`.
FAMILIES: dict[str, dict[str, object]] = {
    "phi3": PHI3_LONG,
    "smollm3": {"no_rope_layer_interval": 2, "tie_word_embeddings": True},
    "olmo2": {"tie_word_embeddings": False},
    # mlx-lm has no head_dim for these two, and wants both flags said.
    "granite": {
        **GRANITE,
        "head_dim": 16,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
    },
    "cohere": {**COHERE, "head_dim": 16, "use_qk_norm": True},
    "cohere2": {
        **COHERE,
        "head_dim": 16,  # Cohere 2 has no head_dim of its own
        "sliding_window": 8,
        "sliding_window_pattern": 2,
    },
}

#: More cases with Hugging Face's logits: name -> (model_type, changes).
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "phi3_short": ("phi3", {"original_max_position_embeddings": 64}),
    "phi3_window": (
        "phi3",
        {
            "head_dim": 24,
            "rope_scaling": None,
            "sliding_window": 8,
            "tie_word_embeddings": False,
        },
    ),
    "longrope": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "longrope",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "short_factor": [1 + i / 20 for i in range(12)],
                "long_factor": [1 + i / 2 for i in range(12)],
            },
        },
    ),
    "smollm3_window": (
        "smollm3",
        {
            "no_rope_layers": [1, 0, 0],
            "use_sliding_window": True,
            "sliding_window": 8,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "olmo2_bias": (
        "olmo2",
        {"attention_bias": True, "tie_word_embeddings": True},
    ),
    "granite_bias": (
        "granite",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "residual_multiplier": 1.0,
            "head_dim": 24,
            "tie_word_embeddings": False,
        },
    ),
    "cohere_bias": (
        "cohere",
        {
            "use_qk_norm": False,
            "attention_bias": True,
            "head_dim": 24,
            "tie_word_embeddings": False,
        },
    ),
}

#: Other layouts of a case's tensors on disk: case -> name -> function of the weights.
LAYOUTS: dict[str, dict[str, object]] = {}

_EPS = {"rms_norm_eps": 1e-5}
_MANY = {"num_key_value_heads": 32, "head_dim": 32, "variant": "swiglu"}
#: What transformers assumes, with the sizes of test_config.py.
DEFAULTS = {
    "phi3": {**_MANY, **_EPS, "max_position_embeddings": 4096},
    "smollm3": {
        **_MANY,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "own": {"no_rope_layers": tuple((i + 1) % 4 > 0 for i in range(30))},
    },
    "olmo2": {**_MANY, **_EPS, "max_position_embeddings": 2048},
    "granite": {
        **_MANY,
        "max_position_embeddings": 2048,
        "own": dict.fromkeys(GRANITE, 1.0),
    },
    "cohere": {
        **_MANY,
        **_EPS,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "own": {"logit_scale": 0.0625, "use_qk_norm": False},
    },
    "cohere2": {
        **_MANY,
        **_EPS,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "sliding_window": 4096,
        "own": {"logit_scale": 0.0625},
    },
}
