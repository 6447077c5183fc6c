"""The later Gemmas: what their tiny checkpoints add to the base."""

import numpy as np

FULL, SLIDING = "full_attention", "sliding_attention"
#: With inputs of layers, as the smallest models have them.
PER_LAYER = {"hidden_size_per_layer_input": 20, "vocab_size_per_layer_input": 131}

#: model_type -> changes to `tiny_checkpoint.BASE`. The dense FFN of Gemma 3n is
#: here, which the tests of kernels can run; its sparse one is a case below.
FAMILIES: dict[str, dict[str, object]] = {
    "gemma3n_text": {
        **PER_LAYER,
        "vocab_size_per_layer_input": 100,
        "intermediate_size": [128, 136, 144],
        "layer_types": [SLIDING, FULL, SLIDING],
        "sliding_window_pattern": 2,
        "num_kv_shared_layers": 1,
        "sliding_window": 8,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "altup_num_inputs": 4,
        "laurel_rank": 12,
        "final_logit_softcapping": 3.0,
    },
    "gemma4_text": {
        **PER_LAYER,
        "layer_types": [SLIDING, FULL, FULL],
        "sliding_window_pattern": 2,
        "sliding_window": 8,
        "global_head_dim": 32,
        "final_logit_softcapping": 3.0,
    },
    "gemma4_unified_text": {
        "layer_types": [SLIDING, FULL, FULL],
        "sliding_window_pattern": 2,
        "sliding_window": 8,
        "global_head_dim": 32,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 3,
    },
}
ROPE = {
    FULL: {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.5,
        "rope_theta": 1e5,
    },
    SLIDING: {"rope_type": "default", "rope_theta": 1e3},
}

#: More cases with Hugging Face's logits: name -> (model_type, changes).
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "gemma3_linear": (
        "gemma3_text",
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "gemma3n_sparse": (
        "gemma3n_text",
        {
            "num_hidden_layers": 7,
            "intermediate_size": 136,
            "layer_types": None,
            "sliding_window_pattern": 5,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.95, 0.0, 0.6, 0.0, 0.9, 0.8, 0.0],
            "altup_num_inputs": 3,
            "altup_active_idx": 1,
            "altup_correct_scale": False,
            "attention_bias": True,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "tie_word_embeddings": False,
        },
    ),
    "gemma4_shared": (
        "gemma4_text",
        {
            "num_hidden_layers": 6,
            "layer_types": [SLIDING, FULL] * 3,
            "vocab_size_per_layer_input": 140,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "attention_bias": True,
            "rope_parameters": ROPE,
            "tie_word_embeddings": False,
        },
    ),
    "gemma4_experts": (
        "gemma4_text",
        {
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 3,
            "enable_moe_block": True,
            "num_experts": 5,
            "top_k_experts": 2,
            "moe_intermediate_size": 56,
        },
    ),
}


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def _with_unused_keys(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As on the Hub: a layer that borrows keys has projections without a use."""
    found, layer = dict(weights), "model.layers.{}.self_attn.{}"
    for i in range(10):
        for name in ("k_proj.weight", "v_proj.weight", "k_norm.weight"):
            like = weights.get(layer.format(0, name))
            if layer.format(i, "q_proj.weight") in weights and like is not None:
                found.setdefault(layer.format(i, name), _noise(like.shape))
    return found


def _nested(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As mlx-lm has it, and transformers 5 writes it."""
    new = {k.replace("model.", "model.language_model.", 1): k for k in weights}
    return {name: weights[k] for name, k in new.items()}


def _split(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As mlx-lm has it: each projection of the experts is a stack."""
    found = dict(weights)
    for name in [k for k in weights if ".experts." in k]:
        stack, last = name.rsplit(".", 1)
        array = found.pop(name)
        halves = zip(("gate_proj", "up_proj"), np.split(array, 2, axis=1), strict=True)
        parts = {"down_proj": array} if last == "down_proj" else dict(halves)
        found |= {f"{stack}.switch_glu.{k}.weight": v for k, v in parts.items()}
    return found


#: Other layouts of a case's tensors on disk: case -> name -> function of the weights.
LAYOUTS: dict[str, dict[str, object]] = {
    "gemma3n_sparse": {"unused": _with_unused_keys},
    "gemma3n_text": {"nested": _nested, "hub": lambda w: _nested(_with_unused_keys(w))},
    "gemma4_shared": {"unused": _with_unused_keys},
    "gemma4_experts": {"mlx-lm": _split},
}

_LATER = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "variant": "geglu_tanh",
    "tie_word_embeddings": True,
    "qk_norm": True,
}
_OWN4 = {
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "attention_k_eq_v": False,
    "global_head_dim": 512,
    "num_global_key_value_heads": 4,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "enable_moe_block": False,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
}
#: The configuration classes of transformers 5.23, with the sizes of test_config.py.
DEFAULTS: dict[str, dict[str, object]] = {
    "gemma3n_text": {
        **_LATER,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "final_logit_softcapping": 30.0,
        "own": {
            "intermediate_size": (2048,) * 30,
            "activation_sparsity_pattern": (0.95,) * 10 + (0.0,) * 20,
            "num_kv_shared_layers": 15,
            "vocab_size_per_layer_input": 262144,
            "hidden_size_per_layer_input": 256,
            "altup_num_inputs": 4,
            "altup_active_idx": 0,
            "altup_correct_scale": True,
            "laurel_rank": 64,
        },
    },
    "gemma4_text": {
        **_LATER,
        "max_position_embeddings": 131072,
        "sliding_window": 512,
        "own": _OWN4,
    },
    "gemma4_unified_text": {
        **_LATER,
        "max_position_embeddings": 262144,
        "sliding_window": 1024,
        "own": {**_OWN4, "hidden_size_per_layer_input": 0},
    },
}
