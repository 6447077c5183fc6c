"""Time the arms of one FFN side by side: dependent calls, weights out of the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import mlx.core as mx

from .. import dispatch, jit, paired
from ..quantization import dtype_name
from .arms import ARMS, Arm, Check, Layer, Setup, bytes_moved
from .child import ENVIRONMENT, Child
from .machine import runs_kernels
from .rows import WRONG, Row, compared

#: What layers have to hold together, so that each one's weights come from memory:
#: more than twice the largest cache of an Apple chip (96 MB) or of most CPUs.
ROTATED = 256 << 20
#: No more layers than this, however small.
MAX_LAYERS = 256
#: Calls that are handed to the device at once, as the layers of a model are.
LINKS = 32
#: No more calls in a run than this, however fast.
MAX_CALLS = 1 << 14

#: Name of stock in a process with more operations a command buffer.
CHILD = "stock_1000_ops"
NEEDS_MAC = "needs a Mac: there is no Apple GPU here"
NEEDS_METAL = f"Metal only: {', '.join(f'{k}={v}' for k, v in ENVIRONMENT.items())}"


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        blocks: of ABBA; each has two runs of each arm.
        run_s: seconds of one run, about; it has as many calls as that takes.
        rotated: bytes of all layers together, about.
        max_variation: of an arm, as ``paired.Spread``; above it, it is too noisy.
    """

    blocks: int = 12
    run_s: float = 0.05
    rotated: int = ROTATED
    max_variation: float = 0.10


class Chain:
    """Runs of dependent calls; each goes on with the layers after the last one's.

    Attributes:
        first: one of the layers.
    """

    def __init__(self, setup: Setup, rotated: int, *, joined: bool = True) -> None:
        mx.random.seed(0)
        self._setup, self.first = setup, Layer(setup, joined=joined)
        size = self.first.weight_bytes
        count = min(MAX_LAYERS, max(2, -(-rotated // size)))
        layers = [self.first, *(self.first.copy() for _ in range(count - 1))]
        # All arms take turns with the same ones: none finds what another just read.
        self._layers = cycle(layers)

    def input(self, M: int) -> mx.array:
        """Activations [M, K], always the same."""
        shape = (M, self._setup.shape.K)
        x = mx.random.normal(shape, key=mx.random.key(M)).astype(self._setup.dtype)
        mx.eval(x)
        return x

    def run(self, arm: Arm, x: mx.array, calls: int) -> None:
        """Run and wait."""
        for i in range(calls):
            x = arm.run(next(self._layers), x)
            if (i + 1) % LINKS == 0:
                mx.async_eval(x)
        mx.eval(x)

    def calls(self, arm: Arm, x: mx.array, seconds: float) -> int:
        """How many calls take ``seconds``, at least 1."""
        self.run(arm, x, 1)
        count = 1
        while count < MAX_CALLS:
            took = paired.wall_clock("", partial(self.run, arm, x, count))
            if took >= seconds / 2:
                return max(1, round(count * seconds / took))
            count *= 2
        return count


def measure(
    setup: Setup,
    rows_of_x: Sequence[int],
    effort: Effort,
    copy_gbps: float,
    *,
    timer: paired.Timer = paired.wall_clock,
    arms: Mapping[str, Arm] = ARMS,
) -> Iterator[list[Row]]:
    """Time all arms of one setup.

    Args:
        setup: shape, format and dtype.
        rows_of_x: values of M.
        effort: how long, and what variation is too much.
        copy_gbps: of ``machine.Machine``.
        timer: of one run.
        arms: what to time; the first is the baseline.

    Yields:
        Rows of the arms that cannot run here, then those of each M.
    """
    can = {name: arm for name, arm in arms.items() if not arm.fused or runs_kernels()}
    why = dict.fromkeys(arms.keys() - can.keys(), NEEDS_MAC)
    on_metal = jit.backend() == "metal"
    if not on_metal:
        why[CHILD] = NEEDS_METAL
    yield [_row(setup, name, why=why[name]) for name in (*arms, CHILD) if name in why]
    chain = Chain(setup, effort.rotated)
    with ExitStack() as stack:
        child = stack.enter_context(Child(setup, effort.rotated)) if on_metal else None
        for M in rows_of_x:
            # Not around a yield: the caller's choices are its own.
            with dispatch.use_impl("fused") if runs_kernels() else nullcontext():
                x = chain.input(M)
                own = _rows(setup, can, chain, x, effort, timer, child)
            moved = {n: bytes_moved(a, chain.first, x) for n, a in can.items()}
            # The child runs the first arm.
            moved[CHILD] = next(iter(moved.values()))
            yield [_with_bytes(row, moved[row.arm], copy_gbps) for row in own]


def _rows(
    setup: Setup,
    arms: Mapping[str, Arm],
    chain: Chain,
    x: mx.array,
    effort: Effort,
    timer: paired.Timer,
    child: Child | None,
) -> list[Row]:
    """Check, and time what is right."""
    M, (faults, ran) = x.shape[0], _look_at(arms, chain, x)
    rows = [_row(setup, n, M=M, impl=ran[n][0], why=ran[n][1]) for n in arms]
    right = {name: arm for name, arm in arms.items() if not faults[name]}
    baseline = next(iter(arms))
    timed: dict[str, list[float]] = {}
    if baseline in right:
        timed = _time(right, chain, x, effort, timer, child)
    if child:
        faults[CHILD] = faults[baseline]
        rows.append(_row(setup, CHILD, M=M, impl=ran[baseline][0]))
    return [
        compared(row, timed, 1, effort.max_variation)
        if row.arm in timed
        else replace(row, verdict=WRONG, why=faults[row.arm])
        for row in rows
    ]


def _look_at(
    arms: Mapping[str, Arm], chain: Chain, x: mx.array
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Of each arm: what is wrong with it, and what really runs."""
    baseline = next(iter(arms))
    check = Check(chain.first, x, arms[baseline])
    faults, ran = {}, {}
    for name, arm in arms.items():
        with dispatch.record() as choices:
            try:
                mx.eval(arm.run(chain.first, x))
                faults[name] = ""
            except (RuntimeError, ValueError) as error:  # a kernel does not compile
                faults[name] = f"{type(error).__name__}: {error}"
        ran[name] = what_ran(choices)
        faults[name] = faults[name] or check.fault_of(arm)
    if faults[baseline]:
        for name in arms:
            faults[name] = faults[name] or f"{baseline} is wrong: {faults[baseline]}"
    return faults, ran


def what_ran(choices: Sequence[dispatch.Choice]) -> tuple[str, str]:
    """Fields ``impl`` and ``why`` of a row."""
    if not choices:
        return "mlx", ""
    impls = " and ".join(sorted({choice.impl for choice in choices}))
    impls += " simulated" * ("fused" in impls and jit.backend() == "simulator")
    stock: dict[str, list[str]] = {}
    for choice in choices:
        if choice.impl == "stock":
            stock.setdefault(choice.why, []).append(choice.op)
    parts = (f"{', '.join(dict.fromkeys(o))} ran stock: {w}" for w, o in stock.items())
    return impls, "; ".join(parts)


def _time(
    arms: Mapping[str, Arm],
    chain: Chain,
    x: mx.array,
    effort: Effort,
    timer: paired.Timer,
    child: Child | None,
) -> dict[str, list[float]]:
    """Seconds of one call, by arm."""
    calls = chain.calls(next(iter(arms.values())), x, effort.run_s)
    runs: dict[str, paired.Run] = {
        name: partial(chain.run, arm, x, calls) for name, arm in arms.items()
    }
    if child:
        child.prepare(x.shape[0], calls)
        runs[CHILD] = child.run

    def clock(name: str, run: paired.Run) -> float:
        # The pipe to the child would be part of its time.
        return child.run() if child and name == CHILD else timer(name, run)

    seconds = paired.interleave(runs, effort.blocks, timer=clock)
    return {name: [s / calls for s in own] for name, own in seconds.items()}


def _row(setup: Setup, arm: str, **values: Any) -> Row:
    shape, packed, dtype = setup
    return Row(
        "ffn",
        arm,
        shape.name,
        shape.variant,
        dtype_name(dtype),
        packed.bits if packed else None,
        packed.group_size if packed else None,
        packed.mode if packed else None,
        K=shape.K,
        N=shape.N,
        **values,
    )


def _with_bytes(row: Row, moved: int, copy_gbps: float) -> Row:
    if row.us_p50 is None:
        return row
    gbps = moved / row.us_p50 / 1e3
    return replace(row, bytes=moved, gbps=gbps, copy_share=gbps / copy_gbps)
