"""Qwen2-MoE and Qwen3-MoE: some layers are mixtures of experts, the others dense.

Source: Qwen2 (arXiv:2407.10671) and Qwen3 (arXiv:2505.09388) technical reports.
"""

import mlx.core as mx
import mlx.nn as nn

from ..checkpoints.arrangement import Arrangement, Tensors
from ..config import ModelConfig
from ..experts import SwitchGLU, mix, route
from ..layers import GatedMLP, RMSNorm
from ..linear_layers import project
from . import llama
from .expert_tensors import ROUTER, arrange_experts


class Mixture(nn.Module):
    """A router and its experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        own, K = config.own, config.hidden_size
        self.top_k = own["num_experts_per_tok"]
        self.renormalise = own["norm_topk_prob"]
        E, N = own["num_experts"], own["moe_intermediate_size"]
        self.gate = nn.Linear(K, E, bias=False)
        self.switch_mlp = SwitchGLU(K, N, E, variant=config.variant)

    def __call__(self, x: mx.array, *, norm: RMSNorm, residual: mx.array) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K], as `GatedMLP` does."""
        return residual + self.mixed(norm(x))

    def mixed(self, x: mx.array) -> mx.array:
        """What the experts make of a normalised ``x``."""
        logits = project(self.gate, x)
        indices, weights = route(logits, self.top_k, renormalise=self.renormalise)
        return mix(self.switch_mlp(x, indices), weights)


class SharedMixture(Mixture):
    """Qwen2-MoE: one more expert, which all tokens share, has a gate of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        K, N = config.hidden_size, config.own["shared_expert_intermediate_size"]
        self.shared_expert = GatedMLP(K, N, variant=config.variant)
        self.shared_expert_gate = nn.Linear(K, 1, bias=False)

    def mixed(self, x: mx.array) -> mx.array:
        """What all experts make of a normalised ``x``."""
        share = mx.sigmoid(project(self.shared_expert_gate, x))
        return super().mixed(x) + share * self.shared_expert(x)


class Decoder(llama.Decoder):
    """Every ``decoder_sparse_step``-th layer is a mixture, but for some."""

    mixture_class = Mixture

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dense = config.own["mlp_only_layers"]
        for i, layer in enumerate(self.layers):
            if (i + 1) % config.own["decoder_sparse_step"] == 0 and i not in dense:
                layer.update_modules({"mlp": self.mixture_class(config)})


class SharedDecoder(Decoder):
    """Qwen2-MoE's."""

    mixture_class = SharedMixture


class Qwen2Model(llama.Model):
    """Qwen2-MoE, Qwen1.5-MoE."""

    decoder_class: type[Decoder] = SharedDecoder

    @staticmethod
    def arrange(tensors: Tensors, config: ModelConfig) -> Arrangement:
        """Experts stand alone, or transformers 5 has packed them."""
        return arrange_experts(tensors, config.own["num_experts"], "mlp")


class Qwen3Model(Qwen2Model):
    """Qwen3-MoE."""

    decoder_class = Decoder

    def quant_predicate(self, path: str) -> bool | dict[str, object]:
        """Routers have 8 bits, as in mlx-lm."""
        return ROUTER if path.endswith("mlp.gate") else True
