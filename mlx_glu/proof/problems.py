"""Numbers for a case: inputs, the call of ops, what it must give and move."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .. import ops
from ..quantization import DENSE, QuantizedWeight, Weight
from ..reference import Norm
from ..variants import get
from .cases import FORMATS, LAYOUTS, Case
from .oracle import down_linear64, glu_linear64, mul_vjp64, oracle_mul
from .tolerance import f64

#: Large enough that a norm without it is wrong.
_EPS = 0.1
#: Spread of gates and values: the limits of clamped variants, 7, are met.
_SCALE = 3.0
#: Terms of the tolerance for an element that no sum is behind: exp on a GPU may err
#: by a few eps more than the tolerance has without terms.
_EXP = 1


class Problem(NamedTuple):
    """A case with numbers.

    Attributes:
        call: the operation under the implementation that is selected then.
        oracle: float64 values of what it returns.
        terms: of the tolerance.
        once: bytes, by buffer of the kernel, each of which moves exactly once.
    """

    call: Callable[[], list[mx.array]]
    oracle: list[np.ndarray]
    terms: int
    once: dict[str, int]


def problem(case: Case) -> Problem:
    """Draw the numbers of a case, always the same ones."""
    makers = {"glu": _glu_linear, "down": _down_linear}
    makers |= {"glu_mul": _glu_mul, "glu_mul_vjp": _glu_mul_vjp}
    kind = case.kernel.removesuffix("_qmv").removesuffix("_gemv")
    return makers[kind](case, _Draw(case))


class _Draw:
    """Arrays of one case, from a seed that is its id."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._rng = np.random.default_rng(zlib.crc32(case.id.encode()))
        self.dtype: mx.Dtype = getattr(mx, case.dtype)
        self.parameters: mx.Dtype = getattr(mx, case.parameters or case.dtype)

    def normal(
        self, *shape: int, scale: float = 1.0, dtype: mx.Dtype | None = None
    ) -> mx.array:
        values = self._rng.normal(size=shape) * scale
        return mx.array(values.astype(np.float32)).astype(dtype or self.dtype)

    def rows(self, columns: int) -> mx.array:
        """Activations [1, M, columns], each row of another size."""
        sizes = 1 + np.arange(self._case.M)[:, None] / 4
        return self.array(self._rng.normal(size=(1, self._case.M, columns)) * sizes)

    def uncornered(self, *shape: int) -> np.ndarray:
        """Near odd multiples of 1/32: clear of 0, of limits, and exact in the dtype.

        bfloat16 has these multiples up to 8, beyond every corner.
        """
        values = np.floor(self._rng.normal(size=shape) * _SCALE * 16) + 0.5
        values = values / 16 + self._rng.uniform(-1 / 64, 1 / 64, size=shape)
        return f64(mx.array(values.astype(np.float32)).astype(self.dtype))

    def weight(self, name: str) -> Weight:
        N, K = self._case.N, self._case.K
        if name == DENSE:
            return self.normal(N, K, scale=_SCALE * K**-0.5)
        q = FORMATS[name]
        # MLX quantizes groups of 16 in pairs, so one row more if N is odd.
        w = self.normal(N + N % 2, K, scale=_SCALE * K**-0.5, dtype=self.parameters)
        # A group of zeros has a scale unlike others.
        w[N - 1, : q.group_size] = 0
        parts = mx.quantize(w, q.group_size, q.bits, mode=q.mode)
        packed, scales, *biases = (part[:N] for part in parts)
        bias = biases[0] if biases else None
        return QuantizedWeight(packed, scales, bias, q.group_size, q.bits, q.mode)

    def bias(self, name: str) -> mx.array | None:
        wanted = self._case.biases in (name, "biases")
        return self.normal(self._case.N, dtype=self.parameters) if wanted else None

    def norm(self) -> Norm | None:
        if not self._case.norm:
            return None
        gemma = self._case.norm == "gemma"
        weight = mx.array(self._rng.normal(size=self._case.K) * 0.3 + (not gemma))
        return Norm(weight.astype(self.parameters), _EPS, int(gemma))

    def array(self, values: np.ndarray) -> mx.array:
        """Of the case's dtype; every second element of a larger one if strided."""
        if self._case.strided:
            values = np.stack([values, np.full_like(values, np.nan)], -1)
            values = values.reshape(*values.shape[:-2], -1)
        a = mx.array(values.astype(np.float32)).astype(self.dtype)
        return a[..., ::2] if self._case.strided else a


def _glu_linear(case: Case, draw: _Draw) -> Problem:
    x, variant = draw.rows(case.K), get(case.variant)
    gate, up = draw.weight(case.weight), draw.weight(case.up)
    biases = draw.bias("gate_bias"), draw.bias("up_bias")
    norm = draw.norm()

    def call() -> list[mx.array]:
        y = ops.glu_linear(
            x,
            gate,
            up,
            variant,
            gate_bias=biases[0],
            up_bias=biases[1],
            norm=norm,
        )
        return [y]

    oracle = glu_linear64(x, gate, up, variant, *biases, norm)
    once = _bytes(gate=gate, up=up, gate_bias=biases[0], up_bias=biases[1])
    once["y"] = oracle.size * draw.dtype.size
    return Problem(call, [oracle], case.K, once)


def _down_linear(case: Case, draw: _Draw) -> Problem:
    x, weight = draw.rows(case.K), draw.weight(case.weight)
    bias = draw.bias("gate_bias")
    residual = draw.rows(case.N) if case.residual else None
    oracle = down_linear64(x, weight, bias, residual)
    once = _bytes(weight=weight, bias=bias, residual=residual)
    once["y"] = oracle.size * draw.dtype.size

    def call() -> list[mx.array]:
        return [ops.down_linear(x, weight, bias=bias, residual=residual)]

    return Problem(call, [oracle], case.K, once)


def _glu_mul(case: Case, draw: _Draw) -> Problem:
    gate, up = (draw.uncornered(case.M, case.N) for _ in range(2))
    arrays = _arrange(case, draw, gate, up)
    oracle = oracle_mul(gate, up, get(case.variant))
    once = _bytes(**arrays) | {"h": oracle.size * draw.dtype.size}
    return Problem(lambda: [_multiply(case, *arrays.values())], [oracle], _EXP, once)


def _glu_mul_vjp(case: Case, draw: _Draw) -> Problem:
    gate, up, d = (draw.uncornered(case.M, case.N) for _ in range(3))
    arrays, cotangent = _arrange(case, draw, gate, up), draw.array(d)
    pair = list(mul_vjp64(gate, up, d, get(case.variant)))
    oracle = pair if case.layout == "separate" else [_pack64(case, *pair)]
    once = _bytes(**arrays, d=cotangent)
    once |= {f"d_{name}": a.nbytes for name, a in arrays.items()}

    def call() -> list[mx.array]:
        primals = list(arrays.values())
        return mx.vjp(lambda *a: _multiply(case, *a), primals, [cotangent])[1]

    return Problem(call, oracle, 2, once)


def _multiply(case: Case, *arrays: mx.array) -> mx.array:
    packing = LAYOUTS[case.layout]
    if packing is None:
        gate, up = arrays
        return ops.glu_mul(gate, up, case.variant)
    order, layout = packing
    return ops.glu_mul_packed(arrays[0], case.variant, order=order, layout=layout)


def _arrange(
    case: Case, draw: _Draw, gate: np.ndarray, up: np.ndarray
) -> dict[str, mx.array]:
    """What the operation gets, by the names in the kernel."""
    if case.layout == "separate":
        return {"gate": draw.array(gate), "up": draw.array(up)}
    return {"packed": draw.array(_pack64(case, gate, up))}


def _pack64(case: Case, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    order, layout = LAYOUTS[case.layout] or ("", "")
    pair = (gate, up) if order == "gate_first" else (up, gate)
    if layout == "concat":
        return np.concatenate(pair, -1)
    return np.stack(pair, -1).reshape(*gate.shape[:-1], -1)


def _bytes(**arrays: Weight | None) -> dict[str, int]:
    """Sizes by the names that kernels.py gives the buffers."""
    sizes: dict[str, int] = {}
    for name, a in arrays.items():
        if isinstance(a, QuantizedWeight):
            parts = {"_w": a.weight, "_s": a.scales, "_b": a.biases}
            sizes |= _bytes(**{name + key: part for key, part in parts.items()})
        elif a is not None:
            sizes[name] = a.nbytes
    return sizes
