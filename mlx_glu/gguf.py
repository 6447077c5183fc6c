"""Read GGUF files: the header with suspicion, quantized blocks without loss.

Q4_0, Q4_1 and Q8_0 store groups of 32 weights as ``scale * q + bias`` in all
but name, so they become MLX affine groups bit for bit. Format: the GGUF
specification, github.com/ggml-org/ggml, docs/gguf.md.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

MAGIC = b"GGUF"
GROUP_SIZE = 32

_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
    10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


class Format(NamedTuple):
    """How a tensor type is stored: ``nbytes`` for every ``block`` weights."""

    name: str
    block: int
    nbytes: int
    bits: int | None = None  # of the MLX affine group it becomes


FORMATS = {
    0: Format("F32", 1, 4),
    1: Format("F16", 1, 2),
    30: Format("BF16", 1, 2),
    2: Format("Q4_0", 32, 18, 4),
    3: Format("Q4_1", 32, 20, 4),
    8: Format("Q8_0", 32, 34, 8),
}
#: Known by name so that the refusal can say what the file holds.
_UNREAD = {
    6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 16: "IQ2_XXS", 18: "IQ3_XXS", 20: "IQ4_NL", 23: "IQ4_XS",
    39: "MXFP4",
}  # fmt: skip


class GGUFTensor(NamedTuple):
    """A tensor's place in the file. ``shape`` is outputs first, as in MLX."""

    format: Format
    shape: tuple[int, ...]
    offset: int


class GGUFFile:
    """A GGUF file, mapped.

    Attributes:
        metadata: key to Python value; arrays of numbers are numpy arrays.
        tensors: name to place.

    Raises:
        ValueError: not a GGUF file, damaged, or of a tensor type that cannot be
            read; the message names file and tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        if path.stat().st_size < 24:
            raise ValueError(f"[gguf] {path} is too short to be a GGUF file")
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        try:
            self._read_header()
        except (struct.error, OverflowError, UnicodeDecodeError) as error:
            raise ValueError(
                f"[gguf] {path} ends or breaks inside its header; "
                "the download is incomplete or the file is damaged"
            ) from error

    def load(self, name: str) -> tuple[mx.array, ...]:
        """``(array,)``, or ``(weight, scales, biases)`` in MLX affine groups of 32.

        Returns:
            float32, float16 or bfloat16 as stored; scales and biases float16.
        """
        tensor = self.tensors[name]
        raw = np.frombuffer(
            self._data, np.uint8, self._nbytes(tensor), tensor.offset
        ).reshape(-1, tensor.format.nbytes)
        match tensor.format.name:
            case "F32":
                return (mx.array(raw.view(np.float32)).reshape(tensor.shape),)
            case "F16":
                return (mx.array(raw.view(np.float16)).reshape(tensor.shape),)
            case "BF16":
                bits = mx.array(raw.view(np.uint16))
                return (bits.view(mx.bfloat16).reshape(tensor.shape),)
        return _affine_groups(raw, tensor)

    def _read_header(self) -> None:
        magic, version, n_tensors, n_keys = self._unpack("<4sIQQ")
        if magic != MAGIC or version not in (2, 3):
            raise ValueError(
                f"[gguf] {self.path} is not a GGUF file of version 2 or 3 "
                f"(it starts with {magic!r}, version {version})"
            )
        for _ in range(n_keys):
            key = self._string()
            (kind,) = self._unpack("<I")
            self.metadata[key] = self._value(kind)
        places = [self._place() for _ in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"[gguf] {self.path}: general.alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        for name, tensor in places:
            placed = tensor._replace(offset=start + tensor.offset)
            if name in self.tensors:
                raise ValueError(f"[gguf] {self.path}: tensor {name!r} occurs twice")
            if placed.offset + self._nbytes(placed) > len(self._data):
                raise ValueError(
                    f"[gguf] {self.path}: tensor {name!r} ends after the file; "
                    "the download is incomplete or the file is damaged"
                )
            self.tensors[name] = placed

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        (length,) = self._unpack("<Q")
        return str(self._unpack(f"<{self._bounded(length, 1)}s")[0], "utf-8")

    def _bounded(self, count: int, nbytes: int) -> int:
        """``count`` items of ``nbytes`` each, if the file can hold them."""
        if count * nbytes > len(self._data) - self._at:
            raise OverflowError(count)
        return count

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _NUMBERS:
            return self._unpack("<" + _NUMBERS[kind])[0]
        if kind != _ARRAY:
            raise ValueError(f"[gguf] {self.path}: unknown metadata type {kind}")
        kind, count = self._unpack("<IQ")
        if kind == _STRING:
            return [self._string() for _ in range(self._bounded(count, 8))]
        if kind not in _NUMBERS:
            raise ValueError(f"[gguf] {self.path}: unknown array type {kind}")
        dtype = np.dtype("<" + _NUMBERS[kind])
        self._bounded(count, dtype.itemsize)
        array = np.frombuffer(self._data, dtype, count, self._at)
        self._at += array.nbytes
        return array

    def _place(self) -> tuple[str, GGUFTensor]:
        name = self._string()
        (n_dims,) = self._unpack("<I")
        dims = self._unpack(f"<{self._bounded(n_dims, 8)}Q")
        kind, offset = self._unpack("<IQ")
        if kind not in FORMATS:
            raise ValueError(
                f"[gguf] {self.path}: tensor {name!r} is "
                f"{_UNREAD.get(kind, f'of type {kind}')}; readable types are "
                + ", ".join(f.name for f in FORMATS.values())
            )
        if not dims or dims[0] % FORMATS[kind].block:
            raise ValueError(
                f"[gguf] {self.path}: tensor {name!r} has an impossible shape {dims}"
            )
        return name, GGUFTensor(FORMATS[kind], dims[::-1], offset)

    def _nbytes(self, tensor: GGUFTensor) -> int:
        return math.prod(tensor.shape) // tensor.format.block * tensor.format.nbytes


def _affine_groups(raw: np.ndarray, tensor: GGUFTensor) -> tuple[mx.array, ...]:
    """Blocks [groups, nbytes] to MLX's packed weight, scales and biases."""
    rows, bits = tensor.shape[:-1], tensor.format.bits
    scales = raw[:, :2].copy().view(np.float16)
    if tensor.format.name == "Q8_0":
        # Signed q times scale is (q + 128) times scale minus 128 scales.
        packed = raw[:, 2:] ^ np.uint8(0x80)
        biases = (-128 * scales.astype(np.float32)).astype(np.float16)
    else:
        has_minimum = tensor.format.name == "Q4_1"
        nibbles = raw[:, 4:] if has_minimum else raw[:, 2:]
        # Byte i holds weight i low and weight i + 16 high; MLX wants neighbours.
        q = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
        packed = q[:, 0::2] | q[:, 1::2] << 4
        biases = raw[:, 2:4].copy().view(np.float16) if has_minimum else -8 * scales
    assert bits is not None
    weight = np.ascontiguousarray(packed).view(np.uint32)
    return (
        mx.array(weight.reshape(*rows, -1)),
        mx.array(scales.reshape(*rows, -1)),
        mx.array(biases.reshape(*rows, -1)),
    )
