"""Mixtral: the LLaMA block with a mixture of experts as its feed-forward.

Source: Jiang et al. 2024, arXiv:2401.04088.
"""

import mlx.core as mx
import mlx.nn as nn

from ..cache import KVCache
from ..checkpoints.arrangement import Arrangement, Tensors
from ..config import ModelConfig
from ..experts import SwitchGLU, mix, route
from ..layers import RMSNorm
from ..linear_layers import project
from . import llama
from .expert_tensors import arrange_experts
from .llama import Mask


class Mixture(nn.Module):
    """The weights of a token's experts sum to 1."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        K, E = config.hidden_size, config.own["num_local_experts"]
        self.top_k = config.own["num_experts_per_tok"]
        self.gate = nn.Linear(K, E, bias=False)
        self.switch_mlp = SwitchGLU(
            K, config.intermediate_size, E, variant=config.variant
        )

    def __call__(self, x: mx.array, *, norm: RMSNorm, residual: mx.array) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K], as `GatedMLP` does."""
        x = norm(x)
        indices, weights = route(project(self.gate, x), self.top_k, renormalise=True)
        return residual + mix(self.switch_mlp(x, indices), weights)


class Block(llama.Block):
    """LLaMA's, but for the name and the kind of its feed-forward."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        del self.mlp
        self.block_sparse_moe = Mixture(config)

    def __call__(self, x: mx.array, mask: Mask, cache: KVCache) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K]."""
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        norm = self.post_attention_layernorm
        return self.block_sparse_moe(x, norm=norm, residual=x)


class Decoder(llama.Decoder):
    """LLaMA's, of these blocks."""

    block_class = Block


class Model(llama.Model):
    """Mixtral."""

    decoder_class = Decoder

    @staticmethod
    def arrange(tensors: Tensors, config: ModelConfig) -> Arrangement:
        """Experts stand alone as w1, w3 and w2; transformers 5 packs them."""
        names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
        count = config.own["num_local_experts"]
        return arrange_experts(tensors, count, "block_sparse_moe", names)
