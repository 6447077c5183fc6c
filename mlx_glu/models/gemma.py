"""Gemma 1, 2 and 3 (text): what they do differently from LLaMA.

Norms multiply by ``1 + weight``, embeddings by sqrt(hidden_size); from Gemma 2
on, each half of a block is also normalised on its way out.
"""

import math

import mlx.core as mx

from .. import layers
from ..cache import KVCache
from ..config import ModelConfig
from . import llama
from .llama import Mask


class RMSNorm(layers.RMSNorm):
    """Root-mean-square normalisation with a weight stored as ``w - 1``."""

    offset = 1

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__(dims, eps)
        self.weight = mx.zeros((dims,))


class Attention(llama.Attention):
    """LLaMA's attention with an optional soft cap on the scores (Gemma 2)."""

    norm_class = RMSNorm

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        self.softcap = config.attn_logit_softcapping

    def attend(self, q: mx.array, k: mx.array, v: mx.array, mask: Mask) -> mx.array:
        """Softmax attention of ``q`` [B, H, L, D] over ``k`` and ``v``."""
        if self.softcap is None:
            return super().attend(q, k, v, mask)
        B, H, L, D = q.shape
        S = k.shape[2]
        q = (q * self.scale).reshape(B, self.n_kv_heads, -1, L, D)
        scores = q @ k[:, :, None].swapaxes(-1, -2)
        scores = _softcap(scores, self.softcap)
        if isinstance(mask, str):
            mask = mx.arange(S) <= mx.arange(S - L, S)[:, None]
        if mask is not None:
            scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
        weights = mx.softmax(scores, axis=-1, precise=True)
        return (weights @ v[:, :, None]).reshape(B, H, L, D)


class Block(llama.Block):
    """Gemma 1: the LLaMA block with Gemma's norm."""

    attention_class = Attention
    norm_class = RMSNorm


class SandwichBlock(Block):
    """Gemma 2 and 3: a norm before and after attention, before and after the FFN."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        K, eps = config.hidden_size, config.rms_norm_eps
        self.pre_feedforward_layernorm = RMSNorm(K, eps)
        self.post_feedforward_layernorm = RMSNorm(K, eps)

    def __call__(self, x: mx.array, mask: Mask, cache: KVCache) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K]."""
        y = self.self_attn(self.input_layernorm(x), mask, cache)
        x = _added(x, self.post_attention_layernorm(y))
        y = self.mlp(x, norm=self.pre_feedforward_layernorm)
        return _added(x, self.post_feedforward_layernorm(y))


class Decoder(llama.Decoder):
    """LLaMA's decoder with scaled embeddings."""

    block_class = Block

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embed_scale = math.sqrt(config.hidden_size)

    def embed(self, inputs: mx.array) -> mx.array:
        """Token ids [B, L] to [B, L, K], scaled in the embeddings' dtype."""
        x = super().embed(inputs)
        return x * mx.array(self.embed_scale, x.dtype)


class SandwichDecoder(Decoder):
    """The decoder of Gemma 2 and 3."""

    block_class = SandwichBlock


class Model(llama.Model):
    """Gemma 1."""

    decoder_class = Decoder

    def finish(self, logits: mx.array) -> mx.array:
        """Soft-cap them where the model says so."""
        cap = self.config.final_logit_softcapping
        return logits if cap is None else _softcap(logits, cap)


class SandwichModel(Model):
    """Gemma 2 and 3."""

    decoder_class = SandwichDecoder


def _added(x: mx.array, y: mx.array) -> mx.array:
    """``x + y``, which float16 would not hold in Gemma 3: it ends at its largest."""
    if x.dtype != mx.float16:
        return x + y
    most = mx.finfo(mx.float16).max
    return mx.clip(x.astype(mx.float32) + y, -most, most).astype(mx.float16)


def _softcap(x: mx.array, cap: float) -> mx.array:
    """Squash to (-cap, cap) (Gemma 2 report, arXiv:2408.00118, section 2)."""
    return mx.tanh(x / cap) * cap
