"""The loss of a model as a function of its weights alone."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from .char_model import CharModel, loss_of, named_weights

#: Weights in the order of :attr:`Landscape.names`.
Point = list[mx.array]


class Landscape:
    """Called with weights, gives the loss on fixed windows.

    Args:
        model: whose forward pass it is; it is left with weights of the last call.
        windows: [B, L + 1] characters.

    Attributes:
        names: of the weights.
        point: the weights that the model had.
    """

    def __init__(self, model: CharModel, windows: mx.array) -> None:
        self._model, self._windows = model, windows
        named = named_weights(model)
        self.names = [name for name, _ in named]
        self.point: Point = [weight for _, weight in named]

    def __call__(self, weights: Sequence[mx.array]) -> mx.array:
        """Mean loss, nats a character."""
        named = list(zip(self.names, weights, strict=True))
        self._model.update(tree_unflatten(named))
        return loss_of(self._model, self._windows)

    @property
    def size(self) -> int:
        """Weights of all arrays, D."""
        return sum(weight.size for weight in self.point)

    def rescaled(self, scale: float) -> Point:
        """``up_proj`` times ``scale``, ``down_proj`` over it.

        The same function where the unit is linear in its value, as every gated one
        without a bound is, or is ReLU.
        """
        scales = {"up_proj": scale, "down_proj": 1 / scale}
        kinds = [name.split(".")[-2] for name in self.names]
        pairs = zip(kinds, self.point, strict=True)
        return [scales.get(kind, 1.0) * weight for kind, weight in pairs]

    def direction(self, seed: int) -> Point:
        """A random direction, whose rows are as long as those of the weights.

        Vectors, which are the norms' weights, stay. Source: Li et al. 2018,
        arXiv:1712.09913, section 4.
        """
        rng = np.random.default_rng(seed)
        found = []
        for weight in self.point:
            drawn = rng.normal(size=weight.shape) * (weight.ndim > 1)
            lengths = np.linalg.norm(drawn, axis=-1, keepdims=True)
            own = np.linalg.norm(np.array(weight), axis=-1, keepdims=True)
            found.append(mx.array(drawn * own / np.maximum(lengths, 1e-30), mx.float32))
        return found

    def slice(self, steps: Sequence[float]) -> list[list[float]]:
        """Losses around the point along two directions, the second in columns."""
        axes = list(zip(self.point, self.direction(0), self.direction(1), strict=True))

        def loss(i: float, j: float) -> float:
            return float(self([w + i * one + j * two for w, one, two in axes]))

        return [[loss(i, j) for j in steps] for i in steps]
