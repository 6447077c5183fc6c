"""Rules that leave out small activations, and with them reads of weights.

A projection need not read the weights that a zero of its input multiplies; nor need
gate and up read those of a product that is left out. Rules differ in what they look at
to know which entries are small. Here entries are zeroed in the model itself and what
need not be read is counted; nothing runs faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..linear_layers import weight_of
from ..models.llama import Model
from ..quantization import size
from .hooks import Pass, Site, feed_forwards, hooked, projections


@dataclass(frozen=True)
class Rule:
    """What is small, and what need not be read for it.

    Attributes:
        label: its name in the literature.
        source: where it comes from.
        score: of the entries [..., K] of an input; the lowest are left out.
        everywhere: at every projection of every layer; else at the down projection.
        matrices: how many of the feed-forward skip a row or column for an entry.
    """

    label: str
    source: str
    score: Callable[[Site, mx.array], mx.array]
    everywhere: bool = False
    matrices: int = 1


def _magnitude(site: Site, x: mx.array) -> mx.array:
    return mx.abs(x)


_COUNTDOWN = "Cheon and Kang 2025, arXiv:2505.17701"

#: All leave out the same share of each site, by thresholds that all tokens share.
RULES = {
    "down": Rule(
        "down_proj input", "TEAL's rule at the down projection alone", _magnitude
    ),
    "cats": Rule(
        "CATS",
        "Lee et al. 2024, arXiv:2404.08763",
        lambda site, x: mx.abs(site.unit.phi),
        matrices=2,
    ),
    "m_countdown": Rule(
        "M-COUNTDOWN",
        _COUNTDOWN,
        lambda site, x: mx.abs(site.unit.up),
        matrices=2,
    ),
    # Knows the product before gate and up are read: a bound for its predictor.
    "d_countdown": Rule("D-COUNTDOWN, ideal", _COUNTDOWN, _magnitude, matrices=3),
    "teal": Rule(
        "TEAL, uniform",
        "Liu et al. 2024, arXiv:2408.14690",
        _magnitude,
        everywhere=True,
    ),
    # Its scores, without the change of the weights that the paper adds.
    "wina": Rule(
        "WINA, uniform",
        "Chen et al. 2025, arXiv:2505.19427",
        lambda site, x: mx.abs(x.astype(mx.float32)) * site.norms,
        everywhere=True,
    ),
}


class Filter:
    """Zeroes the entries that score no more than a threshold, and counts.

    Args:
        rule: gives the scores.
        site: of which input.
        threshold: 0 leaves out what is zero and changes nothing.

    Attributes:
        skipped: weights that need not have been read, summed over tokens.
    """

    def __init__(self, rule: Rule, site: Site, threshold: float = 0.0) -> None:
        self.rule, self.site, self.threshold = rule, site, threshold
        self.skipped = 0

    def __call__(self, x: mx.array) -> mx.array:
        """``x`` [..., K] with zeros in it."""
        skip = self.rule.score(self.site, x) <= self.threshold
        weights = self.site.rows * self.rule.matrices
        self.skipped += int(np.count_nonzero(np.array(skip))) * weights
        return mx.where(skip, mx.zeros_like(x), x)


def thresholds(
    model: Model, rule: Rule, ids: mx.array, shares: Sequence[float]
) -> dict[str, np.ndarray]:
    """Quantiles of the scores at each site of the model as it is.

    Args:
        model: reads the tokens once.
        rule: whose scores.
        ids: [B, L] tokens.
        shares: of the entries, to be left out.

    Returns:
        A threshold for each share, by the path of the projection.
    """
    found: dict[str, np.ndarray] = {}

    def make(site: Site) -> Pass:
        def see(x: mx.array) -> mx.array:
            scores = np.array(rule.score(site, x).astype(mx.float32))
            found[site.path] = np.quantile(scores, shares, method="inverted_cdf")
            return x

        return see

    with hooked(model, make, everywhere=rule.everywhere):
        mx.eval(model(ids, last_only=True))
    return found


@contextmanager
def thresholded(
    model: Model, rule: Rule, levels: Mapping[str, float]
) -> Iterator[list[Filter]]:
    """Apply a rule while the context lasts.

    Args:
        model: changed, and changed back.
        rule: which one.
        levels: threshold of each projection, by its path; 0 where none is given.

    Yields:
        The filters of all sites, whose counts begin at 0.
    """
    filters: list[Filter] = []

    def make(site: Site) -> Pass:
        filters.append(Filter(rule, site, levels.get(site.path, 0.0)))
        return filters[-1]

    with hooked(model, make, everywhere=rule.everywhere):
        yield filters


class Read(NamedTuple):
    """Weights that a token reads: those of matrices, as numbers and not as bytes.

    Attributes:
        ffn: of the feed-forwards.
        model: of all projections, and of the output head.
    """

    ffn: int
    model: int

    @classmethod
    def of(cls, model: Model) -> Read:
        """Of a dense model without thresholds."""
        layers = range(len(feed_forwards(model)))
        found = {p: m for i in layers for p, m in projections(model, i).items()}
        head = model.get("lm_head", model.model.embed_tokens)
        ffn = sum(_count(m) for path, m in found.items() if ".mlp." in path)
        return cls(ffn, sum(map(_count, found.values())) + _count(head))

    @classmethod
    def skipped(cls, filters: Sequence[Filter]) -> Read:
        """What filters left out, summed over tokens."""
        ffn = sum(f.skipped for f in filters if ".mlp." in f.site.path)
        return cls(ffn, sum(f.skipped for f in filters))


def _count(layer: object) -> int:
    weight = weight_of(layer)
    assert weight is not None
    N, K = size(weight)
    return N * K
