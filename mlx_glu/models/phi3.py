"""Phi-3 and Phi-4-mini: LLaMA's block over two packed projections.

Queries, keys and values are one layer, gate and up another. A part of each head may
be left unrotated, and longrope rotates long sequences by other frequencies.
"""

import mlx.core as mx
import mlx.nn as nn

from ..config import ModelConfig
from ..layers import GatedMLP
from ..linear_layers import project
from ..rope import Rope
from . import llama


class Attention(llama.Attention):
    """LLaMA's attention; the rows of queries, keys and values stand in one layer."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        nn.Module.__init__(self)
        K, D = config.hidden_size, config.head_dim
        self.n_heads = config.num_attention_heads
        self.n_kv_heads = config.num_key_value_heads
        self.scale = config.query_scale
        rows = (self.n_heads + 2 * self.n_kv_heads) * D
        self.qkv_proj = nn.Linear(K, rows, bias=config.qkv_bias)
        self.o_proj = nn.Linear(self.n_heads * D, K, bias=config.out_bias)
        self.rope = Rope(D, config.rope[kind])

    def heads(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values of ``x``, each [B, L, H, D], not yet rotated."""
        B, L, _ = x.shape
        H, KV = self.n_heads, self.n_kv_heads
        qkv = project(self.qkv_proj, x).reshape(B, L, H + 2 * KV, -1)
        q, k, v = mx.split(qkv, [H, H + KV], axis=2)
        return q, k, v


class Block(llama.Block):
    """The LLaMA block with packed projections."""

    attention_class = Attention

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        self.mlp = GatedMLP(
            config.hidden_size,
            config.intermediate_size,
            variant=config.variant,
            bias=config.mlp_bias,
            packed=True,
        )


class Decoder(llama.Decoder):
    """LLaMA's decoder over Phi-3's blocks."""

    block_class = Block


class Model(llama.Model):
    """Phi-3 and Phi-4-mini."""

    decoder_class = Decoder
