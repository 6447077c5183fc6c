"""Build Metal kernels: the only caller of ``mx.fast.metal_kernel``.

Kernels run on the GPU, or in the simulator where :func:`simulate` asks for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import mlx.core as mx

from . import metal_source

Kernel = Callable[..., list[mx.array]]

_simulating: ContextVar[bool] = ContextVar("mlx_glu_simulating", default=False)


def backend(inputs: object = None) -> str | None:
    """What runs Metal kernels here.

    Args:
        inputs: of the kernel: an array, or tuples of arrays and of what is none.

    Returns:
        "metal"; "simulator"; "tracer" for the simulator without the value of an
        input, inside ``mx.compile`` or ``mx.vmap``; None where nothing does.
    """
    if _simulating.get():
        return "simulator" if _has_values(inputs) else "tracer"
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    return "metal" if on_gpu and mx.metal.is_available() else None


@contextmanager
def simulate(**options: object) -> Iterator[None]:
    """Run fused kernels in the simulator inside a ``with`` block.

    The simulator compiles the same Metal text for this CPU, runs it with exact
    simdgroups and barriers, and checks each access to memory: a proof, not a fast
    path. It needs Linux and the extra ``sim``. Other threads are not affected;
    ``metal_sim.record`` tells what ran.

    Args:
        **options: fields of ``metal_sim.Options``, for instance ``mode="fast"``.

    Raises:
        ValueError: an option is unknown; in a run, the simulator cannot be used.
        metal_sim.KernelError: in a run, a kernel broke a rule.
    """
    from . import metal_sim

    with metal_sim.options(**options):
        token = _simulating.set(True)
        try:
            yield
        finally:
            _simulating.reset(token)


def run(
    file: str,
    body: str,
    inputs: Mapping[str, mx.array],
    outputs: Mapping[str, tuple[Sequence[int], mx.Dtype]],
    *,
    threads: int,
    threadgroup: int,
) -> list[mx.array]:
    """Run one line of Metal that calls a function of ``metal/<file>``.

    Args:
        file: name of a file in ``metal/``.
        body: the call; it names inputs, outputs and Metal attributes.
        inputs: arrays by name; copied by MLX if they are not row-contiguous.
        outputs: shape and dtype by name.
        threads: of the whole grid, one-dimensional.
        threadgroup: threads of a threadgroup.

    Returns:
        An array for each output.
    """
    kernel = _build(file, body, tuple(inputs), tuple(outputs), backend())
    return kernel(
        inputs=[_in_device_memory(a) for a in inputs.values()],
        output_shapes=[tuple(shape) for shape, _ in outputs.values()],
        output_dtypes=[dtype for _, dtype in outputs.values()],
        grid=(threads, 1, 1),
        threadgroup=(threadgroup, 1, 1),
    )


@lru_cache(maxsize=1024)
def _build(
    file: str,
    body: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    where: str | None,
) -> Kernel:
    header = metal_source.trim(file, body)
    # Older MLX kept libraries by name alone, so the name tells contents apart.
    content = hashlib.sha256((header + body).encode()).hexdigest()[:12]
    build: Any = mx.fast.metal_kernel
    if where == "simulator":
        from . import metal_sim

        build = metal_sim.metal_kernel
    kernel: Kernel = build(
        name=f"mlx_{file.split('.')[0]}_{content}",
        input_names=list(inputs),
        output_names=list(outputs),
        source=body,
        header=header,
    )
    return kernel


def built() -> int:
    """How many kernels this process has built."""
    return _build.cache_info().misses


def _has_values(inputs: object) -> bool:
    if isinstance(inputs, tuple):
        return all(map(_has_values, inputs))
    try:
        if isinstance(inputs, mx.array):
            mx.eval(inputs)
    except ValueError as error:
        if "transformations like compile or vmap" not in str(error):
            raise
        return False
    return True


def _in_device_memory(a: mx.array) -> mx.array:
    """MLX binds fewer than 8 elements as constant memory, another pointer type."""
    if a.size >= 8:
        return a
    return mx.concatenate([a.reshape(-1), mx.zeros(8, a.dtype)])
