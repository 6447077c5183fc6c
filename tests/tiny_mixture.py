"""A DeepSeek-V3 mixture and router logits for `scripts/hf_moe_reference.py`, no MLX."""

import numpy as np
from tiny_checkpoint import tensor

MIXTURE = {
    "hidden_size": 20,
    "moe_intermediate_size": 12,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.7,
}
SHAPES = {
    "experts.gate_up_proj": (6, 24, 20),
    "experts.down_proj": (6, 20, 12),
    "gate.weight": (6, 20),
    "gate.e_score_correction_bias": (6,),
    "shared_experts.gate_proj.weight": (24, 20),
    "shared_experts.up_proj.weight": (24, 20),
    "shared_experts.down_proj.weight": (20, 24),
    "x": (30, 20),
    "logits": (3, 30, 6),
}
#: The top_k of the load-balancing loss.
CHOSEN = 2


def arrays() -> dict[str, np.ndarray]:
    """Float32 weights, ``x`` [T, K], ``logits`` [layers, T, E] and a ``mask`` [T]."""
    found = {name: tensor(name, shape) for name, shape in SHAPES.items()}
    for name in ("x", "gate.e_score_correction_bias"):
        found[name] *= 4
    found["logits"] += np.linspace(-1, 1, 6, dtype=np.float32)
    return found | {"mask": (np.arange(30) % 7 > 1).astype(np.float32)}
