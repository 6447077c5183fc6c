"""Time stock and fused on this machine, and keep what that says of each case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import mlx.core as mx

from .. import jit
from ..dispatch import (
    ENVIRONMENT,
    Case,
    Choice,
    decide,
    is_off,
    m_range,
    record,
    use_impl,
)
from . import judging, self_test
from .arms import Arm, make_arms
from .machine import Machine
from .store import Store, default_store
from .verdicts import Verdict, key_of

if TYPE_CHECKING:
    from ..paired import Comparison, Timer

#: Seconds of timed runs that a case and range of M may take, after compiling.
BUDGET_S = 2.0
#: Seconds of a run: forty times what an evaluation takes by itself, about 250 us.
RUN_S = 0.01
#: Calls of a run, however short they are.
MOST_CALLS = 1024
#: Blocks of a comparison: fewer prove nothing, more are not needed.
LEAST_BLOCKS, MOST_BLOCKS = 8, 24


def cases_of(run: Callable[[], object]) -> list[tuple[Case, int]]:
    """What a callable asks of the operations, as far as kernels exist for it.

    Args:
        run: calls operations of this package; its result is not evaluated.

    Returns:
        Cases with a number of rows, each case and range of M once, in order.
    """
    with record() as choices:
        run()
    return _distinct((c.case, c.M) for c in choices if _exists(c.case, c.M))


def tune(
    cases: Iterable[tuple[Case, int]],
    *,
    machine: Machine | None = None,
    timer: Timer | None = None,
    store: Store | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Measure which of some cases' kernels are worth it, and keep the verdicts.

    A case's kernel is tested, then timed against stock at both ends of the range of
    M. What has a verdict is not measured again. Each verdict is kept as soon as it
    is there, so that Ctrl-C loses only the case in work. A case takes about
    :data:`BUDGET_S` seconds and a compilation.

    Args:
        cases: with a number of rows each, which stands for its range.
        machine: whose verdicts these are; by default this one.
        timer: of one run; by default the clock.
        store: keeps the verdicts; by default the user's cache.
        progress: gets a line for each case.

    Raises:
        ValueError: there is no Apple GPU to measure, or ``MLX_GLU_IMPL=stock`` holds.
    """
    if (machine is None or timer is None) and jit.backend() != "metal":
        raise ValueError(
            "[tune] needs an Apple GPU; on other machines kernels run in simulate() "
            "alone, whose times say nothing"
        )
    if is_off():
        raise ValueError(
            f"[tune] {ENVIRONMENT}=stock turns all kernels off; unset it to measure"
        )
    from ..paired import wall_clock

    machine = machine or Machine.here()
    timer = timer or wall_clock
    store = store or default_store()
    for case, M in _distinct(cases):
        said = _decide(case, M, machine, timer, store)
        if progress is not None:
            progress(f"{case}, M {key_of(case, M)[1]}: {said}")
    mx.clear_cache()  # of buffers as large as all the weights


def _decide(case: Case, M: int, machine: Machine, timer: Timer, store: Store) -> str:
    """Have a verdict, and say it."""
    choice = _with_kernel(case, M)
    if choice.impl != "fused":
        return f"stock, {choice.why}"
    key = key_of(case, M)
    verdict = store.verdicts(machine).get(key)
    if verdict is None:
        verdict = _measure(case, M, machine, timer)
        if verdict is None:
            return f"not measured, a run takes too long for {BUDGET_S:g} s"
        store.add(machine, key, verdict)
        judging.forget()
    return f"{verdict.impl}, {verdict.why}"


def _measure(case: Case, M: int, machine: Machine, timer: Timer) -> Verdict | None:
    """The verdict at the end of the range that is worse for the kernel."""
    what = self_test.fault(case, M, machine)
    if what:
        return Verdict.failure(what)
    ends = self_test.measured_at(case.op, M)
    verdicts = []
    for rows in ends:
        verdict = _measure_at(case, rows, machine, timer, BUDGET_S / len(ends))
        if verdict is None or verdict.impl == "stock":
            return verdict
        verdicts.append(verdict)
    return min(verdicts, key=lambda verdict: verdict.speedup or 0)


def _measure_at(
    case: Case, M: int, machine: Machine, timer: Timer, budget_s: float
) -> Verdict | None:
    arms = make_arms(case, M, machine)
    timer("stock", arms["stock"])
    try:
        timer("fused", arms["fused"])
    except Exception as error:
        # The small case compiled and ran; this one, which stock runs, does not.
        what = self_test.brief(f"M = {M}: {type(error).__name__}: {error}")
        self_test.warn(self_test.kernels(case)[0], case, machine, what)
        return Verdict.failure(what)
    comparison = compare_arms(arms, timer, budget_s)
    return None if comparison is None else Verdict.of(comparison)


def compare_arms(
    arms: Mapping[str, Arm], timer: Timer, budget_s: float
) -> Comparison | None:
    """Time the arms "stock" and "fused" in turn.

    Args:
        arms: what to run; their ``calls`` are set so that a run takes :data:`RUN_S`.
        timer: of one run.
        budget_s: seconds for all runs; the first ones tell how many that is.

    Returns:
        Stock over fused; None if the budget is too small for :data:`LEAST_BLOCKS`.
    """
    from ..paired import compare, interleave

    calls = 1
    while True:
        for arm in arms.values():
            arm.calls = calls
        seconds = sum(timer(name, arm) for name, arm in arms.items())
        if seconds >= 2 * RUN_S or calls == MOST_CALLS:
            break
        calls *= 2
    # A block runs each arm twice.
    blocks = min(MOST_BLOCKS, int(budget_s / (2 * seconds)))
    if blocks < LEAST_BLOCKS:
        return None
    times = interleave(arms, blocks, timer=timer, warmup=0)
    return compare(times["stock"], times["fused"])


def _distinct(cases: Iterable[tuple[Case, int]]) -> list[tuple[Case, int]]:
    """Each case and range of M once, with the first M that came."""
    found: dict[tuple[Case, tuple[int, int]], tuple[Case, int]] = {}
    for case, M in cases:
        found.setdefault((case, m_range(case.op, M)), (case, M))
    return list(found.values())


def _with_kernel(case: Case, M: int) -> Choice:
    """The kernel of a case on a GPU, or why there is none."""
    with use_impl("fused"):
        return decide(case, M, backend="metal")


def _exists(case: Case, M: int) -> bool:
    return _with_kernel(case, M).impl == "fused"
