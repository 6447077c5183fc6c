"""What is to be measured, from what a user asked for and what this machine can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import mlx.core as mx

from ..quantization import Quantization, choose
from . import shapes
from .arms import Setup
from .layer import MAX_LAYERS, ROTATED
from .machine import on_gpu, runs_kernels

ROWS = (1, 2, 4, 8, 16, 32, 128, 512)
#: A row of 512 takes a CPU a minute.
CPU_ROWS = ROWS[:-1]


def setups(
    names: Sequence[str] | None,
    *,
    modes: Sequence[str] | None,
    bits: Sequence[int] | None,
    group_sizes: Sequence[int] | None,
    dense: bool,
    dtypes: Sequence[str] | None,
) -> list[Setup]:
    """All combinations; None takes this machine's default.

    Raises:
        ValueError: a shape or a format does not exist, a group does not divide a
            shape, or this CPU would give wrong numbers.
    """
    gpu = on_gpu()
    chosen = [shapes.parse(n) for n in names or [DEFAULT_SHAPE[gpu]]]
    formats: list[Quantization | None] = [None] if dense else []
    asked = modes or bits or group_sizes
    if asked or not dense:
        unsaid: tuple[int | None, ...] = (None,)
        each = product(modes or ["affine"], group_sizes or unsaid, bits or unsaid)
        formats += [choose(mode, size, own) for mode, size, own in each]
    floats = [getattr(mx, d) for d in dtypes or [DEFAULT_DTYPE[gpu]]]
    found = [Setup(*parts) for parts in product(chosen, formats, floats)]
    for setup in found:
        _check(setup, gpu)
    return list(dict.fromkeys(found))


#: By whether MLX's default device is a GPU.
DEFAULT_SHAPE = {True: "llama-3.2-1b", False: "smollm2-135m"}
DEFAULT_DTYPE = {True: "bfloat16", False: "float32"}


def _check(setup: Setup, gpu: bool) -> None:
    shape, packed, dtype = setup
    if packed is None:
        return
    for name, size in (("K", shape.K), ("N", shape.N)):
        if size % packed.group_size:
            raise ValueError(
                f"{shape.name} has {name} = {size}, which groups of "
                f"{packed.group_size} do not divide; choose --q-group-size 32, a "
                "--q-mode with smaller groups, or --dense"
            )
    if not gpu and dtype != mx.float32:
        raise ValueError(
            "on a CPU MLX computes packed products in 16 bits: wrong by percents and "
            "many times slower; use --dtype float32, or --dense"
        )


def rows_of_x() -> tuple[int, ...]:
    """This machine's default values of M."""
    return ROWS if on_gpu() else CPU_ROWS


def notes(chosen: Sequence[Setup], rows: Sequence[int] | None) -> Iterator[str]:
    """What a reader of the numbers must know of this machine."""
    if not on_gpu():
        yield (
            "These are times of a CPU, in float32 unless said: MLX's 16-bit products "
            "are slow and, packed, wrong there."
        )
        if chosen and rows is None:
            yield f"M = {ROWS[-1]} takes a CPU a minute: only if --rows has it."
    if not runs_kernels():
        yield (
            "Times of the fused Metal kernels need a Mac; nothing here says anything "
            "about Apple hardware."
        )
    small = (s.shape.name for s in chosen if MAX_LAYERS * least_bytes(s) < ROTATED)
    for name in dict.fromkeys(small):
        yield (
            f"{name} is so small that a cache may hold {MAX_LAYERS} "
            "layers of it: GB/s may be above those of memory."
        )


def least_bytes(setup: Setup) -> int:
    """Of the three weights, without scales."""
    bits = setup.quantization.bits if setup.quantization else 8 * setup.dtype.size
    return 3 * setup.shape.K * setup.shape.N * bits // 8
