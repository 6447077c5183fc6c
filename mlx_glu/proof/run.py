"""Run one case and say everything that is wrong with it."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from .. import dispatch, jit
from .cases import Case
from .problems import Problem, problem
from .tolerance import worst

if TYPE_CHECKING:
    from ..metal_sim import Run

#: Read by every simdgroup, from caches; all else moves once.
_SHARED = ("x", "x_shape", "norm")


@dataclass(frozen=True)
class Result:
    """What came of a case.

    Attributes:
        case: what was run.
        ratio: the worst error over what the tolerance allows; up to 1 is right.
        where: index of that error.
        traffic: bytes moved of what moves once, over its size; None on a GPU.
        faults: all that is wrong, each in a line or a few; empty if nothing is.
        seconds: it took, compiling included.
    """

    case: Case
    ratio: float
    where: str
    traffic: float | None
    faults: tuple[str, ...]
    seconds: float


def where_it_runs() -> str:
    """What :func:`run` uses here, in words.

    Raises:
        ValueError: there is no GPU that MLX uses, and the simulator cannot run.
    """
    version = f"MLX {importlib.metadata.version('mlx')}"
    if _on_gpu():
        device = mx.device_info()
        name = f"{device['device_name']} ({device['architecture']})"
        return f"{name}, macOS {platform.mac_ver()[0]}, {version}"
    from ..metal_sim import toolchain

    toolchain.zig()
    toolchain.runtime_library()  # no compiler or cache is no fault of a kernel
    return f"simulated on {platform.machine()}, not a GPU; {version}"


def run(case: Case) -> Result:
    """Run a case on the GPU if MLX uses one here, else in the simulator.

    Args:
        case: one of ``plans``.

    Returns:
        The result; whatever a kernel does wrong is among its faults.
    """
    started = time.perf_counter()
    given = problem(case)
    faults: list[str] = []
    ratio, where, traffic = float("inf"), "", None
    try:
        if _on_gpu():
            results = _measured(case, given, faults)
        else:
            results, runs = _simulated(case, given, faults)
            traffic = _check_traffic(case, given, runs, faults)
            faults += [f"lint: {line}" for r in runs for line in r.lint()]
        ratio, where = _compare(given, results, faults)
    except Exception as error:
        # Findings of the checker, what the compiler says, or a bug of ours.
        faults.append(f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - started
    return Result(case, ratio, where, traffic, tuple(faults), seconds)


def _on_gpu() -> bool:
    return jit.backend() == "metal"


def _measured(case: Case, given: Problem, faults: list[str]) -> list[mx.array]:
    # A result that is not written must not find a right one in reused memory.
    dtype: mx.Dtype = getattr(mx, case.dtype)
    mx.eval([mx.full(o.shape, float("nan"), dtype) for o in given.oracle])
    with _fused(faults), dispatch.use_impl("fused"):
        first, again = given.call(), given.call()
        mx.eval(first, again)
    for a, b in zip(first, again, strict=True):
        if not mx.array_equal(a, b, equal_nan=True):
            faults.append("two runs gave different bits: is there a race?")
    return first


def _simulated(
    case: Case, given: Problem, faults: list[str]
) -> tuple[list[mx.array], list[Run]]:
    from .. import metal_sim

    changed = dict([case.option]) if case.option else {}
    options = {"mode": "checked", "strict": 2, **changed}
    with jit.simulate(**options), metal_sim.record() as runs, _fused(faults):
        results = given.call()
        mx.eval(results)
    return results, runs


@contextmanager
def _fused(faults: list[str]) -> Iterator[None]:
    """Whatever is not run by a kernel inside is a fault."""
    with dispatch.record() as choices:
        yield
    for choice in choices:
        if choice.impl != "fused":
            faults.append(f"{choice.op} ran {choice.impl}: {choice.why}")
    if not choices:
        faults.append("no operation asked dispatch")


def _compare(
    given: Problem, results: Sequence[mx.array], faults: list[str]
) -> tuple[float, str]:
    """The worst ratio of all results, and where it is."""
    with dispatch.use_impl("stock"):
        stock = given.call()
    ratio, where = 0.0, ""
    for i, (y, s, o) in enumerate(zip(results, stock, given.oracle, strict=True)):
        if (y.shape, y.dtype) != (o.shape, s.dtype):
            faults.append(f"result {i} is {y.dtype} {y.shape}, not {s.dtype} {o.shape}")
            return float("inf"), ""
        found = worst(y, s, o, terms=given.terms)
        if found.fault:
            faults.append(f"result {i}: {found.fault}" if i else found.fault)
        if found.ratio >= ratio:
            ratio, where = found.ratio, f"result {i} at {list(found.at)}"
    return ratio, where


def _check_traffic(
    case: Case, given: Problem, runs: Sequence[Run], faults: list[str]
) -> float | None:
    """Bytes moved over bytes there are; each byte of what moves once does so."""
    own = [r for r in runs if r.name.rpartition("_")[0] == f"mlx_{case.kernel}"]
    if len(own) != 1:
        faults.append(f"{len(own)} runs of {case.kernel} in {[r.name for r in runs]}")
        return None
    moved = {
        b.name: b.read_merged + b.written_merged
        for b in own[0].report.buffers.values()
        if b.name not in _SHARED
    }
    for name in sorted(moved.keys() | given.once.keys()):
        have, size = moved.get(name), given.once.get(name)
        if have != size:
            faults.append(f"traffic: {name} has {size} bytes, and {have} were moved")
    return sum(moved.values()) / sum(given.once.values())
