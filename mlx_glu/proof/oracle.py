"""The float64 oracle: every operation once more in NumPy, from the definitions.

Nothing here calls MLX but to hand over values; packed weights are unpacked bit by
bit, so that an error of MLX is no error of the oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

from ..quantization import QuantizedWeight, Weight
from ..reference import Norm
from ..variants import Variant
from .tolerance import f64

erf64 = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def sigmoid64(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, e, 1.0) / (1 + e))


def gelu_tanh64(g: np.ndarray) -> np.ndarray:
    """GELU by its tanh form."""
    # 1 + tanh(z) = 2 sigmoid(2 z), which does not cancel for z < 0.
    y: np.ndarray = g * sigmoid64(2 * math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))
    return y


def gelu_topk64(g: np.ndarray, sparsity: float) -> np.ndarray:
    """GELU of what exceeds a cutoff of each row."""
    cut = g.mean(-1, keepdims=True)
    cut = cut + NormalDist().inv_cdf(sparsity) * g.std(-1, keepdims=True)
    return gelu_tanh64(np.maximum(g - cut, 0))


# The definitions once more, from the papers; keys as in variants.py.
PHI64: dict[str, Callable[..., Any]] = {
    "sigmoid": lambda g: sigmoid64(g),
    "identity": lambda g: g,
    "relu": lambda g: np.maximum(g, 0),
    "relu2": lambda g: np.maximum(g, 0) ** 2,
    "gelu": lambda g: g * 0.5 * _erfc(-g / math.sqrt(2)),
    "gelu_tanh": gelu_tanh64,
    "silu": lambda g, beta: g * sigmoid64(beta * g),
    "silu_clamped": lambda g, alpha, limit, offset: (
        np.minimum(g, limit) * sigmoid64(alpha * np.minimum(g, limit))
    ),
    "silu_clamp_post": lambda g, limit: np.minimum(g * sigmoid64(g), limit),
    "gelu_topk": gelu_topk64,
}
PSI64: dict[str, Callable[..., Any]] = {
    "identity": lambda u, **_: u,
    "tanh": lambda u: np.tanh(u),
    "relu": lambda u: np.maximum(u, 0),
    "clip": lambda u, limit, offset=0.0, **_: np.clip(u, -limit, limit) + offset,
}


def oracle_mul(gate: np.ndarray, up: np.ndarray, variant: Variant) -> np.ndarray:
    """``phi(gate) * psi(up)`` of float64 arrays."""
    params = dict(variant.params)
    y: np.ndarray = PHI64[variant.phi](gate, **params) * PSI64[variant.psi](
        up, **params
    )
    return y


def derivative64(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, h: float = 2.0**-12
) -> np.ndarray:
    """Fourth-order central difference of ``f``, for pointwise ``f``."""
    near, far = f(x + h) - f(x - h), f(x + 2 * h) - f(x - 2 * h)
    return np.asarray((8 * near - far) / (12 * h))


def mul_vjp64(
    gate: np.ndarray, up: np.ndarray, cotangent: np.ndarray, variant: Variant
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients by gate and up; both further than 2**-11 from every corner."""
    by_gate = derivative64(lambda g: oracle_mul(g, up, variant), gate)
    by_up = derivative64(lambda u: oracle_mul(gate, u, variant), up)
    return cotangent * by_gate, cotangent * by_up


def rms_norm64(x: np.ndarray, norm: Norm) -> np.ndarray:
    """``x`` [..., K] over its root mean square, times the weight."""
    square = (x**2).mean(-1, keepdims=True)
    # The layer's eps is a float.
    scaled = x / np.sqrt(square + float(np.float32(norm.eps)))
    return np.asarray(scaled * (norm.offset + f64(norm.weight)))


def linear64(x: np.ndarray, weight: Weight, bias: Any = None) -> np.ndarray:
    """``x @ weight.T + bias``."""
    y: np.ndarray = x @ dense64(weight).T
    return y if bias is None else y + f64(bias)


def glu_linear64(
    x: Any,
    gate: Weight,
    up: Weight,
    variant: Variant,
    gate_bias: Any = None,
    up_bias: Any = None,
    norm: Norm | None = None,
) -> np.ndarray:
    """``ops.glu_linear``."""
    x = f64(x) if norm is None else rms_norm64(f64(x), norm)
    pair = linear64(x, gate, gate_bias), linear64(x, up, up_bias)
    return oracle_mul(*pair, variant)


def down_linear64(
    x: Any, weight: Weight, bias: Any = None, residual: Any = None
) -> np.ndarray:
    """``ops.down_linear``."""
    y = linear64(f64(x), weight, bias)
    return y if residual is None else y + f64(residual)


def dense64(weight: Weight) -> np.ndarray:
    """Values [N, K] of a weight, exact."""
    if not isinstance(weight, QuantizedWeight):
        return f64(weight)
    codes = _codes(np.array(weight.weight), weight.bits)
    grouped = codes.reshape(len(codes), -1, weight.group_size)
    scales = np.array(weight.scales) if weight.biases is None else f64(weight.scales)
    values = VALUES64[weight.mode](grouped, scales[..., None])
    if weight.biases is not None:
        values = values + f64(weight.biases)[..., None]
    return np.asarray(values.reshape(codes.shape))


def _codes(words: np.ndarray, bits: int) -> np.ndarray:
    """A row of words is a stream of codes, lowest bit first."""
    stream = np.unpackbits(
        words.astype("<u4").view(np.uint8), axis=1, bitorder="little"
    )
    return np.asarray(stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits)))


def _e2m1(code: np.ndarray) -> np.ndarray:
    size: np.ndarray = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[code & 7]
    return np.where(code & 8, -size, size)


def _e4m3(code: np.ndarray) -> np.ndarray:
    code = code.astype(np.int64)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.ldexp(mantissa + 8.0 * (exponent > 0), np.maximum(exponent, 1) - 10)
    size = np.where(code & 127 == 127, np.nan, size)
    return np.where(code & 128, -size, size)


def _e8m0(code: np.ndarray) -> np.ndarray:
    return np.ldexp(1.0, code.astype(np.int64) - 127)


# By mode: values of codes [N, groups, group] and scales [N, groups, 1]. Formats
# from the OCP microscaling specification and NVIDIA's of nvfp4; affine from MLX.
VALUES64: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "affine": lambda code, scale: code * scale,
    "mxfp4": lambda code, scale: _e2m1(code) * _e8m0(scale),
    "mxfp8": lambda code, scale: _e4m3(code) * _e8m0(scale),
    "nvfp4": lambda code, scale: _e2m1(code) * _e4m3(scale),
}
