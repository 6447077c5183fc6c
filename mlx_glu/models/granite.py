"""Granite 3: LLaMA with a factor on embeddings, scores, residuals and logits.

Source: IBM 2024, Granite 3.0 Language Models; muP, arXiv:2203.03466.
"""

import mlx.core as mx

from ..cache import KVCache
from ..config import ModelConfig
from ..layers import scaled
from . import llama
from .llama import Mask


class Attention(llama.Attention):
    """LLaMA's attention with a factor of its own on the scores."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        self.scale = config.own["attention_multiplier"]


class Block(llama.Block):
    """The LLaMA block; what is added to the residual is scaled."""

    attention_class = Attention

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        self.factor = config.own["residual_multiplier"]

    def __call__(self, x: mx.array, mask: Mask, cache: KVCache) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K]."""
        y = self.self_attn(self.input_layernorm(x), mask, cache)
        x = x + scaled(y, self.factor)
        if self.factor == 1:
            return self.mlp(x, norm=self.post_attention_layernorm, residual=x)
        y = self.mlp(x, norm=self.post_attention_layernorm)
        return x + scaled(y, self.factor)


class Decoder(llama.Decoder):
    """LLaMA's decoder with scaled embeddings."""

    block_class = Block

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.factor = config.own["embedding_multiplier"]

    def embed(self, inputs: mx.array) -> mx.array:
        """Token ids [B, L] to [B, L, K]."""
        return scaled(super().embed(inputs), self.factor)


class Model(llama.Model):
    """Granite 3."""

    decoder_class = Decoder

    def finish(self, logits: mx.array) -> mx.array:
        """Divide them as the model says."""
        return scaled(logits, 1 / self.config.own["logits_scaling"])

    def quant_predicate(self, path: str) -> bool | dict[str, object]:
        """8 bits for layers whose small weights a format of few bits would lose."""
        if path == "lm_head" or path.endswith(("self_attn.o_proj", "mlp.down_proj")):
            return {"group_size": 64, "bits": 8, "mode": "affine"}
        return True
