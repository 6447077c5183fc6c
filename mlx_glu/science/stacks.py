"""Deep stacks of units in four regimes, and their gradients by layer.

A layer maps d to d: ``phi(gate_proj x) * psi(up_proj x)``, or the activation of
``up_proj x``. There is no projection back and no bias: one unit feeds the next, so
that nothing but unit and regime decides what becomes of the gradient.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .. import ops
from ..training.gains import gain
from ..training.ungated import ACTIVATIONS
from ..variants import VARIANTS
from .fitting import Task, error, number


class Regime(NamedTuple):
    """How layers are joined.

    Attributes:
        label: for figures.
        matched: units are multiplied by their gain.
        norm: RMSNorm without weights before each layer.
        residual: a layer over the square root of their number is added to its input.
    """

    label: str
    matched: bool = False
    norm: bool = False
    residual: bool = False


REGIMES = {
    "plain": Regime("plain"),
    "matched": Regime("variance-matched", matched=True),
    "norm": Regime("RMSNorm", norm=True),
    "residual": Regime("RMSNorm and residual", norm=True, residual=True),
}


class Layer(nn.Module):
    """One unit, [n, d] to [n, d], as its regime has it; weights ~ N(0, 1/d)."""

    def __init__(self, unit: str, regime: Regime, dims: int, depth: int) -> None:
        super().__init__()
        draw = partial(mx.random.normal, (dims, dims), scale=dims**-0.5)
        self.regime = regime
        self.scale = gain(unit) if regime.matched else 1.0
        if regime.residual:
            self.scale = depth**-0.5
        self.up_proj = draw()
        if unit in ACTIVATIONS:
            self.act_fn = ACTIVATIONS[unit].layer()
        else:
            self.gate_proj = draw()
            self.act_fn = partial(ops.glu_mul, variant=VARIANTS[unit])

    def __call__(self, x: mx.array) -> mx.array:
        """Apply it."""
        z = mx.fast.rms_norm(x, None, 1e-6) if self.regime.norm else x
        names = ("gate_proj", "up_proj") if "gate_proj" in self else ("up_proj",)
        h = self.scale * self.act_fn(*(z @ self[name].T for name in names))
        return x + h if self.regime.residual else h


class Stack(nn.Module):
    """Layers and a linear head; inputs [n, d], outputs [n, outputs]."""

    def __init__(
        self, unit: str, regime: Regime, dims: int, depth: int, outputs: int
    ) -> None:
        super().__init__()
        self.layers = [Layer(unit, regime, dims, depth) for _ in range(depth)]
        self.head = nn.Linear(dims, outputs)

    def __call__(self, x: mx.array) -> mx.array:
        """Apply it."""
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Profile(NamedTuple):
    """Of a stack on a batch, from its input to the output of the last layer.

    Attributes:
        forward: [depth + 1] log10 of the root mean square of the activations.
        gradient: [depth + 1] log10 of the norm of the loss's gradient by them, over
            that at the last. Nan below a layer that lets nothing through, or whose
            activations are not finite.
    """

    forward: list[float]
    gradient: list[float]


def profile(stack: Stack, task: Task) -> Profile:
    """Follow the gradient down, brought back to norm 1 at each layer: no underflow."""
    activations = [task.x]
    for layer in stack.layers:
        activations.append(layer(activations[-1]))
    forward = [_log10(mx.sqrt(mx.mean(mx.square(h)))) for h in activations]
    head = lambda h: error(stack.head, h, task.y)
    _, [cotangent] = mx.vjp(head, activations[-1:], [mx.array(1.0)])
    logs = [0.0 if math.isfinite(_log10(_norm(cotangent))) else math.nan]
    for layer, h in zip(stack.layers[::-1], activations[-2::-1], strict=True):
        cotangent = cotangent / _norm(cotangent)
        _, [cotangent] = mx.vjp(layer, [h], [cotangent])
        logs.append(logs[-1] + _log10(_norm(cotangent)))
    # A sum with an infinity may come back as nan only; both mean that nothing is left.
    found = [log if math.isfinite(log) else math.nan for log in logs]
    return Profile(forward, found[::-1])


def _norm(a: mx.array) -> mx.array:
    return mx.sqrt(mx.sum(mx.square(a)))


def _log10(a: mx.array) -> float:
    """Of a scalar; -inf of 0."""
    value = number(a)
    return math.log10(value) if value else -math.inf
