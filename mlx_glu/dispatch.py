"""The one place that decides which implementation runs an operation.

A pure function of its arguments, of :func:`use_impl` and of ``MLX_GLU_IMPL``; it
knows nothing of arrays, so it can be read and tested without MLX.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

from .variants import Variant

OPS = ("glu_mul", "glu_linear", "down_linear")
IMPLS = ("stock", "fused")

#: The environment variable that prefers an implementation for a whole process.
ENVIRONMENT = "MLX_GLU_IMPL"

#: Rows of x up to which the fused products run. They read each weight once for all
#: rows and multiply without matrix units, so that many rows are stock's.
MAX_M = 5

#: Elements of a result that MLX cannot make a grid of, one thread for each.
MAX_SIZE = 1 << 31

#: Ranges of M that share a verdict, first and last, for products and for glu_mul.
PRODUCT_RANGES = ((1, 1), (2, MAX_M))
MUL_RANGES = ((1, 1), (2, MAX_M), (MAX_M + 1, 64), (65, 512), (513, MAX_SIZE))


class Case(NamedTuple):
    """What a choice is about: an operation on given sizes and formats.

    Attributes:
        op: one of :data:`OPS`.
        dtype: of x and of the result, for instance "float16".
        N: columns of the result.
        K: columns of x; 0 for glu_mul.
        variant: the unit; None for down_linear.
        weight: format of the gate's weight or of the only one, as
            ``quantization.format_name`` says it; "" for glu_mul.
        up: format of the other weight.
        biases: "", "gate_bias", "up_bias" or "biases"; the only weight's is the first.
        norm: "", "norm" or "gemma", whose weight is stored as w - 1.
        residual: whether one is added.
        layout: "" or how one array packs gate and up, "concat" or "interleave", with
            "_value_first" behind it where the gate is second.
        parameters: dtype of scales, biases and norm; "" for that of x.
    """

    op: str
    dtype: str
    N: int
    K: int = 0
    variant: Variant | None = None
    weight: str = ""
    up: str = ""
    biases: str = ""
    norm: str = ""
    residual: bool = False
    layout: str = ""
    parameters: str = ""

    def __str__(self) -> str:
        parts = [
            *(self.op, str(self.variant or ""), self.dtype),
            f"{self.K}x{self.N}" if self.K else f"{self.N}",
            *(self.weight, self.up, self.biases, self.norm),
            *("residual" if self.residual else "", self.layout),
            f"{self.parameters}_parameters" if self.parameters else "",
        ]
        return "-".join(part for part in parts if part)


class Choice(NamedTuple):
    """An implementation for ``M`` rows of ``case``, and the reason for it."""

    op: str
    impl: str
    why: str
    M: int
    case: Case


#: Says for a case and M what was measured on this machine: an implementation, and why.
Judge = Callable[[Case, int], tuple[str, str]]

_forced: ContextVar[str | None] = ContextVar("mlx_glu_impl", default=None)
_counts: dict[tuple[Case, str], list[int]] = {}
_records: ContextVar[tuple[list[Choice], ...]] = ContextVar("choices", default=())


def select(
    case: Case, M: int, *, backend: str | None = None, judge: Judge | None = None
) -> Choice:
    """Choose the implementation of an operation, and note the choice.

    Args:
        case: what is to be run.
        M: rows of the result.
        backend: what runs Metal kernels here, as ``jit.backend()`` says: "metal",
            "simulator", "tracer", "shapeless" or None.
        judge: asked where a GPU could run the kernel and nobody said which to take.

    Returns:
        The implementation and, in words, why.

    Raises:
        ValueError: the operation is unknown; ``MLX_GLU_IMPL`` is neither "stock" nor
            "fused"; or ``use_impl("fused")`` holds and nothing here runs kernels.
    """
    choice = decide(case, M, backend=backend, judge=judge)
    note(choice)
    return choice


def decide(
    case: Case, M: int, *, backend: str | None = None, judge: Judge | None = None
) -> Choice:
    """As :func:`select`, for who only wants to know."""
    if case.op not in OPS:
        raise ValueError(
            f"[dispatch] expected one of {', '.join(OPS)} but got {case.op!r}; "
            "add the operation to OPS in dispatch.py"
        )
    return Choice(case.op, *_decide(case, M, backend, judge), M, case)


def note(choice: Choice) -> None:
    """Count a choice that is acted on, and tell :func:`record`."""
    _counts.setdefault((choice.case, choice.impl), [0])[0] += 1
    for record in _records.get():
        record.append(choice)


def counts() -> dict[tuple[Case, str], int]:
    """How often each case ran stock and fused in this process; tracing counts once."""
    return {key: n for key, (n,) in _counts.items()}


def _decide(
    case: Case, M: int, backend: str | None, judge: Judge | None
) -> tuple[str, str]:
    asked = _environment()
    if asked == "stock":
        return "stock", f"asked for by {ENVIRONMENT}=stock"
    forced = _forced.get()
    if forced == "stock":
        return "stock", "asked for by use_impl"
    if backend is None:
        if forced == "fused":
            raise ValueError(
                f"[dispatch] use_impl('fused') needs an Apple GPU for {case.op}; "
                "run it inside `with mlx_glu.simulate():`, or leave use_impl out"
            )
        return "stock", "no Apple GPU here, and no simulate()"
    if backend == "tracer":
        return "stock", "the simulator needs values; mx.compile or mx.vmap has none"
    if backend == "shapeless":
        return "stock", "a kernel has fixed sizes; mx.compile(shapeless=True) has none"
    if case.variant is not None and not case.variant.pointwise:
        return "stock", "the variant needs whole rows, kernels take single elements"
    if not 0 < M * case.N < MAX_SIZE:
        return "stock", f"{M * case.N} elements; a grid has 1 to {MAX_SIZE - 1} threads"
    if case.op != "glu_mul" and M > MAX_M:
        return "stock", f"{M} rows; the fused product takes up to {MAX_M}"
    if forced == "fused":
        return "fused", "asked for by use_impl"
    if backend == "simulator":
        return "fused", "asked for by simulate()"
    if asked == "fused":
        return "fused", f"asked for by {ENVIRONMENT}=fused"
    if judge is None:
        return "stock", "the fused kernel has not been measured on this machine"
    return judge(case, M)


def m_range(op: str, M: int) -> tuple[int, int]:
    """The range of M, first and last, whose verdict holds for ``M`` rows."""
    ranges = MUL_RANGES if op == "glu_mul" else PRODUCT_RANGES
    return next((r for r in ranges if r[0] <= M <= r[1]), ranges[-1])


def is_off() -> bool:
    """Whether ``MLX_GLU_IMPL=stock`` keeps everything stock."""
    return _environment() == "stock"


@cache
def _environment() -> str | None:
    """What the environment prefers; read once, as each layer of each token asks."""
    value = os.environ.get(ENVIRONMENT) or None
    if value not in (None, *IMPLS):
        raise ValueError(
            f"[dispatch] {ENVIRONMENT} is one of {', '.join(IMPLS)} but got {value!r}; "
            "unset it, and what was measured decides"
        )
    return value


@contextmanager
def use_impl(impl: str) -> Iterator[None]:
    """Prefer one implementation inside a ``with`` block, in this thread or task.

    "stock" always holds. "fused" holds wherever a kernel exists for the case, tested
    and measured or not; :func:`record` tells where it did not. A function that
    ``mx.compile`` has traced keeps what was chosen then. ``MLX_GLU_IMPL=stock`` holds
    even here.

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
