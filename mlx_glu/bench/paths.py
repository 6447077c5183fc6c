"""Both paths of an FFN, dispatch by dispatch, and what each may not exceed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .. import metal_sim, ops
from ..jit import simulate
from ..metal_sim.arithmetic import tally
from ..proof.oracle import linear64, oracle_mul, rms_norm64
from ..proof.tolerance import f64
from ..quantization import QuantizedWeight, take_rows
from ..variants import get
from .mlx_kernels import ALIGNMENT, CUBE, GELU, SWIGLU, FfnPath

GROUP, BITS, EPS = 64, (4, 8), 1e-6
# What multiplies weights: read again by every simdgroup, and served by a cache.
SHARED = ("x", "norm", "1 + norm", "normed", "h")
PARTS = [
    f"{w} {p}" for w in ("gate", "up", "down") for p in ("words", "scales", "biases")
]
# Off MLX's alignment of K all counts but these must be less: weights are read once
# by both, and each simdgroup of 4 rows reads h.
EQUAL = ("weights_read", "h_read")


@dataclass(frozen=True)
class Shape:
    """An FFN. Gemma's has a norm of 1 + w, and another before the residual."""

    model: str
    K: int
    N: int
    variant: str = "swiglu"
    gemma: bool = False

    def aligned(self, bits: int) -> bool:
        """Whether MLX runs its fast kernel in all three products."""
        return self.K % ALIGNMENT[bits] == self.N % ALIGNMENT[bits] == 0


class Layer:
    """Random inputs of an FFN of one shape."""

    def __init__(self, shape: Shape, bits: int, dtype: mx.Dtype) -> None:
        self.shape, self.bits, self.dtype = shape, bits, dtype
        self._rng = np.random.default_rng(0)
        K, N = shape.K, shape.N
        self.x = self._normal((1, K))
        self.gate, self.up, self.down = map(self._weight, (N, N, K), (K, K, N))
        self.norm, self.post = (
            ops.Norm(self._normal((K,), 0.1, 1 - shape.gemma), EPS, int(shape.gemma))
            for _ in range(2)
        )

    def arrays(self) -> dict[str, mx.array]:
        """What a path begins with."""
        return {"x": self.x, "norm": self.norm.weight, "post": self.post.weight}

    @property
    def least(self) -> int:
        """Bytes of what must be read and of the result."""
        arrays = [self.x, self.x, self.norm.weight]
        arrays += [self.post.weight] if self.shape.gemma else []
        for w in (self.gate, self.up, self.down):
            arrays += [a for a in (w.weight, w.scales, w.biases) if a is not None]
        return sum(a.nbytes for a in arrays)

    def oracle(self) -> dict[str, np.ndarray]:
        """The product h and the result in float64."""
        x = f64(self.x)
        a = rms_norm64(x, self.norm)
        h = oracle_mul(
            _product(a, self.gate), _product(a, self.up), get(self.shape.variant)
        )
        y = _product(h, self.down)
        return {"h": h, "y": x + (rms_norm64(y, self.post) if self.shape.gemma else y)}

    def _normal(
        self, shape: tuple[int, ...], scale: float = 1.0, mean: float = 0.0
    ) -> mx.array:
        return mx.array(self._rng.normal(mean, scale, shape)).astype(self.dtype)

    def _weight(self, n: int, k: int) -> QuantizedWeight:
        words = self._rng.integers(0, 2**32, (n, k * self.bits // 32), np.uint32)
        # Uniform codes: the weight has a standard deviation of about 1 / sqrt(k).
        size = (12 / k) ** 0.5 / 2**self.bits
        scales = size * self._rng.uniform(0.5, 1.5, (n, k // GROUP))
        biases = -scales * 2**self.bits / 2
        floats = [mx.array(a).astype(self.dtype) for a in (scales, biases)]
        q = self.bits, "affine"
        return QuantizedWeight(mx.array(words), floats[0], floats[1], GROUP, *q)


def run_stock(layer: Layer) -> FfnPath:
    """What mlx-lm's block runs from the norm to the residual."""
    path, gemma = FfnPath(layer.arrays()), layer.shape.gemma
    weight = "norm"
    if gemma:
        weight = "1 + norm"
        path.offset(layer.norm, "norm", layer.dtype, weight)
    path.rms("x", weight, EPS, "normed")
    path.qmv("normed", "gate", layer.gate, "gate")
    path.qmv("normed", "up", layer.up, "up")
    if gemma:
        path.compiled(CUBE, ["gate"], "cube")
        path.compiled(GELU, ["gate", "cube"], "gelu")
        path.binary("Multiply", "gelu", "up", "h")
    else:
        path.compiled(SWIGLU, ["gate", "up"], "h")
    path.qmv("h", "down", layer.down, "out" if gemma else "down")
    if gemma:
        path.offset(layer.post, "post", layer.dtype, "1 + post")
        path.rms("out", "1 + post", EPS, "down")
    path.binary("Add", "x", "down", "y")
    return path


def run_ours(layer: Layer) -> FfnPath:
    """What this package's block runs: models/llama.py, models/gemma.py."""
    path, gemma = FfnPath(layer.arrays()), layer.shape.gemma
    residual = None if gemma else layer.x
    runs = {}
    for mode in ("checked", "arithmetic"):
        with (
            simulate(mode=mode, strict=2, time_limit=300),
            metal_sim.record() as runs[mode],
        ):
            h = ops.glu_linear(
                layer.x, layer.gate, layer.up, layer.shape.variant, norm=layer.norm
            )
            y = ops.down_linear(h, layer.down, residual=residual)
        path.arrays |= {"h": h, "out" if gemma else "y": y}
    bound = (
        {"x": "x", "norm": "norm", "y": "h", **_parts("gate"), **_parts("up")},
        {"x": "h", "residual": "x", **_parts("weight", "down")},
    )
    bound[1]["y"] = "out" if gemma else "y"
    for names, run, other in zip(bound, *runs.values(), strict=True):
        counted = tally(other.program, other.report)
        path.add(run.name, names, names["y"], run.report, counted)
    if gemma:
        _post_norm(path, layer)
    return path


def _post_norm(path: FfnPath, layer: Layer) -> None:
    """reference.rms_norm: 1 + w, and with it the norm, in float32."""
    path.cast("post", mx.float32, "post in float32")
    path.offset(layer.post, "post in float32", mx.float32, "1 + post")
    path.cast("out", mx.float32, "out in float32")
    path.rms("out in float32", "1 + post", EPS, "down in float32")
    path.cast("down in float32", layer.dtype, "down")
    path.binary("Add", "x", "down", "y")


def _parts(parameter: str, name: str = "") -> dict[str, str]:
    parts = (("_w", "words"), ("_s", "scales"), ("_b", "biases"))
    return {parameter + short: f"{name or parameter} {part}" for short, part in parts}


def _product(x: np.ndarray, w: QuantizedWeight) -> np.ndarray:
    parts = []
    for n in range(0, len(w.weight), 1024):  # in parts, as float64 is large
        parts.append(linear64(x, take_rows(w, slice(n, n + 1024))))
    return np.concatenate(parts, axis=-1)


@dataclass(frozen=True)
class Counts:
    """What one path costs; fewer is better.

    ``x_read`` is of x and the norm's weight, ``h_read`` of h, each time they are
    read; ``bytes_once`` is all bytes, where a dispatch reads those once. ``rest`` is
    what is neither weights, x nor h read, in bytes.
    """

    dispatches: int
    stages: int
    threadgroups: int
    weights_read: int
    x_read: int
    h_read: int
    rest: int
    bytes_once: int
    loads: int
    simd_operations: int
    operations: int


def count(path: FfnPath) -> Counts:
    """Sum up a path."""
    done = path.dispatches
    traffic = [(name, b) for d in done for name, b in d.buffers.items()]
    weights, x, h = (
        sum(b.read_merged for name, b in traffic if name in names)
        for names in (PARTS, [name for name in SHARED if name != "h"], ["h"])
    )
    moved = sum(b.read_merged + b.written_merged for _, b in traffic)
    shared = [b for name, b in traffic if name in SHARED and b.loads]
    return Counts(
        dispatches=len(done),
        stages=max(d.stage for d in done),
        threadgroups=sum(d.report.threadgroups for d in done),
        weights_read=weights,
        x_read=x,
        h_read=h,
        rest=moved - weights - x - h,
        bytes_once=moved - sum(b.read_merged - b.touched for b in shared),
        loads=sum(b.loads for _, b in traffic),
        simd_operations=sum(d.report.simd_operations for d in done),
        operations=sum(sum(vars(d.tally).values()) for d in done),
    )


@dataclass
class Comparison:
    """Both paths of one layer, run and compared with float64."""

    layer: Layer
    stock: FfnPath
    ours: FfnPath

    @classmethod
    def of(cls, shape: Shape, bits: int, dtype: mx.Dtype = mx.bfloat16) -> Comparison:
        """Run both.

        Raises:
            AssertionError: a result is wrong.
        """
        layer = Layer(shape, bits, dtype)
        compared = cls(layer, run_stock(layer), run_ours(layer))
        limit = 4 * float(mx.finfo(dtype).eps)
        for name, exact in layer.oracle().items():
            stock, ours = (
                _error(path.arrays[name], exact)
                for path in (compared.stock, compared.ours)
            )
            assert ours <= stock <= limit, (
                f"{shape.model}, {bits} bits: {name} errs by {ours:.1e}, stock's by "
                f"{stock:.1e} of its size; expected ours <= stock <= {limit:.1e}"
            )
        return compared

    def violations(self) -> list[str]:
        """What ours does more often than it may, a line each."""
        found = list(self._moved_twice())
        theirs, own = count(self.stock), count(self.ours)
        least, better = self.layer.least, not self.layer.shape.aligned(self.layer.bits)
        if own.bytes_once > 1.01 * least:
            found.append(f"bytes_once is {own.bytes_once}, above 1.01 x {least}")
        for name, mine in vars(own).items():
            limit = getattr(theirs, name)
            if mine > limit:
                found.append(f"{name} is {mine}, stock's {limit}")
            elif better and mine == limit and name not in EQUAL:
                found.append(f"{name} is stock's {limit}; expected fewer")
        case = f"{self.layer.shape.model}, {self.layer.bits} bits: "
        return [case + line for line in found]

    def _moved_twice(self) -> Iterable[str]:
        """Weights and outputs of our two kernels that are not moved exactly once."""
        for d in self.ours.dispatches[:2]:
            for name, b in d.buffers.items():
                if b.written_merged:
                    moved, size = b.written_merged, b.size - b.unwritten
                elif name in PARTS:
                    moved, size = b.read_merged, b.size
                else:
                    continue
                if not moved == size == b.size:
                    yield f"{name}: {moved} of {b.size} bytes moved; expected each once"


def _error(y: mx.array, exact: np.ndarray) -> float:
    return float(np.sqrt(((f64(y) - exact) ** 2).mean() / (exact**2).mean()))
