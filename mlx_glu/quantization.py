"""MLX's quantization formats: which exist, and what tensors and configs say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from .tensor_info import TensorInfo


@dataclass(frozen=True)
class Quantization:
    """How a weight is packed.

    Attributes:
        group_size: weights that share a scale.
        bits: of one packed weight.
        mode: a key of ``MODES``.
    """

    group_size: int
    bits: int
    mode: str = "affine"

    def __str__(self) -> str:
        return f"{self.bits}-bit {self.mode}, group size {self.group_size}"

    @property
    def name(self) -> str:
        """In short: "a4g64" for affine, 4 bits, groups of 64; else the mode."""
        affine = self.mode == "affine"
        return f"a{self.bits}g{self.group_size}" if affine else self.mode

    def as_config(self) -> dict[str, Any]:
        """The block of ``config.json``."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def packed(self, dense: TensorInfo) -> dict[str, TensorInfo]:
        """What a dense weight [..., K] of this dtype becomes, by suffix."""
        *rows, K = dense.shape
        groups = (*rows, K // self.group_size)
        affine = self.mode == "affine"
        scale = TensorInfo(dense.dtype if affine else mx.uint8, groups)
        parts = {
            "weight": TensorInfo(mx.uint32, (*rows, K * self.bits // 32)),
            "scales": scale,
        }
        return parts | ({"biases": scale} if affine else {})


class QuantizedWeight(NamedTuple):
    """A weight matrix [N, K] as ``mx.quantize`` packs it, rows are outputs.

    Attributes:
        weight: uint32 [N, K * bits / 32].
        scales: [N, K / group_size], float for "affine", uint8 otherwise.
        biases: as ``scales`` for "affine", None otherwise.
        group_size: columns that share a scale.
        bits: bits per element.
        mode: "affine", "mxfp4", "mxfp8" or "nvfp4".
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array | None
    group_size: int
    bits: int
    mode: str


Weight = mx.array | QuantizedWeight


def dtype_name(dtype: mx.Dtype) -> str:
    """The name without the module before it, for instance float16."""
    return str(dtype).removeprefix("mlx.core.")


#: Name of a weight that is not packed.
DENSE = "dense"


def format_name(weight: Weight) -> str:
    """``Quantization.name`` of a packed weight, else "dense"."""
    if isinstance(weight, QuantizedWeight):
        return Quantization(*weight[3:]).name
    return DENSE


def rows(weight: Weight) -> int:
    """N of a weight [N, K]."""
    array = weight.weight if isinstance(weight, QuantizedWeight) else weight
    return int(array.shape[0])


def size(weight: Weight) -> tuple[int, int]:
    """N and K of a weight [N, K]."""
    if isinstance(weight, QuantizedWeight):
        N, groups = weight.scales.shape
        return N, groups * weight.group_size
    N, K = weight.shape
    return N, K


def take_rows(weight: Weight, rows: slice | mx.array) -> Weight:
    """Some rows of a weight [N, K], as a weight; of a slice they are views."""
    if not isinstance(weight, QuantizedWeight):
        return weight[rows]
    biases = weight.biases
    return weight._replace(
        weight=weight.weight[rows],
        scales=weight.scales[rows],
        biases=None if biases is None else biases[rows],
    )


#: Dtypes of weights that are not packed, and of affine scales.
FLOATS = (mx.float32, mx.float16, mx.bfloat16)


@dataclass(frozen=True)
class _Mode:
    group_sizes: tuple[int, ...]
    bits: tuple[int, ...]
    default: tuple[int, int]


#: mode -> its group sizes and bits, and the (group_size, bits) of mlx-lm.
MODES = {
    "affine": _Mode((32, 64, 128), (2, 3, 4, 5, 6, 8), (64, 4)),
    "mxfp4": _Mode((32,), (4,), (32, 4)),
    "mxfp8": _Mode((32,), (8,), (32, 8)),
    "nvfp4": _Mode((16,), (4,), (16, 4)),
}


def choose(
    mode: str = "affine", group_size: int | None = None, bits: int | None = None
) -> Quantization:
    """A format from what a user asked for; None takes the mode's default.

    Raises:
        ValueError: MLX has no such format; the message lists what it has.
    """
    if mode not in MODES:
        raise ValueError(
            f"[quantize] mode {mode!r} does not exist; choose from {', '.join(MODES)}"
        )
    known = MODES[mode]
    group_size = known.default[0] if group_size is None else group_size
    bits = known.default[1] if bits is None else bits
    for name, value, allowed in (
        ("group size", group_size, known.group_sizes),
        ("bits", bits, known.bits),
    ):
        if value not in allowed:
            listed = ", ".join(map(str, allowed))
            raise ValueError(f"[quantize] {mode} has {name} {listed}; got {value}")
    return Quantization(group_size, bits, mode)


#: The word for a weight that is not packed, where a user names a format.
FLOAT = "float"


def parse(text: str, near: Quantization | None = None) -> Quantization | None:
    """A format as a user writes it.

    Args:
        text: ``BITS[:GROUP_SIZE]``, which is affine, or ``MODE[:BITS[:GROUP_SIZE]]``,
            or ``float``.
        near: where ``text`` leaves the group size out, that of this format if both
            are affine.

    Returns:
        The format; None for ``float``.

    Raises:
        ValueError: neither of these, or MLX has no such format.
    """
    if text == FLOAT:
        return None
    mode, *numbers = text.split(":")
    if mode.isdecimal():
        mode, numbers = "affine", [mode, *numbers]
    if mode not in MODES or len(numbers) > 2 or not all(n.isdecimal() for n in numbers):
        raise ValueError(
            f"[quantize] {text!r} is no format; give BITS or BITS:GROUP_SIZE, "
            f"one of {', '.join(MODES)}, or {FLOAT}"
        )
    bits, group_size, *_ = (*map(int, numbers), None, None)
    if group_size is None and near is not None and near.mode == mode == "affine":
        group_size = near.group_size
    return choose(mode, group_size, bits)


def read_off(
    name: str, K: int, tensors: Mapping[str, TensorInfo]
) -> Quantization | None:
    """The format of module ``name`` with K inputs, from shapes and dtypes alone.

    Tensors cannot be out of date, while config blocks lack keys, hold nulls or
    name modules by other paths.

    Returns:
        None when the weight is not packed.

    Raises:
        ValueError: scales that fit no format; the message names the module.
    """
    weight, scales = tensors.get(f"{name}.weight"), tensors.get(f"{name}.scales")
    if weight is None or scales is None:
        return None
    columns, groups = (info.shape[-1] if info.shape else 0 for info in (weight, scales))
    bits, odd_bits = divmod(columns * 32, K)
    group_size, odd_group = divmod(K, groups) if groups else (0, 1)
    modes = [
        mode
        for mode, known in MODES.items()
        if group_size in known.group_sizes
        and bits in known.bits
        and scales.dtype in (FLOATS if mode == "affine" else (mx.uint8,))
    ]
    if not modes or odd_bits or odd_group or weight.dtype != mx.uint32:
        raise ValueError(
            f"{name}: weight {list(weight.shape)} ({weight.dtype}) with scales "
            f"{list(scales.shape)} ({scales.dtype}) is no quantization of {K} inputs "
            "that MLX has"
        )
    return Quantization(group_size, bits, modes[0])


def config_block(chosen: Mapping[str, Quantization | None]) -> dict[str, Any] | None:
    """The ``quantization`` block for modules and their formats (None: float).

    The commonest format is the default; every other module has its own entry,
    and a module that stays float is false, as mlx-lm writes it.
    """
    formats = [f for f in chosen.values() if f is not None]
    if not formats:
        return None
    common = max(dict.fromkeys(formats), key=formats.count)
    block = common.as_config()
    for name, own in chosen.items():
        if own is None:
            block[name] = False
        elif own != common:
            block[name] = own.as_config()
    return block


def dequantize(
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    quantization: Quantization,
    dtype: mx.Dtype = mx.float32,
) -> mx.array:
    """Unpack to [N, K]; computed in float32, rounded once to ``dtype``."""
    q = quantization
    if q.mode == "affine":
        assert biases is not None
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    dense = mx.dequantize(
        weight,
        scales,
        biases,
        group_size=q.group_size,
        bits=q.bits,
        mode=q.mode,
        dtype=mx.float32,
    )
    return dense.astype(dtype)
