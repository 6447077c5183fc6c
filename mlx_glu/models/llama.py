"""The LLaMA block: LLaMA 1-3, SmolLM2, Mistral, Qwen2, Qwen3.

One block serves them all; what differs is data in `ModelConfig` (biases,
normalised queries and keys, windows, rotary settings). Shapes: B sequences,
L tokens, H heads of size D.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import KVCache, RotatingKVCache
from ..checkpoints.arrangement import Arrangement, Tensors
from ..config import ModelConfig
from ..families import SLIDING
from ..layers import GatedMLP, RMSNorm
from ..linear_layers import project
from ..rope import NoRope, Rope

Mask = mx.array | str | None
Cache = list[KVCache]
#: From size and epsilon to the module; most are RMSNorm.
Norm = Callable[[int, float], Any]


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    norm_class: Norm = RMSNorm

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        K, D = config.hidden_size, config.head_dim
        self.n_heads = config.num_attention_heads
        self.n_kv_heads = config.num_key_value_heads
        self.scale = config.query_scale
        self.q_proj = nn.Linear(K, self.n_heads * D, bias=config.qkv_bias)
        self.k_proj = nn.Linear(K, self.n_kv_heads * D, bias=config.qkv_bias)
        self.v_proj = nn.Linear(K, self.n_kv_heads * D, bias=config.qkv_bias)
        self.o_proj = nn.Linear(self.n_heads * D, K, bias=config.out_bias)
        if config.qk_norm:
            self.q_norm = self.norm_class(D, config.rms_norm_eps)
            self.k_norm = self.norm_class(D, config.rms_norm_eps)
        self.rope: Rope | NoRope = Rope(D, config.rope[kind])

    def __call__(self, x: mx.array, mask: Mask, cache: KVCache) -> mx.array:
        """Attend from ``x`` [B, L, K] to itself and to what ``cache`` holds."""
        B, L, _ = x.shape
        q, k, v = (heads.swapaxes(1, 2) for heads in self.heads(x))
        q = self.rope(q, cache.offset, cache.expected)
        k = self.rope(k, cache.offset, cache.expected)
        k, v = cache.update(k, v)
        y = self.attend(q, k, v, mask)
        return project(self.o_proj, y.swapaxes(1, 2).reshape(B, L, -1))

    def heads(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values of ``x``, each [B, L, H, D], not yet rotated."""
        B, L, _ = x.shape
        q = project(self.q_proj, x).reshape(B, L, self.n_heads, -1)
        k = project(self.k_proj, x).reshape(B, L, self.n_kv_heads, -1)
        v = project(self.v_proj, x).reshape(B, L, self.n_kv_heads, -1)
        if "q_norm" in self:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def attend(self, q: mx.array, k: mx.array, v: mx.array, mask: Mask) -> mx.array:
        """Softmax attention of ``q`` [B, H, L, D] over ``k`` and ``v``."""
        return mx.fast.scaled_dot_product_attention(
            q, k, v, scale=self.scale, mask=mask
        )


class Block(nn.Module):
    """Pre-norm attention and pre-norm gated FFN, each on a residual."""

    attention_class = Attention
    norm_class: Norm = RMSNorm

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        K, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = self.attention_class(config, kind)
        self.mlp = GatedMLP(
            K, config.intermediate_size, variant=config.variant, bias=config.mlp_bias
        )
        self.input_layernorm = self.norm_class(K, eps)
        self.post_attention_layernorm = self.norm_class(K, eps)

    def __call__(self, x: mx.array, mask: Mask, cache: KVCache) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K]."""
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        return self.mlp(x, norm=self.post_attention_layernorm, residual=x)


class Decoder(nn.Module):
    """Embedding, blocks and the last normalisation: tokens to hidden states."""

    block_class = Block

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer_types = config.layer_types
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [self.block_class(config, kind) for kind in config.layer_types]
        norm_class = self.block_class.norm_class
        self.norm = norm_class(config.hidden_size, config.rms_norm_eps)

    def embed(self, inputs: mx.array) -> mx.array:
        """Token ids [B, L] to [B, L, K]."""
        x: mx.array = self.embed_tokens(inputs)
        if getattr(self.embed_tokens, "mode", "affine") != "affine":
            # No scale has a float dtype here, and MLX unpacks to bfloat16.
            x = x.astype(self.norm.weight.dtype)
        return x

    def __call__(self, inputs: mx.array, cache: Cache) -> mx.array:
        """Token ids [B, L] to hidden states [B, L, K]."""
        x = self.embed(inputs)
        masks: dict[str, Mask] = {}
        for kind, c in zip(self.layer_types, cache, strict=True):
            if kind not in masks:
                masks[kind] = c.mask(inputs.shape[1])
        for layer, kind, c in zip(self.layers, self.layer_types, cache, strict=True):
            x = layer(x, masks[kind], c)
        y: mx.array = self.norm(x)
        return y


class Model(nn.Module):
    """A causal language model.

    Args:
        config: sizes and settings; ``tie_word_embeddings`` must be decided.
    """

    decoder_class = Decoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = self.decoder_class(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(
        self, inputs: mx.array, cache: Cache | None = None, *, last_only: bool = False
    ) -> mx.array:
        """Next-token logits.

        Args:
            inputs: [B, L] token ids.
            cache: what `make_cache` returned, updated in place.
            last_only: compute the logits of the last position alone.

        Returns:
            [B, L, vocab_size], or [B, 1, vocab_size] with ``last_only``.
        """
        x = self.model(inputs, self.make_cache() if cache is None else cache)
        if last_only:
            x = x[:, -1:]
        tied = self.config.tie_word_embeddings
        return self.finish(
            project(self.model.embed_tokens if tied else self.lm_head, x)
        )

    def finish(self, logits: mx.array) -> mx.array:
        """What the family does to logits [B, L, vocab_size]."""
        return logits

    def make_cache(self) -> Cache:
        """One empty cache a layer: rotating where the layer has a window."""
        window = self.config.sliding_window
        return [
            RotatingKVCache(window) if kind == SLIDING and window else KVCache()
            for kind in self.config.layer_types
        ]

    @staticmethod
    def arrange(tensors: Tensors, config: ModelConfig) -> Arrangement:
        """How a checkpoint's tensors become this model's parameters."""
        return Arrangement()

    def quant_predicate(self, path: str) -> bool | dict[str, object]:
        """May the module at ``path`` be packed? A dict names the format it wants."""
        return True
