"""A small character language model, and how it is trained."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..layers import RMSNorm
from ..training.attention import CausalSelfAttention
from ..training.gains import scale_preserving
from ..training.ungated import feed_forward, matched_width
from .corpus import Corpus


@dataclass(frozen=True)
class Shape:
    """Of a model.

    Attributes:
        dims: K, a multiple of 3 times the heads' needs, so that two thirds are exact.
        layers: blocks of attention and feed-forward.
        heads: of attention.
        context: characters that are seen at once.
    """

    dims: int = 48
    layers: int = 3
    heads: int = 4
    context: int = 64


@dataclass(frozen=True)
class Recipe:
    """How it is trained: AdamW, warm-up, cosine down to a tenth, clipped gradients.

    Attributes:
        steps: of the optimiser.
        batch: windows of each step.
        warmup: steps of rising learning rate.
        weight_decay: of AdamW.
        betas: of AdamW.
        clip: largest norm of a gradient.
    """

    steps: int = 1000
    batch: int = 16
    warmup: int = 50
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0


class CharModel(nn.Module):
    """Pre-norm decoder with rotary attention; its feed-forward is what is compared.

    Args:
        characters: size of the vocabulary.
        shape: of the model.
        unit: a name of ``training.ungated.feed_forward``.
        hidden_dims: N; None for 4 K, of a gated unit for two thirds of it.
        seed: of the weights. All that two units share is drawn alike.

    A block's feed-forward keeps the variance whatever its unit is (`gains`), so no
    unit starts with a louder branch; both branches are scaled by 1/sqrt(2 layers).
    """

    def __init__(
        self,
        characters: int,
        shape: Shape,
        unit: str,
        *,
        hidden_dims: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if hidden_dims is None:
            hidden_dims = matched_width(unit, 4 * shape.dims)
        self.embed = nn.Embedding(characters, shape.dims)
        self.layers = [_Layer(shape, unit, hidden_dims) for _ in range(shape.layers)]
        self.norm = RMSNorm(shape.dims)
        self.head = nn.Linear(shape.dims, characters, bias=False)
        _initialise(self, seed)

    def __call__(self, ids: mx.array) -> mx.array:
        """Logits [B, L, characters] of the characters after ``ids`` [B, L]."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class _Layer(nn.Module):
    def __init__(self, shape: Shape, unit: str, hidden_dims: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.dims)
        self.attention = CausalSelfAttention(shape.dims, shape.heads)
        self.mlp_norm = RMSNorm(shape.dims)
        self.mlp = feed_forward(unit, shape.dims, hidden_dims)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.attention(self.attention_norm(x))
        return self.mlp(x, norm=self.mlp_norm, residual=x)


def loss_of(model: CharModel, windows: mx.array) -> mx.array:
    """Mean loss, nats a character, of ``windows`` [B, L + 1] of characters."""
    return mx.mean(_losses(model, windows))


def _losses(model: CharModel, windows: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(windows[:, :-1]), windows[:, 1:])


def windows_at(ids: np.ndarray, starts: np.ndarray, context: int) -> mx.array:
    """The ``context + 1`` characters from each start on, [n, context + 1]."""
    return mx.array(ids[starts[:, None] + np.arange(context + 1)])


def batches(
    corpus: Corpus, context: int, recipe: Recipe, seed: int
) -> Iterator[mx.array]:
    """Windows [batch, context + 1] of each step, the same for every unit."""
    rng = np.random.default_rng([seed, 1])
    for _ in range(recipe.steps):
        starts = rng.integers(0, len(corpus.train) - context, recipe.batch)
        yield windows_at(corpus.train, starts, context)


def train(
    model: CharModel,
    corpus: Corpus,
    context: int,
    recipe: Recipe,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """Train in place.

    Returns:
        The loss of each step, before it; it ends early with one that is not finite.
    """
    warmup = min(recipe.warmup, recipe.steps // 2)
    rise = optim.linear_schedule(learning_rate / max(warmup, 1), learning_rate, warmup)
    fall = optim.cosine_decay(
        learning_rate, max(recipe.steps - warmup, 1), learning_rate / 10
    )
    optimizer = optim.AdamW(
        optim.join_schedules([rise, fall], [warmup]),
        betas=list(recipe.betas),
        weight_decay=recipe.weight_decay,
        bias_correction=True,
    )
    gradient = nn.value_and_grad(model, lambda windows: loss_of(model, windows))
    losses = []
    for windows in batches(corpus, context, recipe, seed):
        loss, found = gradient(windows)
        found, _ = optim.clip_grad_norm(found, recipe.clip)
        optimizer.update(model, found)
        mx.eval(model.parameters(), optimizer.state, loss)
        losses.append(float(loss))
        if not math.isfinite(losses[-1]):
            break
    return losses


def evaluate(model: CharModel, ids: np.ndarray, context: int, batch: int = 32) -> float:
    """Mean loss, nats a character, over windows that do not overlap, summed in float64.

    Args:
        model: is scored.
        ids: characters; what is left after the last whole window is not scored.
        context: predictions of a window.
        batch: windows at once.
    """
    count = (len(ids) - 1) // context
    windows = windows_at(ids, context * np.arange(count), context)
    total = 0.0
    for i in range(0, count, batch):
        losses = _losses(model, windows[i : i + batch])
        total += float(np.array(losses).sum(dtype=np.float64))
    return total / (count * context)


def count_parameters(model: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(a.size for _, a in named_weights(model))


def named_weights(model: nn.Module) -> list[tuple[str, mx.array]]:
    """What is trained, by its path in the model."""
    return cast(list[tuple[str, mx.array]], tree_flatten(model.trainable_parameters()))


def _initialise(model: CharModel, seed: int) -> None:
    """N(0, 1/K) everywhere; branches end 1/sqrt(2 layers) as loud as they began."""
    quiet = 1 / math.sqrt(2 * len(model.layers))
    for i, layer in enumerate(model.layers):
        scale_preserving(layer.mlp, key=mx.random.key(_number(seed, f"mlp {i}")))
        layer.mlp.down_proj.weight = quiet * layer.mlp.down_proj.weight
    drawn = []
    for name, weight in named_weights(model):
        if ".mlp." in name or weight.ndim != 2:
            continue
        scale = 1.0 if name.startswith("embed") else weight.shape[1] ** -0.5
        scale *= quiet if "o_proj" in name else 1.0
        key = mx.random.key(_number(seed, name))
        drawn.append((name, mx.random.normal(weight.shape, scale=scale, key=key)))
    model.update(tree_unflatten(drawn))
    mx.eval(model.parameters())


def _number(seed: int, name: str) -> int:
    """A seed for each part, so that parts that two models share are drawn alike."""
    return zlib.crc32(f"{seed} {name}".encode())
