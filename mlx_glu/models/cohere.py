"""Cohere's Command R and Command R7B: attention and FFN side by side.

Both read one LayerNorm and are added to the residual together, as in PaLM (Chowdhery
et al. 2022, arXiv:2204.02311, section 2); pairs of neighbours are rotated.
"""

import mlx.core as mx
import mlx.nn as nn

from ..cache import KVCache
from ..config import ModelConfig
from ..families import FULL
from ..layers import scaled
from ..rope import NoRope, Rope
from . import llama
from .llama import Mask


class LayerNorm(nn.Module):
    """Mean and variance normalised, without a bias, in the dtype of the input.

    ``shape`` [D], or [H, D] with a weight for each head of an input [..., H, D].
    """

    def __init__(self, shape: int | tuple[int, int], eps: float) -> None:
        super().__init__()
        self.weight = mx.ones(shape)
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """Normalise the last axis of ``x``."""
        if self.weight.ndim == 1:
            return mx.fast.layer_norm(x, self.weight, None, self.eps).astype(x.dtype)
        y = mx.fast.layer_norm(x.astype(mx.float32), None, None, self.eps)
        return (y * self.weight).astype(x.dtype)


class Attention(llama.Attention):
    """LLaMA's attention; queries and keys may have a norm with weights of each head."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        D, eps = config.head_dim, config.rms_norm_eps
        self.rope = Rope(D, config.rope[kind], traditional=True)
        if config.own.get("use_qk_norm"):
            self.q_norm = LayerNorm((self.n_heads, D), eps)
            self.k_norm = LayerNorm((self.n_kv_heads, D), eps)


class WindowedAttention(Attention):
    """Command R7B: layers that see everything know no positions."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        if kind == FULL:
            self.rope = NoRope()


class Block(llama.Block):
    """The parallel block."""

    attention_class = Attention
    norm_class = LayerNorm

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        del self.post_attention_layernorm

    def __call__(self, x: mx.array, mask: Mask, cache: KVCache) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K]."""
        y = self.input_layernorm(x)
        return self.mlp(y, residual=x + self.self_attn(y, mask, cache))


class WindowedBlock(Block):
    """The parallel block of Command R7B."""

    attention_class = WindowedAttention


class Decoder(llama.Decoder):
    """LLaMA's decoder over parallel blocks."""

    block_class = Block


class WindowedDecoder(Decoder):
    """The decoder of Command R7B."""

    block_class = WindowedBlock


class Model(llama.Model):
    """Command R."""

    decoder_class = Decoder

    def finish(self, logits: mx.array) -> mx.array:
        """Scale them as the model says."""
        return scaled(logits, self.config.own["logit_scale"])


class WindowedModel(Model):
    """Command R7B."""

    decoder_class = WindowedDecoder
