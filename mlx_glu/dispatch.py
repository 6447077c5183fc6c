"""The one place that decides which implementation runs an operation.

A pure function of its arguments and of :func:`use_impl`; it knows nothing of
arrays, so it can be read and tested without MLX.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

OPS = ("glu_mul", "glu_linear")
IMPLS = ("stock",)


class Choice(NamedTuple):
    """An implementation and the reason for it."""

    impl: str
    why: str


_forced: ContextVar[str | None] = ContextVar("mlx_glu_impl", default=None)


def select(op: str) -> Choice:
    """Choose the implementation of an operation.

    Args:
        op: one of :data:`OPS`.

    Returns:
        The implementation and, in words, why.

    Raises:
        ValueError: ``op`` is unknown.
    """
    if op not in OPS:
        raise ValueError(
            f"[dispatch] expected one of {', '.join(OPS)} but got {op!r}; "
            "add the operation to OPS in dispatch.py"
        )
    forced = _forced.get()
    if forced is not None:
        return Choice(forced, f"{forced}: asked for by use_impl")
    return Choice("stock", f"stock: no fused kernel for {op} yet")


@contextmanager
def use_impl(impl: str) -> Iterator[None]:
    """Force one implementation inside a ``with`` block, in this thread or task.

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
