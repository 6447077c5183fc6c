"""Is a kernel right on this machine? Asked once, before it is used there."""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING

from ..dispatch import MAX_SIZE, Case, m_range
from ..quantization import DENSE
from .machine import Machine

if TYPE_CHECKING:
    from ..proof import cases

#: Stands for the last M of a range without end, a long prompt.
LARGE_M = 2048

#: Columns of the results: beyond one threadgroup of a product, and with a last one
#: that is cut. Elementwise kernels take four at once where they can.
_N, _N_OF_FOURS = 31, 32

_lock = threading.RLock()
_faults: dict[tuple[Case, tuple[int, int], Machine], str] = {}
_warned: set[tuple[str, Machine]] = set()


def measured_at(op: str, M: int) -> tuple[int, ...]:
    """Which numbers of rows stand for the range of ``M``: its ends."""
    first, last = m_range(op, M)
    return tuple(dict.fromkeys((first, LARGE_M if last == MAX_SIZE else last)))


def fault(case: Case, M: int, machine: Machine) -> str:
    """Run the kernels of a case on small arrays, once a process.

    They run where ``proof.run`` runs them: on the GPU, or simulated. The small case
    has the formats, K and options of the case, a few columns and both ends of the
    range of ``M``. A fault is warned of, once for each kernel.

    Args:
        case: what a kernel exists for.
        M: rows, which stand for their range.
        machine: this one; what was found on another is not asked.

    Returns:
        What is wrong, in a line; "" if nothing is.
    """
    columns = _N_OF_FOURS if case.op == "glu_mul" and case.N % 4 == 0 else _N
    small = case._replace(N=min(columns, case.N))
    key = small, m_range(case.op, M), machine
    with _lock:
        if key not in _faults:
            _faults[key] = _find(small, M, machine)
        return _faults[key]


def warn(kernel: str, case: Case, machine: Machine, what: str) -> None:
    """Say that stock runs instead, once for a kernel and machine."""
    with _lock:
        if (kernel, machine) in _warned:
            return
        _warned.add((kernel, machine))
    warnings.warn(
        f"[tuning] {kernel} fails on {machine.name} for {case}, so that stock runs "
        f"instead: {what}; please report it with the output of `mlx-glu verify`",
        RuntimeWarning,
        stacklevel=2,
    )


def kernels(case: Case) -> tuple[str, ...]:
    """Files of ``metal/`` that a case runs, its gradient's included."""
    if case.op == "glu_mul":
        return "glu_mul", "glu_mul_vjp"
    dense = {case.weight, case.up or DENSE} == {DENSE}
    return (f"{case.op.removesuffix('_linear')}_{'gemv' if dense else 'qmv'}",)


def forget() -> None:
    """Run all self-tests anew when they are asked for."""
    with _lock:
        _faults.clear()
        _warned.clear()


def _find(case: Case, M: int, machine: Machine) -> str:
    from ..proof.run import run

    for kernel in kernels(case):
        for rows in measured_at(case.op, M):
            try:
                faults = run(_as_check(kernel, case, rows)).faults
            except Exception as error:
                # Whatever it is, stock must go on.
                faults = (f"{type(error).__name__}: {error}",)
            if faults:
                what = f"{kernel}, M = {rows}: {brief(faults[0])}"
                warn(kernel, case, machine, what)
                return what
    return ""


def brief(text: str) -> str:
    """In a line, not too long, what a compiler or a check says."""
    lines = [line.strip() for line in text.strip().splitlines()]
    # Compilers say first that they failed, and then why.
    chosen = lines[:1] + [line for line in lines[1:] if "error:" in line][:1]
    return " ".join(chosen)[:300]


def _as_check(kernel: str, case: Case, M: int) -> cases.Case:
    from ..proof import cases

    return cases.Case(
        kernel,
        case.variant or "",
        case.dtype,
        M,
        case.N,
        case.K,
        case.weight,
        case.up,
        case.biases,
        case.norm,
        case.residual,
        case.layout or ("" if case.K else "separate"),
        parameters=case.parameters,
    )
