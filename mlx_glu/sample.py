"""From logits to a token."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import mlx.core as mx


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    The order is mlx-lm's: bias and penalty, then top-p, min-p and top-k on the
    probabilities at temperature 1, the temperature last. (Hugging Face applies
    the temperature first.)

    Attributes:
        temp: temperature; 0 takes the likeliest token.
        top_p: keep the likeliest tokens whose probabilities sum to this; 1 is off.
        top_k: keep this many tokens; 0 is off.
        min_p: keep tokens of at least this share of the likeliest one's
            probability; 0 is off.
        repetition_penalty: divide positive logits of tokens that occurred, multiply
            negative ones (Keskar et al. 2019, arXiv:1909.05858); 1 is off.
        repetition_context_size: how many last tokens count as occurred; None is
            all, prompt included, as in transformers.
        logit_bias: token id to what is added to its logit; -inf bans the token.
        seed: makes sampling repeatable; 0 to 2**64 - 1.

    Raises:
        ValueError: a value out of its range.
    """

    temp: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context_size: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, is_right, wanted in (
            ("temp", 0 <= self.temp < math.inf, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            (
                "repetition_context_size",
                self.repetition_context_size is None
                or self.repetition_context_size > 0,
                "at least 1",
            ),
            (
                "logit_bias",
                all(value < math.inf for value in self.logit_bias.values()),
                "of numbers below infinity",
            ),
            ("seed", 0 <= (self.seed or 0) < 1 << 64, "between 0 and 2**64 - 1"),
        ):
            if not is_right:
                raise ValueError(
                    f"[sample] {name} must be {wanted}, got {getattr(self, name)}"
                )


class Sampler:
    """Draw tokens by the rules of a `Sampling`."""

    def __init__(self, sampling: Sampling) -> None:
        self.rules = sampling
        self._key = None if sampling.seed is None else mx.random.key(sampling.seed)
        self._bias: tuple[mx.array, mx.array] | None = None
        if sampling.logit_bias:
            ids, values = zip(*sampling.logit_bias.items(), strict=True)
            self._bias = mx.array(ids), mx.array(values, mx.float32)

    @property
    def needs_history(self) -> bool:
        """Do the rules look at earlier tokens?"""
        return self.rules.repetition_penalty != 1.0

    def __call__(
        self, logits: mx.array, history: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Choose a token.

        Args:
            logits: [vocab_size].
            history: [n] the tokens so far, if `needs_history`.

        Returns:
            The token [] and the log-probabilities [vocab_size] after bias and
            penalty. Neither is computed yet: an unused one costs nothing.
        """
        rules = self.rules
        logits = logits.astype(mx.float32)
        if self._bias is not None:
            logits = logits.at[self._bias[0]].add(self._bias[1])
        if self.needs_history and history is not None:
            logits = self._penalise(logits, history)
        logprobs = logits - mx.logsumexp(logits)
        if rules.temp < 1e-6:  # float32 cannot divide by less
            return mx.argmax(logits), logprobs
        kept = logprobs
        if rules.top_p < 1:
            kept = _top_p(kept, rules.top_p)
        if rules.min_p > 0:
            floor = mx.max(kept) + mx.log(mx.array(rules.min_p))
            kept = mx.where(kept < floor, -mx.inf, kept)
        if 0 < rules.top_k < kept.size:
            floor = mx.partition(kept, -rules.top_k)[-rules.top_k]
            kept = mx.where(kept < floor, -mx.inf, kept)
        key = None
        if self._key is not None:
            self._key, key = mx.random.split(self._key)
        return mx.random.categorical(kept / rules.temp, key=key), logprobs

    def _penalise(self, logits: mx.array, history: mx.array) -> mx.array:
        size = self.rules.repetition_context_size
        ids = history if size is None else history[-size:]
        if ids.size == 0:
            return logits
        seen, penalty = logits[ids], self.rules.repetition_penalty
        seen = mx.where(seen < 0, seen * penalty, seen / penalty)
        # A repeated id writes the same value again.
        return mx.put_along_axis(logits, ids, seen, axis=0)


def _top_p(logprobs: mx.array, top_p: float) -> mx.array:
    """Drop what lies beyond the smallest set of mass ``top_p`` (arXiv:1904.09751)."""
    order = mx.argsort(-logprobs)
    probs = mx.exp(logprobs[order])
    before = mx.cumsum(probs, inclusive=False)
    kept = mx.where(before < top_p, logprobs[order], -mx.inf)
    return mx.put_along_axis(logprobs, order, kept, axis=0)
