"""Launch the matrix-vector kernels: arrays to one line of Metal, tile and grid.

What is fixed for a layer (sizes, formats, variant) is written into that line; the
number of rows is not, so that no prompt or batch compiles a kernel anew: there is
one for a single row and one for 2 to ``MAX_M``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from . import jit
from .dispatch import MAX_M
from .quantization import QuantizedWeight, Weight, rows
from .reference import Norm
from .variants import Variant, float_bits

_LANES, _SIMDGROUPS = 32, 2
_THREADS = _LANES * _SIMDGROUPS  # of a threadgroup

# By mode and bits: the format of metal/quant.h, its codes in metal/codes.h, and the
# fewest neighbouring values that fill the words of one load.
_FORMATS = {
    ("affine", 2): ("Affine", "Masked", 16),
    ("affine", 3): ("Affine", "Straddling", 32),
    ("affine", 4): ("Affine", "Masked", 8),
    ("affine", 5): ("Affine", "Straddling", 32),
    ("affine", 6): ("Affine", "Straddling", 16),
    ("affine", 8): ("Affine", "Bytes", 8),
    ("mxfp4", 4): ("Mxfp", "E2M1", 8),
    ("mxfp8", 8): ("Mxfp", "E4M3", 8),
    ("nvfp4", 4): ("Nvfp", "E2M1", 8),
}

_TYPES = {
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
    mx.uint8: "uint8_t",
}
_PLACE = (
    "{threadgroup_position_in_grid.x, simdgroup_index_in_threadgroup, "
    "thread_index_in_simdgroup}"
)
_NONE = "None()"


class Launch(NamedTuple):
    """What is fixed of a launch, but for the number of rows.

    Attributes:
        source: the line.
        N: columns of the result.
        threads: of the grid.
        widened: places, among the arrays, of those that are read as float32.
    """

    source: jit.Source
    N: int
    threads: int
    widened: tuple[int, ...]

    def run(self, x: mx.array, *arrays: mx.array) -> mx.array:
        """Launch it on x [..., K] and the arrays of the call, as that binds them."""
        *rows, K = x.shape
        inputs = [x.reshape(-1, K), *arrays]
        for i in self.widened:
            inputs[i] = inputs[i].astype(mx.float32)
        (y,) = jit.run(
            self.source,
            inputs,
            [((*rows, self.N), x.dtype)],
            threads=self.threads,
            threadgroup=_THREADS,
        )
        return y


def by_rows(build: Callable[..., Launch]) -> Callable[..., mx.array]:
    """A product on arrays whose sizes are fixed, but for the rows of x.

    Args:
        build: of x and the other arrays; asked for one row and for a few.

    Returns:
        What runs the launch that fits an x.
    """
    built: dict[int, Launch] = {}

    def run(x: mx.array, *arrays: mx.array) -> mx.array:
        M = x.size // x.shape[-1]
        # Of a tiny x each number of rows has a text of its own.
        key = -M if x.size < jit.TINY else min(M, 2)
        launch = built.get(key)
        if launch is None:
            launch = built[key] = build(x, *arrays)
        return launch.run(x, *arrays)

    return run


def glu_linear(
    x: mx.array,
    gate: Weight,
    up: Weight,
    variant: Variant,
    gate_bias: mx.array | None = None,
    up_bias: mx.array | None = None,
    norm: Norm | None = None,
) -> Launch:
    """``phi(norm(x) @ gate.T + gate_bias) * psi(norm(x) @ up.T + up_bias)``.

    One dispatch for 1 to ``MAX_M`` rows; arguments as in ``ops.glu_linear``, which
    checks them. It binds x, norm, gate, up and their biases, in this order. Kernels:
    ``metal/glu_qmv.metal``, ``metal/glu_gemv.metal``.
    """
    call = _Call(x, (gate, up), normed=norm is not None)
    shares = f"threadgroup float shares[{_LANES * call.tile.max_M}]; "
    arguments = (
        call.norm(norm),
        call.weight("gate", gate),
        call.weight("up", up),
        call.array("gate_bias", gate_bias),
        call.array("up_bias", up_bias),
        "y",
        _NONE if norm is None else "shares",
    )
    text = f"glu_matvec<{variant.msl}, Layer>"
    return call.launch("glu", text, arguments, before="" if norm is None else shares)


def down_linear(
    x: mx.array,
    weight: Weight,
    bias: mx.array | None = None,
    residual: mx.array | None = None,
) -> Launch:
    """``x @ weight.T + bias + residual``, rounded once.

    One dispatch for 1 to ``MAX_M`` rows; arguments as in ``ops.down_linear``, which
    checks them. It binds them in this order. Kernels: ``metal/down_qmv.metal``,
    ``metal/down_gemv.metal``.
    """
    call = _Call(x, (weight,), normed=False)
    arguments = (
        call.weight("weight", weight),
        call.array("bias", bias),
        call.array("residual", residual),
        "y",
    )
    return call.launch("down", "down_matvec<Layer>", arguments)


class Tile(NamedTuple):
    """``Tile`` of metal/matvec.h, which explains it."""

    K: int
    N: int
    V: int
    max_M: int
    R: int

    def __str__(self) -> str:
        return f"Tile<{', '.join(map(str, self))}>"

    @property
    def threadgroups(self) -> int:
        """Threadgroups of the grid."""
        return -(-self.N // (self.R * _SIMDGROUPS))


def choose_tile(K: int, M: int, weights: Sequence[Weight], *, normed: bool) -> Tile:
    """Choose how a product is cut up.

    Args:
        K: columns of the weights.
        M: rows of x.
        weights: one or two, of any format.
        normed: whether a norm is fused.

    Returns:
        The tile. V divides K, fills whole words of every format, and leaves the
        fewest lanes idle in the last round over K.
    """
    packed = [w for w in weights if isinstance(w, QuantizedWeight)]
    least = [_FORMATS[w.mode, w.bits][2] for w in packed]
    # The first of equals: 16 columns leave registers for more rows of a weight.
    sizes = (16, 32, 8) if least else (8, 4, 1)
    V = min(
        (size for size in sizes if K % size == 0 and size >= max(least, default=1)),
        key=lambda size: -(-K // (size * _LANES)) * size,
    )
    if M > 1:
        return Tile(K, rows(weights[0]), V, MAX_M, 2)
    # A norm costs each simdgroup some operations for each column; more rows of the
    # weights share them. Beyond 16 columns their words would fill the registers.
    return Tile(K, rows(weights[0]), V, 1, 8 if normed and V <= 16 else 4)


class _Call:
    """One launch being put together: names bound so far and the tile."""

    def __init__(self, x: mx.array, weights: Sequence[Weight], *, normed: bool) -> None:
        K = x.shape[-1]
        M = x.size // K
        self.tile = choose_tile(K, M, weights, normed=normed)
        packed = any(isinstance(w, QuantizedWeight) for w in weights)
        self.kind = "qmv" if packed else "gemv"
        # A tiny x is padded, and its shape with it; see jit.
        self.M = str(M) if x.size < jit.TINY else "uint(x_shape[0])"
        self.names = ["x"]
        self.widened: list[int] = []

    def array(self, name: str, a: mx.array | None) -> str:
        """Bind an array; returns what stands for it in Metal."""
        if a is None:
            return _NONE
        self.names.append(name)
        return name

    def weight(self, name: str, w: Weight) -> str:
        if not isinstance(w, QuantizedWeight):
            return f"Dense<Layer, {_TYPES[w.dtype]}>{{{self.array(name, w)}}}"
        kind = w.scales.dtype
        if w.biases is not None and w.biases.dtype != kind:
            # A format has one type for both; the wider keeps the bits of either.
            kind, first = mx.float32, len(self.names)
            self.widened += first + 1, first + 2
        family, codes, _ = _FORMATS[w.mode, w.bits]
        form = f"{family}<{codes}, {w.bits}, {w.group_size}>"
        parts = (w.weight, "_w"), (w.scales, "_s"), (w.biases, "_b")
        arrays = ", ".join(self.array(name + suffix, a) for a, suffix in parts)
        return f"Packed<{form}, Layer, {_TYPES[kind]}>{{{arrays}}}"

    def norm(self, norm: Norm | None) -> str:
        if norm is None:
            return "NoNorm()"
        eps = float_bits(norm.eps)
        weight = self.array("norm", norm.weight)
        kind = _TYPES[norm.weight.dtype]
        return f"RmsNorm<{eps}, {int(norm.offset)}, {kind}>{{{weight}}}"

    def launch(
        self, op: str, text: str, arguments: Sequence[str], *, before: str = ""
    ) -> Launch:
        given = ", ".join(("x", *arguments, self.M, _PLACE))
        body = f"using namespace mlx_glu; using Layer = {self.tile}; {before}{text}"
        source = jit.Source(
            f"{op}_{self.kind}.metal", f"{body}({given});", tuple(self.names), ("y",)
        )
        threads = self.tile.threadgroups * _THREADS
        return Launch(source, self.tile.N, threads, tuple(self.widened))
