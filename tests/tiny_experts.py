"""Mixtures of experts: what their tiny checkpoints add to the base."""

import zlib
from functools import partial

import numpy as np

#: All sizes differ; some layers are dense, some windows shorter than the 40 tokens.
_QWEN = {
    "intermediate_size": 112,
    "moe_intermediate_size": 64,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "use_sliding_window": True,
    "sliding_window": 8,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "truncate": False,  # the ramp is from 2.2 to 5.6 of 12
    "original_max_position_embeddings": 64,
}

#: model_type -> changes to `tiny_checkpoint.BASE`.
FAMILIES: dict[str, dict[str, object]] = {
    "mixtral": {
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "tie_word_embeddings": False,
    },
    "qwen2_moe": {
        **_QWEN,
        "shared_expert_intermediate_size": 48,
        "max_window_layers": 2,
        "mlp_only_layers": [1],
        "qkv_bias": False,
        "tie_word_embeddings": False,
        "head_dim": 16,  # Qwen2-MoE has no head_dim of its own
    },
    "qwen3_moe": {
        **_QWEN,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "gpt_oss": {
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_theta": 150.0,
        "rope_scaling": _YARN,
        "tie_word_embeddings": False,
    },
}

#: More cases with Hugging Face's logits: name -> (model_type, changes).
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "mixtral_one": (
        "mixtral",
        {
            "num_experts_per_tok": 1,
            "sliding_window": None,
            "intermediate_size": 72,  # no multiple of 32
            "head_dim": 16,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_moe_norm": (
        "qwen2_moe",
        {
            "norm_topk_prob": True,
            "mlp_only_layers": [],
            "use_sliding_window": False,
            "qkv_bias": True,
        },
    ),
    "qwen3_moe_all": (
        "qwen3_moe",
        {
            "num_experts_per_tok": 7,
            "decoder_sparse_step": 1,
            "norm_topk_prob": False,
            "mlp_only_layers": [0],
            "use_sliding_window": False,
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
    ),
    "gpt_oss_clamped": (
        "gpt_oss",
        {
            "swiglu_limit": 0.75,
            "swiglu_alpha": 1.3,
            "num_experts_per_tok": 4,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
}

#: As CASES, with experts in mxfp4: Hugging Face's logits are of the unpacked ones.
PACKED: dict[str, tuple[str, dict[str, object]]] = {
    "gpt_oss_mxfp4": ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}})
}


def mxfp4(name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Random blocks [E, N, K / 32, 16] and scales [E, N, K / 32] of a [E, K, N]."""
    E, K, N = shape
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    blocks = rng.integers(0, 256, (E, N, K // 32, 16), np.uint8)
    return blocks, rng.integers(119, 125, (E, N, K // 32), np.uint8)


#: Random blocks with scales from 2**-125 to 2**125.
ALL = mxfp4("all", (1, 17 * 32, 3))[0], np.arange(2, 253, 5, np.uint8).reshape(1, 3, 17)

Weights = dict[str, np.ndarray]


def alone(weights: Weights, block: str, names: tuple[str, ...]) -> Weights:
    """Each expert alone, as transformers 4 writes gate, up and down."""
    found = {}
    for name, value in halved(weights, block).items():
        before, stack, own = name.partition("switch_mlp.")
        if not stack:
            found[name] = value
            continue
        kind = names[("gate", "up", "down").index(own.split("_")[0])]
        for e, expert in enumerate(value):
            found[f"{before}experts.{e}.{kind}.weight"] = expert
    return found


def halved(weights: Weights, block: str) -> Weights:
    """Stacks of gates, ups and downs, as mlx-lm writes them."""
    found = {}
    for name, value in weights.items():
        name = name.replace(".mlp.", f".{block}.") if "expert" in name else name
        name = name.replace(".mlp.gate.", f".{block}.gate.")
        before, packed, own = name.partition(".experts.")
        target = f"{before}.switch_mlp"
        if not packed:
            found[name] = value
        elif own == "down_proj":
            found[f"{target}.down_proj.weight"] = value
        else:
            gate, up = np.split(value, 2, axis=1)
            found |= {f"{target}.gate_proj.weight": gate}
            found |= {f"{target}.up_proj.weight": up}
    return found


def in_turn(weights: Weights) -> Weights:
    """gpt-oss as mlx-lm writes it."""
    found = {}
    for name, value in weights.items():
        before, experts, own = name.partition(".experts.")
        if not experts:
            found[name] = value
            continue
        kind, bias, _ = own.partition("_bias")
        value = value if bias else value.swapaxes(1, 2)
        suffix = "bias" if bias else "weight"
        target = f"{before}.experts."
        if kind == "down_proj":
            found[f"{target}down_proj.{suffix}"] = value
        else:
            found[f"{target}gate_proj.{suffix}"] = value[:, 0::2]
            found[f"{target}up_proj.{suffix}"] = value[:, 1::2]
    return found


def in_blocks(weights: Weights) -> Weights:
    """gpt-oss as OpenAI has published it; its experts are others."""
    found = {}
    for name, value in weights.items():
        if value.ndim == 3:
            found[f"{name}_blocks"], found[f"{name}_scales"] = mxfp4(name, value.shape)
        else:
            found[name] = value
    return found


_HF = ("gate_proj", "up_proj", "down_proj")
#: Other layouts of a case's tensors on disk: case -> name -> function of the weights.
LAYOUTS: dict[str, dict[str, object]] = {
    case: {
        "transformers 4": partial(alone, block=block, names=names),
        "mlx-lm": partial(halved, block=block),
    }
    for case, block, names in (
        ("mixtral", "block_sparse_moe", ("w1", "w3", "w2")),
        ("mixtral_one", "block_sparse_moe", ("w1", "w3", "w2")),
        ("qwen2_moe", "mlp", _HF),
        ("qwen2_moe_norm", "mlp", _HF),
        ("qwen3_moe", "mlp", _HF),
        ("qwen3_moe_all", "mlp", _HF),
    )
} | {case: {"mlx-lm": in_turn} for case in ("gpt_oss", "gpt_oss_clamped")}

_QWEN_KEYS = {
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
#: The configuration classes of transformers 5.23; see test_config.py.
DEFAULTS: dict[str, dict[str, object]] = {
    "mixtral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 32,
        "rms_norm_eps": 1e-5,
        "variant": "swiglu",
        "own": {"num_local_experts": 8, "num_experts_per_tok": 2},
    },
    "qwen2_moe": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 16,
        "head_dim": 32,
        "qkv_bias": True,
        "own": {
            **_QWEN_KEYS,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
    },
    "qwen3_moe": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "qk_norm": True,
        "own": {
            **_QWEN_KEYS,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
    },
    "gpt_oss": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "qkv_bias": True,
        "out_bias": True,
        "variant": "swiglu_clamped",
        "own": {
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
        },
    },
}
