"""What measuring a case on a machine has shown, and what follows from it."""

from __future__ import annotations

import math
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

from ..dispatch import MAX_SIZE, Case, m_range

if TYPE_CHECKING:
    from ..paired import Comparison  # it needs NumPy, which judging does not

#: A kernel is used where it is faster than stock by this share or more.
LEAST = 0.03

#: What a verdict says of a self-test that found nothing.
PASSED = "passed"

#: Text of a case, and its range of M in words.
Key = tuple[str, str]


def key_of(case: Case, M: int) -> Key:
    """Under which key the verdict on ``M`` rows of a case is kept."""
    first, last = m_range(case.op, M)
    if last == MAX_SIZE:
        return str(case), f"{first} and more"
    return str(case), f"{first}" if first == last else f"{first} to {last}"


class Verdict(NamedTuple):
    """What a case's self-test and timings on a machine have shown.

    Attributes:
        date: of the measurement, as 2026-01-31.
        self_test: :data:`PASSED`, or what the kernel did wrong.
        speedup: seconds of stock over those of fused, at the worse end of the range;
            None where a failed self-test left nothing to time.
        low: lower end of its 95% interval.
        high: upper end.
    """

    date: str
    self_test: str
    speedup: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, comparison: Comparison) -> Verdict:
        """From today's timings of a kernel that passed."""
        return cls(date.today().isoformat(), PASSED, *comparison)

    @classmethod
    def failure(cls, fault: str) -> Verdict:
        """From today's fault of a kernel."""
        return cls(date.today().isoformat(), fault)

    @property
    def impl(self) -> str:
        """The implementation to use."""
        if self.self_test != PASSED or self.speedup is None or self.low is None:
            return "stock"
        return "fused" if self.speedup >= 1 + LEAST and self.low > 1 else "stock"

    @property
    def why(self) -> str:
        """The reason, for people."""
        if self.speedup is None or self.low is None:
            return f"its self-test failed here on {self.date}: {self.self_test}"
        when = f"measured {self.date}"
        if self.speedup < 1:
            return f"{1 / self.speedup - 1:.1%} slower here, {when}"
        faster = f"{self.speedup - 1:.1%} faster here"
        if self.speedup < 1 + LEAST:
            return f"{faster}, below {LEAST:.0%}, {when}"
        if self.low <= 1:
            return f"{faster} but within noise, {when}"
        return f"{faster}, {when}"

    def as_json(self) -> dict[str, Any]:
        """What the file says; ``impl`` is for its readers."""
        return {"impl": self.impl, **self._asdict()}

    @classmethod
    def from_json(cls, found: Any) -> Verdict:
        """Undo :meth:`as_json`.

        Raises:
            ValueError: it is not what :meth:`as_json` gives.
        """
        try:
            given = {name: found[name] for name in cls._fields}
            verdict = cls(**given)
            texts, numbers = verdict[:2], verdict[2:]
            absent = numbers == (None, None, None)
            right = all(isinstance(text, str) for text in texts) and (
                absent
                if verdict.self_test != PASSED
                else all(type(x) is float and 0 < x < math.inf for x in numbers)
            )
            if right and found == verdict.as_json():
                return verdict
        except (TypeError, KeyError, AttributeError):
            pass
        raise ValueError(f"{str(found)[:80]} is no verdict")
