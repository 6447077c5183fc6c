"""``metal_kernel``: what ``mx.fast.metal_kernel`` offers, run by the simulator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from . import arguments
from .launch import run
from .lint import lint
from .options import current
from .program import Program
from .report import Report
from .signature import Signature, Template

_TAG = "[metal_kernel]"
# The preamble that MLX puts before a kernel, from the headers in its wheel.
_PREAMBLE = '#include "mlx/backend/metal/kernels/utils.h"\n#line 1 "{}.metal"\n'
_DEFINES = ("MLX_METAL_JIT",)


@dataclass(frozen=True)
class Run:
    """One run of a kernel, as :func:`record` collects it."""

    name: str
    text: str
    program: Program
    report: Report

    def lint(self) -> tuple[str, ...]:
        """As :meth:`MetalKernel.lint`, of the text that was run."""
        return _lint(self.name, self.text)


_recorders: ContextVar[tuple[list[Run], ...]] = ContextVar("recorders", default=())


@contextmanager
def record() -> Iterator[list[Run]]:
    """Collect every finished run inside a ``with`` block, in order."""
    runs: list[Run] = []
    token = _recorders.set((*_recorders.get(), runs))
    try:
        yield runs
    finally:
        _recorders.reset(token)


@lru_cache(1)
def _include() -> str:
    # mlx is a namespace package: it has a path but no file.
    import mlx

    return str(Path(next(iter(mlx.__path__))) / "include")


@lru_cache(256)
def _program(source: str, kernel: str, mode: str, contract: str) -> Program:
    return Program(
        source,
        kernel,
        includes=(_include(),),
        defines=_DEFINES,
        mode=mode,
        contract=contract,
    )


@lru_cache(4096)
def _lint(name: str, text: str) -> tuple[str, ...]:
    source = _PREAMBLE.format(name) + text
    return tuple(lint(source, includes=(_include(),), defines=_DEFINES))


class MetalKernel:
    """A kernel made by :func:`metal_kernel`; call it to run it."""

    def __init__(self, signature: Signature, ensure_row_contiguous: bool) -> None:
        self._signature = signature
        self._contiguous = ensure_row_contiguous

    def __call__(
        self,
        *,
        inputs: Sequence[arguments.Value],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Template | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: object = None,
    ) -> list[mx.array]:
        """Run the kernel, as the options of the simulator say.

        Args:
            inputs: an array or a scalar for each input name.
            output_shapes: a shape for each output name.
            output_dtypes: a dtype for each output name.
            grid: threads in x, y, z; not threadgroups.
            threadgroup: threads of a threadgroup in x, y, z.
            template: names and values of template arguments.
            init_value: what outputs hold before; their bits are all 1 if None.
            verbose: print the text that is compiled.
            stream: taken for the sake of the interface.

        Returns:
            An array for each output name.

        Raises:
            KernelError: the checker found a fault; its report says which.
            ValueError: an argument does not fit, or the kernel does not compile.
        """
        signature, options = self._signature, current()
        arrays = self._arrays(inputs)
        arguments.expect("output_shapes", output_shapes, signature.output_names)
        sizes = arguments.dispatch(grid, threadgroup)
        kernel, text = self._text(arrays, output_dtypes, template)
        if verbose:
            print(f"Generated source code for `{signature.name}`:\n```\n{text}\n```")
        source = _PREAMBLE.format(signature.name) + text
        program = _program(source, kernel, options.mode, options.contract)
        buffers = self._inputs(arrays)
        first = len(buffers)
        for shape, dtype in zip(output_shapes, output_dtypes, strict=True):
            buffers.append(arguments.output(shape, dtype, init_value))
        report = run(
            program,
            dict(enumerate(buffers)),
            *sizes,
            outputs=range(first, len(buffers)),
            initialised=init_value is not None,
            options=options,
        )
        for runs in _recorders.get():
            runs.append(Run(signature.name, text, program, report))
        results = map(arguments.to_mlx, buffers[first:], output_dtypes)
        return arguments.opaque(arrays, list(results))

    def lint(
        self,
        *,
        inputs: Sequence[arguments.Value],
        output_dtypes: Sequence[mx.Dtype],
        template: Template | None = None,
    ) -> list[str]:
        """Check the text against the rules of MSL that running it does not need.

        Args:
            inputs: an array or a scalar for each input name; values do not matter.
            output_dtypes: a dtype for each output name.
            template: names and values of template arguments.

        Returns:
            Complaints with file and line; empty if there are none.
        """
        arrays = self._arrays(inputs)
        _, text = self._text(arrays, output_dtypes, template)
        return list(_lint(self._signature.name, text))

    def _arrays(self, inputs: Sequence[arguments.Value]) -> list[mx.array]:
        arguments.expect("inputs", inputs, self._signature.input_names)
        return [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]

    def _text(
        self,
        arrays: Sequence[mx.array],
        output_dtypes: Sequence[mx.Dtype],
        template: Template | None,
    ) -> tuple[str, str]:
        arguments.expect("output_dtypes", output_dtypes, self._signature.output_names)
        return self._signature.text(arrays, output_dtypes, template or ())

    def _inputs(self, arrays: Sequence[mx.array]) -> list[np.ndarray]:
        buffers = []
        for position, array in enumerate(arrays):
            data, layout = arguments.input_buffer(array, self._contiguous)
            keys = self._signature.layout(position, array.ndim)
            buffers += [data, *(layout[key] for key in keys)]
        return buffers


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: Mapping[str, str] | None = None,
) -> MetalKernel:
    """Make a kernel from the body of a Metal function, as MLX does.

    Args:
        name: of the kernel; part of the function's name.
        input_names: parameters to read.
        output_names: parameters to write.
        source: the body; the signature is written around it.
        header: text before the function.
        ensure_row_contiguous: copy inputs that are not.
        atomic_outputs: outputs are ``device atomic<T>*``.
        compile_options: ``{"math_mode": "safe"}``; the simulator has no other mode.

    Raises:
        ValueError: there is no output, or another compile option.
    """
    if not output_names:
        raise ValueError(f"{_TAG} a kernel has at least one output, but got none")
    for key, value in (compile_options or {}).items():
        if (key, value) != ("math_mode", "safe"):
            raise ValueError(
                f"{_TAG} the simulator compiles with math_mode = 'safe' alone, but got "
                f"{key} = {value!r}; leave it out, or vary the option contract"
            )
    signature = Signature(
        name, tuple(input_names), tuple(output_names), source, header, atomic_outputs
    )
    return MetalKernel(signature, ensure_row_contiguous)
