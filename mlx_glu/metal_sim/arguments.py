"""Arguments of a kernel's call: what fits, and arrays as the kernel's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .launch import MAX_THREADS
from .signature import type_name

_TAG = "[metal_kernel]"

Value = mx.array | bool | int | float
Size = tuple[int, int, int]


def expect(what: str, got: Sequence[object], names: Sequence[str]) -> None:
    """Check that an argument has one entry for each name.

    Raises:
        ValueError: it has more or fewer.
    """
    if len(got) != len(names):
        raise ValueError(
            f"{_TAG} expected `{what}` to have size {len(names)} "
            f"({', '.join(names) or 'no names'}), but got size {len(got)}"
        )


def dispatch(grid: object, threadgroup: object) -> tuple[Size, Size]:
    """Check the sizes of a launch; shrink the threadgroup to the grid as MLX does.

    Raises:
        ValueError: not three positive integers, or too many threads.
    """
    threads, limit = _size("grid", grid), _size("threadgroup", threadgroup)
    x, y, z = (min(pair) for pair in zip(threads, limit, strict=True))
    if x * y * z > MAX_THREADS:
        raise ValueError(
            f"{_TAG} a threadgroup has at most {MAX_THREADS} threads, but {(x, y, z)} "
            f"has {x * y * z}; use a smaller threadgroup"
        )
    return threads, (x, y, z)


def _size(what: str, value: object) -> Size:
    given = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(given) != 3 or not all(type(n) is int and n > 0 for n in given):
        raise ValueError(
            f"{_TAG} `{what}` is three positive integers, but got {value!r}; it counts "
            "threads"
        )
    x, y, z = given
    return x, y, z


def input_buffer(
    array: mx.array, contiguous: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the memory behind an input, and what the kernel may ask of its layout.

    Args:
        array: any shape; has values.
        contiguous: copy it row by row if its strides differ.

    Returns:
        One-dimensional elements, bfloat16 as uint16; arrays for the keys of
        :data:`~mlx_glu.metal_sim.signature.LAYOUT`.

    Raises:
        ValueError: it is a tracer, or lies backwards in memory.
    """
    view = _values(array)
    if contiguous:
        view = np.ascontiguousarray(view).reshape(view.shape)
    strides = np.array([s // view.itemsize for s in view.strides], np.int64)
    if view.flags.c_contiguous:
        data = view.reshape(-1)
    else:
        if (strides < 0).any():
            raise ValueError(
                f"{_TAG} an input has strides {strides.tolist()}, which the simulator "
                "cannot give to a kernel; apply mx.contiguous to it"
            )
        # The allocation up to the last element, gaps included.
        extent = 1 + int(((np.array(view.shape) - 1) * strides).sum())
        data = np.lib.stride_tricks.as_strided(view, (extent,), (view.itemsize,))
    layout: dict[str, np.ndarray] = {
        "shape": np.array(view.shape, np.int32),
        "strides": strides,
        "ndim": np.array([view.ndim], np.int32),
    }
    return data, layout


def _values(array: mx.array) -> np.ndarray:
    type_name(array.dtype)
    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    try:
        mx.eval(plain)
    except ValueError:
        raise ValueError(
            f"{_TAG} the simulator needs values, but an input is traced by mx.compile "
            "or mx.vmap; call the kernel outside of them"
        ) from None
    return np.asarray(plain)


def output(
    shape: Sequence[int], dtype: mx.Dtype, init_value: float | None
) -> np.ndarray:
    """Make the memory of an output; what nobody writes is NaN, -1 or true.

    Raises:
        ValueError: the shape is not a sequence of sizes.
    """
    sizes = tuple(shape) if isinstance(shape, tuple | list) else (-1,)
    if not all(type(n) is int and n >= 0 for n in sizes):
        raise ValueError(
            f"{_TAG} an output shape is a tuple of sizes, but got {shape!r}"
        )
    if init_value is not None:
        return _values(mx.full(sizes, init_value, dtype)).copy()
    plain = mx.uint16 if dtype == mx.bfloat16 else dtype
    memory: np.ndarray = np.asarray(mx.zeros(sizes, plain)).copy()
    memory.reshape(-1).view(np.uint8)[...] = 0xFF
    return memory


def to_mlx(memory: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """Return an output's memory as an array of its dtype."""
    if dtype == mx.bool_:
        return mx.array(memory.view(np.uint8) != 0)
    array = mx.array(memory)
    return array.view(mx.bfloat16) if dtype == mx.bfloat16 else array


def opaque(inputs: Sequence[mx.array], outputs: list[mx.array]) -> list[mx.array]:
    """Tie outputs to inputs, so that a derivative is refused rather than zero."""

    @mx.custom_function
    def kernel(*_: mx.array) -> list[mx.array]:
        return outputs

    @kernel.vjp
    def _vjp(*_: object) -> None:
        raise ValueError(_NO_DERIVATIVE)

    @kernel.jvp
    def _jvp(*_: object) -> None:
        raise ValueError(_NO_DERIVATIVE)

    tied: Any = kernel(*inputs)
    return list(tied)


_NO_DERIVATIVE = (
    f"{_TAG} a kernel has no derivative of its own, but mx.grad or mx.jvp asked "
    "for one; call it in an mx.custom_function that has it"
)
