"""OLMo 2: each half of a block is normalised on its way out alone.

Source: OLMo Team 2024, 2 OLMo 2 Furious, arXiv:2501.00656, section 3.
"""

import mlx.core as mx

from ..cache import KVCache
from ..config import ModelConfig
from ..layers import RMSNorm
from ..linear_layers import project
from . import llama
from .llama import Mask


class Attention(llama.Attention):
    """LLaMA's attention; queries and keys are normalised over all heads together."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        D, eps = config.head_dim, config.rms_norm_eps
        self.q_norm = RMSNorm(self.n_heads * D, eps)
        self.k_norm = RMSNorm(self.n_kv_heads * D, eps)

    def heads(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values of ``x``, each [B, L, H, D], not yet rotated."""
        B, L, _ = x.shape
        q = self.q_norm(project(self.q_proj, x)).reshape(B, L, self.n_heads, -1)
        k = self.k_norm(project(self.k_proj, x)).reshape(B, L, self.n_kv_heads, -1)
        v = project(self.v_proj, x).reshape(B, L, self.n_kv_heads, -1)
        return q, k, v


class Block(llama.Block):
    """Attention and gated FFN, each normalised before it joins the residual."""

    attention_class = Attention

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        del self.input_layernorm
        K, eps = config.hidden_size, config.rms_norm_eps
        self.post_feedforward_layernorm = RMSNorm(K, eps)

    def __call__(self, x: mx.array, mask: Mask, cache: KVCache) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K]."""
        x = x + self.post_attention_layernorm(self.self_attn(x, mask, cache))
        return x + self.post_feedforward_layernorm(self.mlp(x))


class Decoder(llama.Decoder):
    """LLaMA's decoder over OLMo 2's blocks."""

    block_class = Block


class Model(llama.Model):
    """OLMo 2."""

    decoder_class = Decoder
