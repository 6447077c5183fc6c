"""One result: a line of JSON for machines, a line of a table for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from .. import paired
from ..tables import aligned as text_aligned

#: Verdicts beside those of ``paired.Comparison``; the first two make the command fail.
WRONG, NOISY, BASELINE, NOT_RUN = "WRONG", "too noisy", "baseline", "not run"
TOO_FEW = "too few runs"

#: Blocks below which an interval says nothing.
LEAST_BLOCKS = 5


@dataclass(frozen=True)
class Row:
    """One arm at one number of rows; None where a field does not apply.

    Attributes:
        op: "ffn", or of a whole model "prompt" or "decode".
        arm: which way it was run.
        model: name of the shape, or of the model's folder.
        variant: of the gated linear unit.
        dtype: of the activations.
        bits: of a packed weight.
        group_size: of a packed weight.
        mode: of a packed weight.
        M: rows of x; tokens at once.
        K: hidden_size.
        N: intermediate_size.
        us_p20: microseconds of one FFN with norm and residual, or of one token.
        us_p50: their median.
        us_p80: their percentile 80.
        bytes: moved to and from memory by the formula of ``arms.bytes_moved``.
        gbps: those over the median, GB/s.
        copy_share: that over the bandwidth of a copy measured just before.
        tps: tokens per second.
        speedup: over stock, median of blocks.
        low: lower end of its 95% interval.
        high: upper end.
        verdict: "faster", "slower", "within noise" or one of this module's.
        impl: what really ran of this package's operations: "fused", "stock" or
            "fused and stock", with "simulated" behind it in ``simulate``; "mlx" where
            an arm has none of them.
        why: why it was not fused, not run, is wrong or too noisy.
    """

    op: str
    arm: str
    model: str
    variant: str | None = None
    dtype: str | None = None
    bits: int | None = None
    group_size: int | None = None
    mode: str | None = None
    M: int | None = None
    K: int | None = None
    N: int | None = None
    us_p20: float | None = None
    us_p50: float | None = None
    us_p80: float | None = None
    bytes: int | None = None
    gbps: float | None = None
    copy_share: float | None = None
    tps: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = NOT_RUN
    impl: str | None = None
    why: str = ""

    @property
    def group(self) -> str:
        """What rows of one table have in common."""
        if self.op != "ffn":
            return f"{self.model}: {self.dtype}"
        packed = f"{self.bits}-bit {self.mode}, group size {self.group_size}"
        return (
            f"{self.model} ({self.variant}, K {self.K}, N {self.N}): "
            f"{packed if self.bits else 'dense'}, {self.dtype}"
        )


def compared(
    row: Row,
    timed: Mapping[str, Sequence[float]],
    tokens: int,
    max_variation: float,
) -> Row:
    """Fill in times, speed-up and verdict.

    Args:
        row: of one of the arms.
        timed: seconds of each arm's blocks; the first arm is the baseline.
        tokens: what those seconds are divided by.
        max_variation: above it, the verdict is NOISY.
    """
    baseline, verdict = next(iter(timed)), BASELINE
    p20, p50, p80 = (s / tokens * 1e6 for s in paired.spread(timed[row.arm]))
    row = replace(row, us_p20=p20, us_p50=p50, us_p80=p80)
    if row.arm != baseline:
        found = paired.compare(timed[baseline], timed[row.arm])
        row, verdict = replace(row, **found._asdict()), found.verdict
        if len(timed[row.arm]) < LEAST_BLOCKS:
            row, verdict = replace(row, low=None, high=None), TOO_FEW
    # Half of what was compared is the baseline.
    for arm in dict.fromkeys((row.arm, baseline)):
        variation = paired.spread(timed[arm]).variation
        if variation > max_variation:
            verdict, why = NOISY, f"{arm} varied by {variation:.0%}"
            row = replace(row, why="; ".join(filter(None, (why, row.why))))
    return replace(row, verdict=verdict)


def as_json(row: Row, facts: dict[str, object]) -> str:
    """One line, with the facts about machine and command in front."""
    values = {**facts, **asdict(row)}
    return json.dumps(
        {k: float(f"{v:.5g}") if type(v) is float else v for k, v in values.items()}
    )


FFN_HEAD = ("M", "arm", "us p50", "p20 - p80", "MB", "GB/s", "of copy")
MODEL_HEAD = ("phase", "arm", "tokens/s", "us p50", "p20 - p80")
END_HEAD = ("speed-up", "95%", "verdict")


def cells(row: Row) -> list[str]:
    """The cells of a timed or wrong row, under FFN_HEAD or MODEL_HEAD and END_HEAD."""
    median = _number(row.us_p50)
    between = f"{_number(row.us_p20)} - {_number(row.us_p80)}" if row.us_p50 else "-"
    if row.op == "ffn":
        first = [str(row.M), row.arm, median, between]
        first += [_number(row.bytes / 1e6) if row.bytes else "-"]
        first += [_number(row.gbps)]
        first += [f"{row.copy_share:.0%}" if row.copy_share else "-"]
    else:
        phase = f"{row.op} {row.M}" if row.op == "prompt" else row.op
        first = [phase, row.arm, _number(row.tps), median, between]
    fast = f"{row.speedup:.3f}x" if row.speedup else "-"
    interval = f"{row.low:.3f} - {row.high:.3f}" if row.low else "-"
    return [*first, fast, interval, _said(row)]


def _number(value: float | None) -> str:
    """Three digits, or all before the point."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _said(row: Row) -> str:
    if row.verdict == WRONG or not row.why:
        return row.verdict  # what is wrong is too long for a cell
    return f"{row.verdict}; {row.why}"


def tables(rows: Iterable[Row]) -> Iterable[tuple[str, list[list[str]], list[str]]]:
    """For each group: its title, a table with its head, and lines below it."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    for title, own in groups.items():
        head = FFN_HEAD if own[0].op == "ffn" else MODEL_HEAD
        table = [[*head, *END_HEAD]]
        table += [cells(row) for row in own if row.verdict != NOT_RUN]
        yield title, table, list(_below(own))


def _below(rows: Iterable[Row]) -> Iterable[str]:
    left: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict == NOT_RUN:
            left.setdefault(row.why, []).append(row.arm)
        elif row.verdict == WRONG:
            yield f"WRONG: {row.arm}, M {row.M}: {row.why}"
    for why, arms in left.items():
        yield f"not run: {', '.join(dict.fromkeys(arms))}: {why}"


def as_text(rows: Iterable[Row]) -> str:
    """All tables, aligned."""
    return "\n\n".join(
        "\n".join([title, *aligned(table), *below])
        for title, table, below in tables(rows)
    )


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; columns of numbers to the right."""
    last = len(table[0]) - 1
    return text_aligned(table, right=set(range(last)) - {1})
