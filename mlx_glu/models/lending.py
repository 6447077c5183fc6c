"""What Gemma 3n and 4 have in common.

The last layers use the keys and values of earlier ones, and every layer gets an
input of its own from the token. P is the size of that input.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .. import ops, variants
from ..cache import KVCache
from ..config import ModelConfig
from ..layers import GatedMLP, RMSNorm
from ..linear_layers import project
from ..rope import Rope
from ..variants import Variant
from . import gemma, llama
from .llama import Cache, Mask

KV = tuple[mx.array, mx.array]


class Source(NamedTuple):
    """Where a layer's attention looks.

    Attributes:
        mask: of the queries against the keys.
        offset: position of the first query.
        expected: as in `KVCache`.
        cache: takes the layer's own keys and values; None where it borrows.
        lent: those of an earlier layer.
    """

    mask: Mask
    offset: int
    expected: int
    cache: KVCache | None
    lent: KV | None


class Attention(nn.Module):
    """Attention with normalised queries, keys and values, and scores as they are.

    Args:
        config: sizes; head_dim and num_key_value_heads are those of this layer.
        kind: the layer's type, which decides its rotation.
        has_keys: it can have keys of its own.
        has_values: and values that are not its keys.
    """

    def __init__(
        self, config: ModelConfig, kind: str, *, has_keys: bool, has_values: bool
    ) -> None:
        super().__init__()
        K, D, eps = config.hidden_size, config.head_dim, config.rms_norm_eps
        N, bias = config.num_key_value_heads * D, config.qkv_bias
        heads = config.num_attention_heads * D
        self.head_dim, self.eps = D, eps
        self.q_proj = nn.Linear(K, heads, bias=bias)
        self.q_norm = RMSNorm(D, eps)
        if has_keys:
            self.k_proj = nn.Linear(K, N, bias=bias)
            self.k_norm = RMSNorm(D, eps)
            if has_values:
                self.v_proj = nn.Linear(K, N, bias=bias)
        self.o_proj = nn.Linear(heads, K, bias=config.out_bias)
        self.rope = Rope(D, config.rope[kind])

    def __call__(self, x: mx.array, source: Source) -> tuple[mx.array, KV]:
        """Attend from ``x`` [B, L, K]; also return the keys and values it used."""
        B, L, _ = x.shape
        at = source.offset, source.expected
        q = self.q_norm(self._heads(self.q_proj, x)).swapaxes(1, 2)
        if source.lent is None:
            assert source.cache is not None
            k = self._heads(self.k_proj, x)
            v = self._heads(self.v_proj, x) if "v_proj" in self else k
            v = mx.fast.rms_norm(v, None, self.eps).swapaxes(1, 2)
            k = self.rope(self.k_norm(k).swapaxes(1, 2), *at)
            used = source.cache.update(k, v)
        else:
            used = source.lent
        y = mx.fast.scaled_dot_product_attention(
            self.rope(q, *at), *used, scale=1.0, mask=source.mask
        )
        return project(self.o_proj, y.swapaxes(1, 2).reshape(B, L, -1)), used

    def _heads(self, layer: nn.Module, x: mx.array) -> mx.array:
        return project(layer, x).reshape(*x.shape[:2], -1, self.head_dim)


class Block(nn.Module):
    """Norms around attention and FFN, and the gate of the layer's own input.

    Args:
        config: sizes of the model.
        attention: the layer's.
        intermediate_size: N of its FFN.
        variant: of its FFN.
    """

    def __init__(
        self,
        config: ModelConfig,
        attention: Attention,
        intermediate_size: int,
        variant: Variant | str,
    ) -> None:
        super().__init__()
        K, eps = config.hidden_size, config.rms_norm_eps
        P = config.own["hidden_size_per_layer_input"]
        self.self_attn = attention
        self.mlp = GatedMLP(K, intermediate_size, variant=variant)
        self.input_layernorm = RMSNorm(K, eps)
        self.post_attention_layernorm = RMSNorm(K, eps)
        self.pre_feedforward_layernorm = RMSNorm(K, eps)
        self.post_feedforward_layernorm = RMSNorm(K, eps)
        if P:
            self.unit = variants.get(config.variant)
            self.per_layer_input_gate = nn.Linear(K, P, bias=False)
            self.per_layer_projection = nn.Linear(P, K, bias=False)
            self.post_per_layer_input_norm = RMSNorm(K, eps)

    def __call__(
        self, x: mx.array, source: Source, own: mx.array | None
    ) -> tuple[mx.array, KV]:
        """Map ``x`` with the layer's ``own`` input [B, L, P]; see `Attention`."""
        raise NotImplementedError

    def inject(self, x: mx.array, own: mx.array) -> mx.array:
        """What the layer's own input adds to ``x`` [B, L, K], which gates it."""
        gate = project(self.per_layer_input_gate, x)
        y = project(self.per_layer_projection, ops.glu_mul(gate, own, self.unit))
        return self.post_per_layer_input_norm(y)


class Decoder(gemma.Decoder):
    """Scaled embeddings, an input for every layer, and layers that lend.

    Args:
        config: sizes and settings.
        layers: the blocks.
    """

    def __init__(self, config: ModelConfig, layers: Sequence[Block]) -> None:
        nn.Module.__init__(self)
        K, own = config.hidden_size, config.own
        N, P = config.num_hidden_layers, own["hidden_size_per_layer_input"]
        self.layer_types, self.embed_scale = config.layer_types, math.sqrt(K)
        self.embed_tokens = nn.Embedding(config.vocab_size, K)
        self.layers: list[Any] = list(layers)
        self.norm = RMSNorm(K, config.rms_norm_eps)
        if P:
            self.known_tokens, self.input_size = own["vocab_size_per_layer_input"], P
            self.embed_tokens_per_layer = nn.Embedding(self.known_tokens, N * P)
            self.per_layer_model_projection = nn.Linear(K, N * P, bias=False)
            self.per_layer_projection_norm = RMSNorm(P, config.rms_norm_eps)

    def __call__(self, inputs: mx.array, cache: Cache) -> mx.array:
        """Token ids [B, L] to hidden states [B, L, K]."""
        x = self.embed(inputs)
        own = self.inputs_of_layers(inputs, x)
        at = cache[0].offset, cache[0].expected
        masks: dict[str, Mask] = {}
        for kind, c in zip(self.layer_types, cache, strict=False):
            if kind not in masks:
                masks[kind] = c.mask(inputs.shape[1])
        x = self.spread(x)
        last: dict[str, KV] = {}
        for i, (layer, kind) in enumerate(
            zip(self.layers, self.layer_types, strict=True)
        ):
            # Layers beyond the caches borrow from the last of their type.
            caches = (cache[i], None) if i < len(cache) else (None, last[kind])
            x, last[kind] = layer(x, Source(masks[kind], *at, *caches), own[i])
        y: mx.array = self.norm(self.gather(x))
        return y

    def inputs_of_layers(
        self, inputs: mx.array, x: mx.array
    ) -> Sequence[mx.array | None]:
        """[B, L, P] for each layer, from token ids [B, L] and their embeddings."""
        if "embed_tokens_per_layer" not in self:
            return [None] * len(self.layers)
        shape = *inputs.shape, len(self.layers), self.input_size
        ids = mx.where(inputs < self.known_tokens, inputs, 0)
        of_token = self.embed_tokens_per_layer(ids).astype(x.dtype)
        of_token = of_token * mx.array(math.sqrt(self.input_size), x.dtype)
        of_text = project(self.per_layer_model_projection, x) / self.embed_scale
        of_text = self.per_layer_projection_norm(of_text.reshape(shape))
        both = (of_text + of_token.reshape(shape)) * math.sqrt(0.5)
        return [both[:, :, i] for i in range(len(self.layers))]

    def spread(self, x: mx.array) -> mx.array:
        """From embeddings [B, L, K] to what the layers map."""
        return x

    def gather(self, x: mx.array) -> mx.array:
        """From what the layers map back to [B, L, K]."""
        return x


class Model(gemma.Model):
    """Only layers with keys of their own have a cache."""

    def make_cache(self) -> Cache:
        """One empty cache for each layer that does not borrow."""
        shared: int = self.config.own["num_kv_shared_layers"]
        every = llama.Model.make_cache(self)
        return every[: len(every) - shared]
