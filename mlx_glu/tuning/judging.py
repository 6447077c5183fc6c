"""Fused or stock on this machine: what was measured here, else a table."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..dispatch import OPS, Case, m_range
from . import self_test
from .machine import Machine, vector_limit
from .store import Store, default_store
from .verdicts import key_of


class Row(NamedTuple):
    """What holds for some cases before anything is measured on a machine.

    Attributes:
        architecture: of the GPU, or how it begins.
        ops: the operations.
        weights: formats of the gate's or of the only weight; () for all.
        ranges: of M; () for all.
        impl: the implementation.
        why: for people; of "fused" it says where, when and how that was measured.
    """

    architecture: str
    ops: tuple[str, ...]
    weights: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]
    impl: str
    why: str


#: The first row that fits holds. No Apple chip has been measured yet.
BUILT_IN = (
    Row(
        *("", OPS, (), (), "stock"),
        "not measured on this machine; mlx_glu.tune(model) measures it",
    ),
)


@lru_cache(maxsize=1 << 14)
def judge(case: Case, M: int) -> tuple[str, str]:
    """An implementation for ``M`` rows of a case on this machine's GPU, and why.

    What was answered once is one look into a table, without files or arrays;
    :func:`forget` empties it.
    """
    return decide(case, M, Machine.here(), default_store())


def decide(case: Case, M: int, machine: Machine, store: Store) -> tuple[str, str]:
    """As :func:`judge`, for any machine and store.

    Args:
        case: what a kernel exists for.
        M: rows of the result.
        machine: whose verdicts hold.
        store: where they are.

    Returns:
        The implementation and, in words, why. Where the built-in table alone says
        "fused", the kernel is tested first.
    """
    if case.op != "glu_mul" and machine.has_neural_accelerators:
        limit = vector_limit(machine.generation, machine.suffix, case.K, case.N)
        if limit <= M:
            return (
                "stock",
                f"{M} rows; MLX can use the chip's accelerators from {limit}",
            )
    verdict = store.verdicts(machine).get(key_of(case, M))
    if verdict is not None:
        return verdict.impl, verdict.why
    row = next(row for row in BUILT_IN if _fits(row, case, M, machine))
    if row.impl == "fused" and (fault := self_test.fault(case, M, machine)):
        return "stock", f"its self-test failed here: {fault}"
    return row.impl, row.why


def forget() -> None:
    """Answer from the store again what :func:`judge` has answered before."""
    judge.cache_clear()


def _fits(row: Row, case: Case, M: int, machine: Machine) -> bool:
    return (
        machine.architecture.startswith(row.architecture)
        and case.op in row.ops
        and (not row.weights or case.weight in row.weights)
        and (not row.ranges or m_range(case.op, M) in row.ranges)
    )
