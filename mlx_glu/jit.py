"""Build Metal kernels: the only caller of ``mx.fast.metal_kernel``.

Kernels run on the GPU, or in the simulator where :func:`simulate` asks for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx

from . import metal_source
from .tracing import is_shapeless

#: MLX binds arrays of fewer elements as constant memory, another pointer type.
TINY = 8

Kernel = Callable[..., list[mx.array]]

_simulating: ContextVar[bool] = ContextVar("mlx_glu_simulating", default=False)


def backend(inputs: object = None) -> str | None:
    """What runs Metal kernels here.

    Args:
        inputs: of the kernel: an array; or a tree of arrays, such as a module.

    Returns:
        "metal"; "simulator"; "tracer" for the simulator without the value of an
        input, inside ``mx.compile`` or ``mx.vmap``; "shapeless" inside
        ``mx.compile(shapeless=True)``; None where nothing does.
    """
    if _simulating.get():
        return "simulator" if _has_values(inputs) else "tracer"
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    if not (on_gpu and mx.metal.is_available()):
        return None
    return "shapeless" if is_shapeless() else "metal"


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


class Source(NamedTuple):
    """One line of Metal that calls a function of ``metal/<file>``.

    Attributes:
        file: name of a file in ``metal/``.
        body: the call; it names inputs, outputs and Metal attributes.
        inputs: names of the arrays that are read.
        outputs: names of the arrays that are written.
    """

    file: str
    body: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def run(
    source: Source,
    inputs: Sequence[mx.array],
    outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
    *,
    threads: int,
    threadgroup: int,
) -> list[mx.array]:
    """Run a line of Metal.

    Args:
        source: the line.
        inputs: its arrays; copied by MLX if they are not row-contiguous.
        outputs: shape and dtype of each result.
        threads: of the whole grid, one-dimensional.
        threadgroup: threads of a threadgroup.

    Returns:
        An array for each output.
    """
    kernel = _build(*source, _simulating.get())
    return kernel(
        inputs=[a if a.size >= TINY else _padded(a) for a in inputs],
        output_shapes=[shape for shape, _ in outputs],
        output_dtypes=[dtype for _, dtype in outputs],
        grid=(threads, 1, 1),
        threadgroup=(threadgroup, 1, 1),
    )


@lru_cache(maxsize=1024)
def _build(
    file: str,
    body: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    simulated: bool,
) -> Kernel:
    header = metal_source.trim(file, body)
    # Older MLX kept libraries by name alone, so the name tells contents apart.
    content = hashlib.sha256((header + body).encode()).hexdigest()[:12]
    build: Any = mx.fast.metal_kernel
    if simulated:
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
    if isinstance(inputs, dict):
        inputs = tuple(inputs.values())
    if isinstance(inputs, list | tuple):
        return all(map(_has_values, inputs))
    try:
        if isinstance(inputs, mx.array):
            mx.eval(inputs)
    except ValueError as error:
        if "transformations like compile or vmap" not in str(error):
            raise
        return False
    return True


def _padded(a: mx.array) -> mx.array:
    return mx.concatenate([a.reshape(-1), mx.zeros(TINY, a.dtype)])
