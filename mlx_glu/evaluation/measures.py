"""Perplexity and divergence with their standard errors, in float64.

Standard errors take predictions for independent of each other, as mlx-lm and
llama.cpp do; those of a difference are paired, token by token.
"""

import math
from typing import NamedTuple

import numpy as np

from .scores import Scores


class Mean(NamedTuple):
    """A mean and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Mean":
        """Of at least two values."""
        return cls(float(values.mean()), float(values.std(ddof=1) / values.size**0.5))


class Perplexity(NamedTuple):
    """How well a model predicts a text.

    Attributes:
        value: exp of the mean loss.
        error: its standard error, to first order.
        loss: nats a token.
        tokens: predictions.
        tps: of them in a second.
    """

    value: float
    error: float
    loss: float
    tokens: int
    tps: float

    @classmethod
    def of(cls, losses: np.ndarray, seconds: float) -> "Perplexity":
        """Of the losses of at least two tokens."""
        loss, error = Mean.of(losses)
        value = _exp(loss)
        return cls(value, value * error, loss, losses.size, losses.size / seconds)

    def as_row(self) -> dict[str, float]:
        """For JSON."""
        named = {"perplexity": self.value, "perplexity_error": self.error}
        return named | {"loss": self.loss, "tokens": self.tokens, "tps": self.tps}


class Comparison(NamedTuple):
    """What model B loses against model A.

    Attributes:
        a: of the first model.
        b: of the second model.
        difference: of their perplexities, B - A; its error is paired.
        kl: KL(A || B), nats.
        kl_median: of all tokens.
        kl_p99: of all tokens.
        kl_max: of all tokens.
        same_top: share of tokens where both have the same likeliest token.
    """

    a: Perplexity
    b: Perplexity
    difference: Mean
    kl: Mean
    kl_median: float
    kl_p99: float
    kl_max: float
    same_top: Mean

    @classmethod
    def of(cls, scores: Scores) -> "Comparison":
        """Of the scores of two models."""
        losses = scores.losses
        a, b = (Perplexity.of(*x) for x in zip(losses, scores.seconds, strict=True))
        # To first order, what each token adds to the difference of perplexities.
        paired = Mean.of(b.value * losses[1] - a.value * losses[0])
        median, p99, most = np.percentile(scores.kl, (50, 99, 100))
        return cls(
            a,
            b,
            Mean(b.value - a.value, paired.error),
            Mean.of(scores.kl),
            float(median),
            float(p99),
            float(most),
            Mean.of(scores.same_top.astype(np.float64)),
        )

    def as_row(self) -> dict[str, float]:
        """For JSON: of model B, and against model A."""
        return self.b.as_row() | {
            "difference": self.difference.value,
            "difference_error": self.difference.error,
            "kl": self.kl.value,
            "kl_error": self.kl.error,
            "kl_median": self.kl_median,
            "kl_p99": self.kl_p99,
            "kl_max": self.kl_max,
            "same_top": self.same_top.value,
            "same_top_error": self.same_top.error,
        }


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
