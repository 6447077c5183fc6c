"""MLX's own kernels in the simulator, and what one path of dispatches costs.

The products, copies and binary operations are the headers of the installed wheel,
unchanged. Two texts are not in it and stand here: the elementwise kernels that
``mx.compile`` generates at run time, and ``rms_single_row``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx
import mlx.core as mx
import numpy as np

from .. import metal_sim
from ..metal_sim.arithmetic import Tally, tally
from ..metal_sim.report import Buffer, Report
from ..quantization import QuantizedWeight
from ..reference import Norm

INCLUDE = str(Path(next(iter(mlx.__path__))) / "include")
TYPES = {mx.float32: "float", mx.float16: "half", mx.bfloat16: "bfloat16_t"}
# By bits: affine_qmv_fast takes K that is a multiple of this.
ALIGNMENT = {4: 512, 8: 256}
MAX_THREADS = 1024


def include(*headers: str) -> str:
    """The lines that include headers of MLX's kernels."""
    folder = "mlx/backend/metal/kernels/"
    return "".join(f'#include "{folder}{header}"\n' for header in headers)


QMV = include("utils.h", "steel/gemm/gemm.h", "quantized_utils.h", "quantized.h")
OPS = include("utils.h", "unary_ops.h", "binary_ops.h")
BINARY = OPS + include("binary.h")
COPY = include("utils.h", "copy.h")

# What MLX's rms_norm.metal does for a row of up to 4096: one threadgroup, 4 values a
# thread in single loads, simd_sum, its parts through threadgroup memory.
RMS = (
    include("utils.h")
    + """
template <typename T>
[[kernel]] void rms_single_row(
    const device T* x, const device T* w, device T* out, constant float& eps,
    constant uint& axis_size, uint gid [[threadgroup_position_in_grid]],
    uint lid [[thread_position_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float inverse[1], sums[32];
  float values[4], sum = 0;
  bool inside = lid * 4 < axis_size;
  x += gid * size_t(axis_size) + lid * 4;
  out += gid * size_t(axis_size) + lid * 4;
  w += lid * 4;
  for (int i = 0; i < 4; i++) {
    values[i] = inside ? float(x[i]) : 0;
    sum += values[i] * values[i];
  }
  sum = simd_sum(sum);
  if (simdgroup == 0) sums[lane] = 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (lane == 0) sums[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup == 0) {
    sum = simd_sum(sums[lane]);
    if (lane == 0) inverse[0] = metal::precise::rsqrt(sum / axis_size + eps);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = 0; i < 4 && inside; i++) {
    out[i] = w[i] * static_cast<T>(values[i] * inverse[0]);
  }
}
"""
)

# Results and their operations, as mx.compile fuses mlx-lm's swiglu(gate, up).
SWIGLU = (("s", "Sigmoid", "a"), ("m", "Multiply", "a, s"), ("y", "Multiply", "m, b"))
# nn.gelu_approx, which mx.compile cuts in two: a kernel is at most 11 steps deep.
CUBE = (("y", "Power", "a, 3"),)
GELU = (
    ("m", "Multiply", "0.5, a"),
    ("n", "Multiply", "0.044715, b"),
    ("p", "Add", "a, n"),
    ("q", "Multiply", "0.7978845608028654, p"),
    ("t", "Tanh", "q"),
    ("u", "Add", "1, t"),
    ("y", "Multiply", "m, u"),
)
Tape = tuple[tuple[str, str, str], ...]


def compiled_text(tape: Tape, inputs: int, T: str) -> str:
    """The kernel of contiguous inputs that mx.compile writes: an element a thread."""
    names = "abc"[:inputs]
    parameters = "".join(f"device const {T}* in_{n}, " for n in names)
    reads = "".join(f"  {T} tmp_{n} = in_{n}[index];\n" for n in names)
    steps = ""
    for result, functor, operands in tape:
        values = (
            f"tmp_{o}" if o.isalpha() else f"static_cast<{T}>({o})"
            for o in operands.split(", ")
        )
        steps += f"  {T} tmp_{result} = {functor}()({', '.join(values)});\n"
    return f"""{OPS}
[[kernel]] void compiled(
    {parameters}device {T}* out, uint3 pos [[thread_position_in_grid]],
    uint3 grid [[threads_per_grid]]) {{
  uint index = pos.x + grid.x * (pos.y + grid.y * pos.z);
{reads}{steps}  out[index] = tmp_y;
}}
"""


@dataclass(frozen=True)
class Dispatch:
    """One dispatch.

    Attributes:
        name: of the kernel.
        stage: dispatches from x to this one, one after the other; 0 if x is not used.
        buffers: traffic in device memory, by the path's name for the array.
        report: of the checked run.
        tally: operations.
    """

    name: str
    stage: int
    buffers: dict[str, Buffer]
    report: Report
    tally: Tally


@dataclass
class FfnPath:
    """Dispatches in order, and the arrays between them by name."""

    arrays: dict[str, mx.array]
    dispatches: list[Dispatch] = field(default_factory=list)
    stages: dict[str, int] = field(default_factory=lambda: {"x": 0})

    def add(
        self,
        name: str,
        arrays: dict[str, str],
        output: str,
        checked: Report,
        ops: Tally,
    ) -> None:
        """Append a dispatch; ``arrays`` names what is bound to each parameter."""
        inputs = [a for a in arrays.values() if a != output and a in self.stages]
        stage = 1 + max(self.stages[a] for a in inputs) if inputs else 0
        if inputs:
            self.stages[output] = stage
        found = {arrays[b]: t for b, t in checked.buffers.items() if b in arrays}
        self.dispatches.append(Dispatch(name, stage, found, checked, ops))

    def run(
        self,
        source: str,
        kernel: str,
        template: str,
        inputs: Sequence[str],
        output: str,
        like: tuple[tuple[int, ...], mx.Dtype],
        constants: Sequence[np.ndarray],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
    ) -> None:
        """Run a kernel of MLX: inputs, the output and constants are bound in order."""
        shape, dtype = like
        buffers = [_memory(self.arrays[name]) for name in inputs]
        at = len(buffers)
        buffers += [_memory(mx.zeros(shape, dtype)), *constants]
        reports, programs = {}, {}
        for mode in ("checked", "arithmetic"):
            options = metal_sim.Options(mode=mode, time_limit=300)
            programs[mode] = metal_sim.Program(
                source,
                kernel,
                template,
                includes=(INCLUDE,),
                defines=("MLX_METAL_JIT",),
                mode=mode,
            )
            reports[mode] = metal_sim.run(
                programs[mode],
                dict(enumerate(buffers)),
                grid,
                threadgroup,
                outputs=[at],
                options=options,
            )
        y = mx.array(buffers[at])
        self.arrays[output] = y.view(dtype) if dtype == mx.bfloat16 else y
        parameters = list(reports["checked"].buffers)
        bound = dict(zip(parameters, [*inputs, output], strict=False))
        ops = tally(programs["arithmetic"], reports["arithmetic"])
        self.add(kernel, bound, output, reports["checked"], ops)

    def qmv(self, x: str, name: str, w: QuantizedWeight, output: str) -> None:
        """A product with a packed weight, by the kernel that MLX takes for one row."""
        (M, K), N = self.arrays[x].shape, w.weight.shape[0]
        assert w.biases is not None  # affine
        parts = {"words": w.weight, "scales": w.scales, "biases": w.biases}
        self.arrays |= {f"{name} {part}": a for part, a in parts.items()}
        dtype = self.arrays[x].dtype
        none, one = np.zeros(1, np.int64), _int(1)
        batches = [one, one, none, one, one, none, none, none]
        self.run(
            QMV,
            "affine_qmv" + ("" if K % ALIGNMENT[w.bits] else "_fast"),
            f"{TYPES[dtype]}, {w.group_size}, {w.bits}, false",
            [*(f"{name} {part}" for part in parts), x],
            output,
            ((M, N), dtype),
            [_int(K), _int(N), *batches],
            (32 * M, 2 * -(-N // 8), 1),
            (32, 2, 1),
        )

    def rms(self, x: str, weight: str, eps: float, output: str) -> None:
        """RMSNorm of one row."""
        a = self.arrays[x]
        K, dtype = a.shape[-1], a.dtype
        threads = 32 * -(-K // 128)
        constants = [np.array([eps], np.float32), np.array([K], np.uint32)]
        like = (a.shape, dtype)
        kernel, size = "rms_single_row", (threads, 1, 1)
        names = [x, weight]
        self.run(RMS, kernel, TYPES[dtype], names, output, like, constants, size, size)

    def binary(self, functor: str, a: str, b: str, output: str) -> None:
        """``a`` is an array or the name of a scalar; below 65536 elements N is 1."""
        y = self.arrays[b]
        T = TYPES[y.dtype]
        kind = "binary_vv" if self.arrays[a].size == y.size else "binary_sv"
        self._each(BINARY, kind, f"{T}, {T}, {functor}, 1", [a, b], output, y.dtype)

    def cast(self, a: str, dtype: mx.Dtype, output: str) -> None:
        """A copy in another dtype."""
        T = f"{TYPES[self.arrays[a].dtype]}, {TYPES[dtype]}, 1"
        self._each(COPY, "copy_v", T, [a], output, dtype)

    def compiled(self, tape: Tape, inputs: Sequence[str], output: str) -> None:
        """What ``mx.compile`` makes of elementwise operations."""
        dtype = self.arrays[inputs[0]].dtype
        text = compiled_text(tape, len(inputs), TYPES[dtype])
        self._each(text, "compiled", "", inputs, output, dtype, constants=False)

    def _each(
        self,
        source: str,
        kernel: str,
        template: str,
        inputs: Sequence[str],
        output: str,
        dtype: mx.Dtype,
        *,
        constants: bool = True,
    ) -> None:
        """Run a kernel with a thread for each element."""
        a = self.arrays[inputs[-1]]
        size = [np.array([a.size], np.uint32)] if constants else []
        group = (min(a.size, MAX_THREADS), 1, 1)
        like = (a.shape, dtype)
        grid = (a.size, 1, 1)
        self.run(source, kernel, template, inputs, output, like, size, grid, group)

    def offset(self, norm: Norm, weight: str, dtype: mx.Dtype, output: str) -> None:
        """1 + w in ``dtype``, as Gemma's norm forms it at every step."""
        self.arrays["one"] = mx.array([norm.offset], dtype)
        self.binary("Add", "one", weight, output)


def _int(value: int) -> np.ndarray:
    return np.array([value], np.int32)


def _memory(a: mx.array) -> np.ndarray:
    """An array of a kernel; NumPy has no bfloat16."""
    return np.array(a.view(mx.uint16) if a.dtype == mx.bfloat16 else a)
