"""One FFN in every way it can be run, what each way moves, and whether it is right."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .. import dispatch, ops, variants
from ..linear_layers import weight_of
from ..proof.oracle import down_linear64, glu_linear64
from ..proof.tolerance import EPS, f64, worst
from ..quantization import Quantization, Weight, dtype_name, take_rows
from .shapes import Shape

#: Of the norm before the FFN.
NORM_EPS = 1e-5

#: Rows of a weight, that is columns of a result, that are compared with float64.
CHECKED = 1024

#: MLX's own may be wrong, as its 16-bit packed products on a CPU are. Steps of the
#: dtype that an error may have over root mean squares, beside what
#: ``proof.tolerance`` grants a float32 sum.
SANE = 4


class Setup(NamedTuple):
    """What is timed: a shape, the format of its weights (None: floats), a dtype."""

    shape: Shape
    quantization: Quantization | None
    dtype: mx.Dtype

    def __str__(self) -> str:
        packed = self.quantization
        return ", ".join(
            (
                f"{self.shape.name} ({self.shape.variant}, K {self.shape.K}, "
                f"N {self.shape.N})",
                str(packed) if packed else "dense",
                dtype_name(self.dtype),
            )
        )


@partial(mx.compile, shapeless=True)
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    y: mx.array = nn.silu(gate) * up
    return y


#: By variant, as mlx-lm 0.32 has it: models/activations.py, gemma.py, gemma2.py.
ACTIVATIONS: dict[str, Callable[[mx.array, mx.array], mx.array]] = {
    "swiglu": _swiglu,
    "geglu": lambda gate, up: nn.gelu(gate) * up,
    "geglu_tanh": lambda gate, up: nn.gelu_approx(gate) * up,
    "reglu": lambda gate, up: nn.relu(gate) * up,
}


class Layer(nn.Module):
    """The modules of an FFN in an mlx-lm model, and one with gate and up joined."""

    def __init__(self, setup: Setup, *, joined: bool = True) -> None:
        super().__init__()
        shape, packed, dtype = setup
        self.shape, self.act = shape, ACTIVATIONS[shape.variant]
        self.norm = nn.RMSNorm(shape.K, NORM_EPS)
        self.gate_proj = nn.Linear(shape.K, shape.N, bias=False)
        self.up_proj = nn.Linear(shape.K, shape.N, bias=False)
        self.down_proj = nn.Linear(shape.N, shape.K, bias=False)
        self.set_dtype(dtype)
        if packed:
            nn.quantize(self, packed.group_size, packed.bits, mode=packed.mode)
        if joined:
            gate, up = self.gate_proj.parameters(), self.up_proj.parameters()
            both = {name: mx.concatenate([gate[name], up[name]]) for name in gate}
            self.gate_up_proj = copy.copy(self.gate_proj)
            self.gate_up_proj.update(both)
        mx.eval(self.parameters())

    def copy(self) -> Layer:
        """The same values elsewhere in memory."""
        other = copy.copy(self)
        for name, module in self.children().items():
            own = copy.copy(module)
            arrays = module.parameters().items()
            own.update({k: a + mx.zeros((), a.dtype) for k, a in arrays})
            setattr(other, name, own)
        mx.eval(other.parameters())
        return other

    @property
    def weight_bytes(self) -> int:
        """Size of the weights and the norm, each once."""
        used = (self.norm, self.gate_proj, self.up_proj, self.down_proj)
        return sum(a.nbytes for module in used for a in module.parameters().values())


class Arm(NamedTuple):
    """A way to run ``x + ffn(norm(x))``; all functions take the layer first.

    Attributes:
        hidden: input [M, K] to the gated product [M, N].
        output: that and x to the result [M, K].
        activations: how often arrays of M x K and of M x N are read or written.
        what: it is, in words.
        fused: it needs kernels of this package.
        norm_inside: ``hidden`` takes x itself, else the normalised x.
    """

    hidden: Callable[[Layer, mx.array], mx.array]
    output: Callable[[Layer, mx.array, mx.array], mx.array]
    activations: tuple[int, int]
    what: str
    fused: bool = False
    norm_inside: bool = False

    def input(self, layer: Layer, x: mx.array) -> mx.array:
        """What ``hidden`` takes."""
        normed: mx.array = x if self.norm_inside else layer.norm(x)
        return normed

    def run(self, layer: Layer, x: mx.array) -> mx.array:
        """One FFN with its norm and residual; nothing is evaluated."""
        return self.output(layer, self.hidden(layer, self.input(layer, x)), x)


def _stock_hidden(layer: Layer, x: mx.array) -> mx.array:
    return layer.act(layer.gate_proj(x), layer.up_proj(x))


def _stock_output(layer: Layer, h: mx.array, x: mx.array) -> mx.array:
    y: mx.array = x + layer.down_proj(h)
    return y


def _concat_hidden(layer: Layer, x: mx.array) -> mx.array:
    gate, up = mx.split(layer.gate_up_proj(x), 2, axis=-1)
    return layer.act(gate, up)


def _fused_hidden(layer: Layer, x: mx.array, norm: ops.Norm | None = None) -> mx.array:
    gate, up = _weight(layer.gate_proj), _weight(layer.up_proj)
    return ops.glu_linear(x, gate, up, layer.shape.variant, norm=norm)


def _fused_output(layer: Layer, h: mx.array, x: mx.array) -> mx.array:
    return x + ops.down_linear(h, _weight(layer.down_proj))


def _block_hidden(layer: Layer, x: mx.array) -> mx.array:
    return _fused_hidden(layer, x, _norm(layer))


def _block_output(layer: Layer, h: mx.array, x: mx.array) -> mx.array:
    return ops.down_linear(h, _weight(layer.down_proj), residual=x)


#: By name; the first is what the others are compared with. The activations of stock:
#: norm, gate and up each read one of [M, K] and write one of [M, K] or [M, N], and so
#: on down to the sum.
ARMS: dict[str, Arm] = {
    "stock": Arm(_stock_hidden, _stock_output, (8, 6), "as mlx-lm runs it"),
    "concat": Arm(
        *(_concat_hidden, _stock_output, (7, 6)),
        "stock, gate and up joined into one weight",
    ),
    "fused": Arm(
        *(_fused_hidden, _fused_output, (7, 2)),
        "the FFN by kernels, norm and residual by stock: what mlx_glu.fuse swaps in",
        fused=True,
    ),
    "fused_block": Arm(
        *(_block_hidden, _block_output, (3, 2)),
        "norm and residual in the kernels too: models of this package",
        fused=True,
        norm_inside=True,
    ),
}


def bytes_moved(arm: Arm, layer: Layer, x: mx.array) -> int:
    """Bytes to and from memory: weights once, activations as often as the arm does."""
    M, (by_k, by_n) = x.size // x.shape[-1], arm.activations
    each = by_k * layer.shape.K + by_n * layer.shape.N
    return layer.weight_bytes + M * each * x.dtype.size


def _weight(layer: nn.Module) -> Weight:
    weight = weight_of(layer)
    assert weight is not None
    return weight


class Check:
    """Is an arm right? Each half is compared with float64, in some of its columns.

    Whatever MLX computes must be within a few roundings of float64, over root mean
    squares; a kernel of this package must also, element by element, be no worse than
    the baseline.
    """

    def __init__(self, layer: Layer, x: mx.array, baseline: Arm) -> None:
        self._layer, self._x, self._baseline = layer, x, baseline
        self._columns = _some(layer.shape.N), _some(layer.shape.K)
        self._halves = (
            take_rows(_weight(layer.gate_proj), self._columns[0]),
            take_rows(_weight(layer.up_proj), self._columns[0]),
        )

    def fault_of(self, arm: Arm) -> str:
        """What is wrong with it; "" if nothing is."""
        layer, x, baseline = self._layer, self._x, self._baseline
        shape, variant = layer.shape, variants.get(layer.shape.variant)
        with dispatch.record() as choices:
            h = arm.hidden(layer, arm.input(layer, x))
        stock = baseline.hidden(layer, baseline.input(layer, x))
        given, norm = layer.norm(x), None
        if arm.norm_inside and all(choice.impl == "fused" for choice in choices):
            # A kernel's norm; stock's is rounded, in ours as in MLX's.
            given, norm = x, _norm(layer)
        exact = glu_linear64(given, *self._halves, variant, norm=norm)
        fault = _fault(h, stock, exact, self._columns[0], shape.K, arm.fused)
        if fault:
            return f"gated product: {fault}"
        columns = self._columns[1]
        y, stock = (way.output(layer, h, x) for way in (arm, baseline))
        down = take_rows(_weight(layer.down_proj), columns)
        exact = down_linear64(h, down, residual=x[:, columns])
        fault = _fault(y, stock, exact, columns, shape.N, arm.fused)
        return f"result: {fault}" if fault else ""


def _fault(
    y: mx.array,
    stock: mx.array,
    exact: np.ndarray,
    columns: mx.array,
    terms: int,
    strict: bool,
) -> str:
    if (y.shape, y.dtype) != (stock.shape, stock.dtype):
        return f"it is {y.dtype} {y.shape}, not {stock.dtype} {stock.shape}"
    y, stock = y[:, columns], stock[:, columns]
    size = math.sqrt(float(((f64(y) - exact) ** 2).mean() / (exact**2).mean()))
    limit = SANE * EPS[dtype_name(y.dtype)] + 8 * EPS["float32"] * math.sqrt(terms)
    if not size <= limit:
        return f"off by {size:.1e} of its size, more than roundings make ({limit:.1e})"
    return worst(y, stock, exact, terms=terms).fault if strict else ""


def _norm(layer: Layer) -> ops.Norm:
    return ops.Norm(layer.norm.weight, NORM_EPS)


def _some(n: int) -> mx.array:
    """Up to CHECKED of n columns, spread over all, the first and the last too."""
    return mx.array(np.unique(np.linspace(0, n - 1, min(n, CHECKED)).astype(np.int32)))
