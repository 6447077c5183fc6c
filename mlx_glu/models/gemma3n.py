"""Gemma 3n (text): several residual streams, of which a layer computes one.

A is the number of streams; they stand together as [B, L, A, K].
Source: Google 2025, Gemma 3n; transformers' ``Gemma3nForCausalLM``.
"""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import variants
from ..checkpoints.arrangement import Arrangement, Piece, Tensors, renamed
from ..config import ModelConfig
from ..layers import RMSNorm
from ..linear_layers import project
from ..tensor_info import TensorInfo
from . import lending
from .lending import KV, Attention, Source
from .llama import Cache


class AltUp(nn.Module):
    """Alternating updates: predict every stream, then correct them by one result.

    Source: Baykal et al. 2023, arXiv:2301.13310.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        K, A = config.hidden_size, config.own["altup_num_inputs"]
        self.active = config.own["altup_active_idx"]
        self.correct_output_scale = mx.zeros((K,))
        self.correction_coefs = nn.Linear(A, A, bias=False)
        self.prediction_coefs = nn.Linear(A, A * A, bias=False)
        self.modality_router = nn.Linear(K, A, bias=False)
        self.router_norm = RMSNorm(K, config.rms_norm_eps)

    def predict(self, x: mx.array) -> mx.array:
        """Each stream of ``x`` plus a mixture of all."""
        B, L, A, _ = x.shape
        mixture = project(self.prediction_coefs, self._modes(x[:, :, self.active]))
        wide = x.astype(mx.float32)
        return (wide + mixture.reshape(B, L, A, A) @ wide).astype(x.dtype)

    def correct(self, predicted: mx.array, active: mx.array) -> mx.array:
        """Move each stream by the error of the ``active`` one's prediction."""
        share = 1 + project(self.correction_coefs, self._modes(active))
        wide = predicted.astype(mx.float32)
        error = active.astype(mx.float32) - wide[:, :, self.active]
        moved = wide + share[..., None] * error[:, :, None]
        return moved.astype(predicted.dtype)

    def _modes(self, x: mx.array) -> mx.array:
        """[B, L, A] in float32."""
        x = self.router_norm(x) / x.shape[-1]
        return mx.tanh(project(self.modality_router, x).astype(mx.float32))


class Laurel(nn.Module):
    """Learned augmented residual of low rank (arXiv:2411.07501)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        K, R = config.hidden_size, config.own["laurel_rank"]
        self.linear_left = nn.Linear(K, R, bias=False)
        self.linear_right = nn.Linear(R, K, bias=False)
        self.post_laurel_norm = RMSNorm(K, config.rms_norm_eps)

    def __call__(self, x: mx.array) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K]."""
        y = project(self.linear_right, project(self.linear_left, x))
        return x + self.post_laurel_norm(y)


class Block(lending.Block):
    """Attention and FFN on one of the streams; its own input goes into the others."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        own = config.own
        # As in mlx-lm, layers that borrow keys have unused projections.
        attention = Attention(
            config, config.layer_types[index], has_keys=True, has_values=True
        )
        variant, sparsity = config.variant, own["activation_sparsity_pattern"][index]
        unit = variants.get("gelu_topk", sparsity=sparsity) if sparsity else variant
        super().__init__(config, attention, own["intermediate_size"][index], unit)
        self.altup, self.laurel = AltUp(config), Laurel(config)
        self.scaled = own["altup_correct_scale"]

    def __call__(
        self, x: mx.array, source: Source, own: mx.array | None
    ) -> tuple[mx.array, KV]:
        """Map streams ``x`` [B, L, A, K]; see `lending.Block`."""
        assert own is not None
        predicted = self.altup.predict(x)
        active = predicted[:, :, self.altup.active]
        normed = self.input_layernorm(active)
        y, used = self.self_attn(normed, source)
        y = active + self.post_attention_layernorm(y)
        y = (y + self.laurel(normed)) * math.sqrt(0.5)
        ffn = self.mlp(y, norm=self.pre_feedforward_layernorm)
        y = y + self.post_feedforward_layernorm(ffn)
        x = self.altup.correct(predicted, y)
        y = x[:, :, self.altup.active]
        if self.scaled:
            y = (y * self.altup.correct_output_scale).astype(x.dtype)
        others = x[:, :, 1:] + self.inject(y, own)[:, :, None]
        return mx.concatenate([x[:, :, :1], others], axis=2), used


class Decoder(lending.Decoder):
    """Embeddings to streams, layers, and streams to one hidden state."""

    def __init__(self, config: ModelConfig) -> None:
        blocks = [Block(config, i) for i in range(config.num_hidden_layers)]
        super().__init__(config, blocks)
        K, others = config.hidden_size, config.own["altup_num_inputs"] - 1
        square = lambda: [nn.Linear(K, K, bias=False) for _ in range(others)]
        self.altup_projections, self.altup_unembed_projections = square(), square()

    def spread(self, x: mx.array) -> mx.array:
        """[B, L, K] to streams [B, L, A, K]: projections as large as ``x``."""
        others = [_as_large(project(p, x), x) for p in self.altup_projections]
        return mx.stack([x, *others], axis=2)

    def gather(self, x: mx.array) -> mx.array:
        """Streams [B, L, A, K] to their mean [B, L, K], each as large as the first."""
        first = x[:, :, 0]
        streams = [first.astype(mx.float32)]
        for i, p in enumerate(self.altup_unembed_projections, start=1):
            y = _as_large(project(p, x[:, :, i]), first)
            streams.append(y.astype(mx.float32))
        return (sum(streams[1:], streams[0]) / len(streams)).astype(x.dtype)


def _as_large(x: mx.array, like: mx.array) -> mx.array:
    """``x`` [..., K] with the root mean square of ``like``."""
    wide, square = x.astype(mx.float32), mx.square(like.astype(mx.float32))
    least = mx.maximum(mx.square(wide).mean(-1, keepdims=True), 1e-5)
    ratio = mx.sqrt(square.mean(-1, keepdims=True) / least)
    return (wide * ratio).astype(x.dtype)


class Nested(nn.Module):
    """The decoder under the name that it has beside vision and audio."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.language_model = Decoder(config)

    def __call__(self, inputs: mx.array, cache: Cache) -> mx.array:
        """Token ids [B, L] to hidden states [B, L, K]."""
        return self.language_model(inputs, cache)

    @property
    def embed_tokens(self) -> nn.Module:
        """The embeddings, which may be the output head."""
        return self.language_model.embed_tokens

    @property
    def layers(self) -> list[Any]:
        """The blocks."""
        return self.language_model.layers


_PREFIX, _NESTED = "model.", "model.language_model."


class Model(lending.Model):
    """Gemma 3n, text part."""

    decoder_class = Nested  # type: ignore[assignment]

    @staticmethod
    def arrange(tensors: Tensors, config: ModelConfig) -> Arrangement:
        """The prefix that mlx-lm wants, and zeros for projections without a use."""
        found = Arrangement()
        for name, info in tensors.items():
            if name.startswith(_PREFIX) and not name.startswith(_NESTED):
                renaming = _NESTED + name.removeprefix(_PREFIX)
                found.pieces[renaming] = renamed(name, info)
        names = tensors.keys() | found.pieces.keys()
        layers, shared = config.num_hidden_layers, config.own["num_kv_shared_layers"]
        for i in range(layers - shared, layers):
            for name, shape in _unused(config).items():
                full = f"{_NESTED}layers.{i}.self_attn.{name}"
                if full not in names:
                    found.pieces[full] = _zeros(shape)
        return found


def _unused(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What a layer that borrows has for mlx-lm's sake alone."""
    K, N = config.hidden_size, config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"k_norm.weight": (config.head_dim,)}
    for name in ("k_proj", "v_proj"):
        shapes[f"{name}.weight"] = N, K
        if config.qkv_bias:
            shapes[f"{name}.bias"] = (N,)
    return shapes


def _zeros(shape: tuple[int, ...]) -> Piece:
    info = TensorInfo(mx.bfloat16, shape)
    return Piece((), info, lambda: mx.zeros(info.shape, info.dtype))
