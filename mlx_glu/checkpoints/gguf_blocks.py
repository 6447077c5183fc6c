"""The tensor types of GGUF files, and how their blocks of weights decode.

Types whose groups of 32 weights are ``scale * q + bias``, or MLX's mxfp4, stay
packed; the others become float32. Layouts and arithmetic: github.com/ggml-org/ggml,
src/ggml-common.h and dequantize_row_* of src/ggml-quants.c.
"""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

#: Weights that share a scale in what stays packed.
GROUP_SIZE = 32

Decoder = Callable[[np.ndarray], tuple[np.ndarray, ...]]


class Format(NamedTuple):
    """A tensor type: ``nbytes`` for every ``block`` weights.

    Attributes:
        dtype: holds its values exactly, or the scales of what stays packed.
        decode: blocks [n, nbytes] to float32 [n, block]; or to codes
            [n, block] and, for each group of 32, scales and biases, in float32;
            mxfp4 has uint8 scales alone. None for numbers that are no blocks.
        bits: of a code; None if the type does not stay packed.
        mode: MLX's, of what stays packed.
    """

    name: str
    block: int
    nbytes: int
    dtype: mx.Dtype
    decode: Decoder | None = None
    bits: int | None = None
    mode: str = "affine"


def decode_blocks(kind: Format, raw: np.ndarray) -> tuple[np.ndarray, ...]:
    """Decode blocks, whatever their bytes: scales may well be NaN or infinite.

    Args:
        kind: a format with blocks.
        raw: uint8 [n, nbytes].

    Returns:
        float32 [n, block] alone; or, as ``mx.quantize`` packs, uint32
        [n, block * bits / 32], scales [n, block / 32] and, if affine, biases.
    """
    assert kind.decode is not None
    with np.errstate(all="ignore"):
        first, *groups = kind.decode(raw)
    return (first if kind.bits is None else _pack(first, kind.bits), *groups)


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [n, K] of one byte each to little-endian bit strings in uint32."""
    words = codes.reshape(len(codes), -1).view(np.uint64)
    for width in (8, 16, 32):  # close the gap between the lanes of each pair
        used = width * bits // 8
        low = ((1 << used) - 1) * sum(1 << at for at in range(0, 64, 2 * width))
        right = words >> np.uint64(width - used)
        words = words & np.uint64(low) | right & np.uint64(low << used)
    octets = words[..., None].view(np.uint8)[..., :bits]
    return np.ascontiguousarray(octets).reshape(len(codes), -1).view(np.uint32)


def _fields(raw: np.ndarray, width: int, bits: int) -> np.ndarray:
    """Split bytes: of every ``width`` bytes first all lowest bits, then the next."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = raw.reshape(len(raw), -1, 1, width) >> shifts
    return (fields & np.uint8((1 << bits) - 1)).reshape(len(raw), -1)


def _half(raw: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte of each block, as float32 [n, 1]."""
    return raw[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _spread(scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Scales [n, groups] times their codes [n, block], as float32."""
    values: np.ndarray = scales[..., None] * codes.reshape(*scales.shape, -1)
    return values.reshape(codes.shape)


def _q4_0(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    d = _half(raw, 0)
    return _fields(raw[:, 2:], 16, 4), d, -8 * d


def _q4_1(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    return _fields(raw[:, 4:], 16, 4), _half(raw, 0), _half(raw, 2)


def _q5_0(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    d = _half(raw, 0)
    return _five_bits(raw[:, 2:]), d, -16 * d


def _q5_1(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    return _five_bits(raw[:, 4:]), _half(raw, 0), _half(raw, 2)


def _five_bits(raw: np.ndarray) -> np.ndarray:
    codes: np.ndarray = _fields(raw[:, 4:], 16, 4) | _fields(raw[:, :4], 1, 1) << 4
    return codes


def _q8_0(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    d = _half(raw, 0)
    # Signed q is (q + 128) minus 128.
    return raw[:, 2:] ^ np.uint8(0x80), d, -128 * d


def _q4_k(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    return _fields(raw[:, 16:], 32, 4), *_super_scales(raw)


def _q5_k(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    codes = _fields(raw[:, 48:], 32, 4) | _fields(raw[:, 16:48], 32, 1) << 4
    return codes, *_super_scales(raw)


def _super_scales(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and biases [n, 8]; 17 bits each, so exact in float32."""
    low, high, both = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = [low & 63, both & 15 | low >> 2 & 48]
    minima = [high & 63, both >> 4 | high >> 2 & 48]
    return (
        _half(raw, 0) * np.concatenate(scales, axis=1),
        -_half(raw, 2) * np.concatenate(minima, axis=1),
    )


def _q2_k(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    scales = _half(raw, 80) * (raw[:, :16] & 15)
    minima = _half(raw, 82) * (raw[:, :16] >> 4)
    values = _spread(scales, _fields(raw[:, 16:80], 32, 2))
    return (values - np.repeat(minima, 16, axis=1),)


def _q3_k(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    low, high = _fields(raw[:, 96:104], 8, 4), _fields(raw[:, 104:108], 4, 2)
    scales = _half(raw, 108) * ((low | high << 4).view(np.int8) - np.int8(32))
    codes = _fields(raw[:, 32:96], 32, 2) | _fields(raw[:, :32], 32, 1) << 2
    return (_spread(scales, codes.view(np.int8) - np.int8(4)),)


def _q6_k(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    codes = _fields(raw[:, :128], 64, 4) | _fields(raw[:, 128:192], 32, 2) << 4
    scales = _half(raw, 208) * raw[:, 192:208].view(np.int8)
    return (_spread(scales, codes.view(np.int8) - np.int8(32)),)


#: What the codes of IQ4_NL and IQ4_XS stand for.
_IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
    dtype=np.float32,
)


def _iq4_nl(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    return (_half(raw, 0) * _IQ4[_fields(raw[:, 2:], 16, 4)],)


def _iq4_xs(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    low, high = _fields(raw[:, 4:8], 1, 4), _fields(raw[:, 2:4], 1, 2)
    scales = _half(raw, 0) * ((low | high << 4).view(np.int8) - np.int8(32))
    return (_spread(scales, _IQ4[_fields(raw[:, 8:], 16, 4)]),)


def _mxfp4(raw: np.ndarray) -> tuple[np.ndarray, ...]:
    return _fields(raw[:, 1:], 16, 4), raw[:, :1]


#: By the number that stands in the file.
FORMATS = {
    0: Format("F32", 1, 4, mx.float32),
    1: Format("F16", 1, 2, mx.float16),
    2: Format("Q4_0", 32, 18, mx.float16, _q4_0, 4),
    3: Format("Q4_1", 32, 20, mx.float16, _q4_1, 4),
    6: Format("Q5_0", 32, 22, mx.float16, _q5_0, 5),
    7: Format("Q5_1", 32, 24, mx.float16, _q5_1, 5),
    8: Format("Q8_0", 32, 34, mx.float16, _q8_0, 8),
    10: Format("Q2_K", 256, 84, mx.float32, _q2_k),
    11: Format("Q3_K", 256, 110, mx.float32, _q3_k),
    12: Format("Q4_K", 256, 144, mx.float32, _q4_k, 4),
    13: Format("Q5_K", 256, 176, mx.float32, _q5_k, 5),
    14: Format("Q6_K", 256, 210, mx.float32, _q6_k),
    20: Format("IQ4_NL", 32, 18, mx.float32, _iq4_nl),
    23: Format("IQ4_XS", 256, 136, mx.float32, _iq4_xs),
    30: Format("BF16", 1, 2, mx.bfloat16),
    39: Format("MXFP4", 32, 17, mx.bfloat16, _mxfp4, 4, "mxfp4"),
}
#: Known by name so that the refusal can say what the file holds.
UNREAD = {
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4",
}  # fmt: skip
