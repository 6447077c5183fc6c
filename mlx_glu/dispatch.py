"""The one place that decides which implementation runs an operation.

A pure function of its arguments and of :func:`use_impl`; it knows nothing of
arrays, so it can be read and tested without MLX.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

OPS = ("glu_mul", "glu_linear", "down_linear")
IMPLS = ("stock", "fused")

#: Rows of x up to which the fused products run. They read each weight once for all
#: rows and multiply without matrix units, so that many rows are stock's.
MAX_M = 5

#: Elements of a result that MLX cannot make a grid of, one thread for each.
MAX_SIZE = 1 << 31


class Choice(NamedTuple):
    """An implementation and the reason for it."""

    op: str
    impl: str
    why: str


_forced: ContextVar[str | None] = ContextVar("mlx_glu_impl", default=None)
_records: ContextVar[tuple[list[Choice], ...]] = ContextVar("choices", default=())


def select(
    op: str,
    *,
    backend: str | None = None,
    M: int = 1,
    N: int = 1,
    pointwise: bool = True,
) -> Choice:
    """Choose the implementation of an operation.

    Args:
        op: one of :data:`OPS`.
        backend: what runs Metal kernels here, as ``jit.backend()`` says: "metal",
            "simulator", "tracer" or None.
        M: rows of the result.
        N: columns of the result.
        pointwise: whether the variant has a functor.

    Returns:
        The implementation and, in words, why.

    Raises:
        ValueError: ``op`` is unknown; or ``use_impl("fused")`` holds and nothing
            here runs Metal kernels.
    """
    if op not in OPS:
        raise ValueError(
            f"[dispatch] expected one of {', '.join(OPS)} but got {op!r}; "
            "add the operation to OPS in dispatch.py"
        )
    choice = Choice(op, *_decide(op, backend, M, N, pointwise))
    for record in _records.get():
        record.append(choice)
    return choice


def _decide(
    op: str, backend: str | None, M: int, N: int, pointwise: bool
) -> tuple[str, str]:
    forced = _forced.get()
    if forced == "stock":
        return "stock", "asked for by use_impl"
    if backend is None:
        if forced == "fused":
            raise ValueError(
                f"[dispatch] use_impl('fused') needs an Apple GPU for {op}; "
                "run it inside `with mlx_glu.simulate():`, or leave use_impl out"
            )
        return "stock", "no Apple GPU here, and no simulate()"
    if backend == "tracer":
        return "stock", "the simulator needs values; mx.compile or mx.vmap has none"
    if not pointwise:
        return "stock", "the variant needs whole rows, kernels take single elements"
    if not 0 < M * N < MAX_SIZE:
        return "stock", f"{M * N} elements; a grid has 1 to {MAX_SIZE - 1} threads"
    if op != "glu_mul" and M > MAX_M:
        return "stock", f"{M} rows; the fused product takes up to {MAX_M}"
    if forced == "fused":
        return "fused", "asked for by use_impl"
    if backend == "simulator":
        return "fused", "asked for by simulate()"
    return "stock", "the fused kernel has not been measured on this machine"


@contextmanager
def use_impl(impl: str) -> Iterator[None]:
    """Prefer one implementation inside a ``with`` block, in this thread or task.

    "stock" always holds. "fused" holds wherever a kernel exists for the case;
    :func:`record` tells where it did not. A function that ``mx.compile`` has traced
    keeps what was chosen then.

    Args:
        impl: one of :data:`IMPLS`.

    Raises:
        ValueError: there is no such implementation.
    """
    if impl not in IMPLS:
        raise ValueError(
            f"[dispatch] expected one of {', '.join(IMPLS)} but got {impl!r}; "
            "leave use_impl out to let select decide"
        )
    token = _forced.set(impl)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def record() -> Iterator[list[Choice]]:
    """Collect the choices that are made inside a ``with`` block, in order."""
    choices: list[Choice] = []
    token = _records.set((*_records.get(), choices))
    try:
        yield choices
    finally:
        _records.reset(token)
