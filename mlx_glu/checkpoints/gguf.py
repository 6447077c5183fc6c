"""Read GGUF files: the header with suspicion, quantized blocks without loss.

Format: the GGUF specification, github.com/ggml-org/ggml, docs/gguf.md.
"""

import math
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..untrusted import open_file
from .gguf_blocks import FORMATS, UNREAD, Format, decode_blocks
from .safetensors import read_array

MAGIC = b"GGUF"

_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
    10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9

# Several times what the largest models have: a hostile header must not keep a
# reader busy, or fill the memory.
_MOST_ENTRIES = 1 << 16  # tensors, and metadata keys
_MOST_STRINGS = 1 << 21  # in all arrays
_MOST_BYTES = 1 << 26  # of the header
_LONGEST_NAME = 1 << 10
_MOST_DIMS = 4  # ggml's own limit

#: Weights decoded at a time: some MB in flight.
_SLICE = 1 << 20


class GGUFTensor(NamedTuple):
    """A tensor's place in the file. ``shape`` is outputs first, as in MLX."""

    format: Format
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) // self.format.block * self.format.nbytes


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
        # Who names a file may name a link: what lies in a folder was judged before.
        self._target = path.resolve()
        with open_file(self._target) as file:
            self._size = os.fstat(file.fileno()).st_size
            self._data = file.read(min(self._size, _MOST_BYTES)) or b""
        if len(self._data) < 24:
            raise ValueError(f"[gguf] {path} is too short to be a GGUF file")
        self._at, self._end = 0, len(self._data)
        self._strings_left = _MOST_STRINGS
        try:
            self._read_header()
        except (struct.error, OverflowError, UnicodeDecodeError) as error:
            raise ValueError(
                f"[gguf] {path} ends or breaks inside its header; "
                "the download is incomplete or the file is damaged"
            ) from error
        self._data = b""

    def load(self, name: str) -> tuple[mx.array, ...]:
        """Read a tensor, a slice of its blocks at a time.

        Returns:
            ``(array,)`` in its format's dtype; or, of what stays packed,
            ``(weight, scales, biases)`` as ``mx.quantize`` gives them for groups
            of 32, with float32 scales; mxfp4 has uint8 scales and no biases.
        """
        tensor = self.tensors[name]
        kind, shape = tensor.format, tensor.shape
        rows = tensor.nbytes // kind.nbytes, kind.nbytes
        read = read_array(self._target, self._size, tensor.offset, mx.uint8, rows)
        blocks = np.array(read, copy=False)
        if kind.decode is None:
            numbers = mx.array(blocks.view(f"<u{kind.nbytes}"))
            return (numbers.view(kind.dtype).reshape(shape),)
        whole: list[mx.array] = []
        with mx.stream(mx.cpu):
            for start in range(0, len(blocks), _SLICE // kind.block):
                end = start + _SLICE // kind.block
                parts = [mx.array(p) for p in decode_blocks(kind, blocks[start:end])]
                whole = whole or [
                    mx.zeros((len(blocks), part.shape[1]), part.dtype) for part in parts
                ]
                for array, part in zip(whole, parts, strict=True):
                    array[start:end] = part
                mx.eval(whole)  # writes in place
            return tuple(array.reshape(*shape[:-1], -1) for array in whole)

    def _read_header(self) -> None:
        magic, version, n_tensors, n_keys = self._unpack("<4sIQQ")
        if magic != MAGIC or version not in (2, 3):
            raise ValueError(
                f"[gguf] {self.path} is not a GGUF file of version 2 or 3 "
                f"(it starts with {magic!r}, version {version})"
            )
        for what, count in (("tensors", n_tensors), ("metadata keys", n_keys)):
            if count > _MOST_ENTRIES:
                raise ValueError(
                    f"[gguf] {self.path} claims {count} {what}; at most "
                    f"{_MOST_ENTRIES} are read, so the file is damaged"
                )
        for _ in range(n_keys):
            key = self._string(_LONGEST_NAME)
            if key in self.metadata:
                raise ValueError(f"[gguf] {self.path}: key {key!r} occurs twice")
            (kind,) = self._unpack("<I")
            self.metadata[key] = self._value(kind)
        self._put([self._place() for _ in range(n_tensors)])

    def _put(self, places: list[tuple[str, GGUFTensor]]) -> None:
        """Fill ``tensors``, once each is seen to have a place of its own."""
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 8 or alignment.bit_count() != 1:
            raise ValueError(
                f"[gguf] {self.path}: general.alignment is a power of two from 8 on, "
                f"not {str(alignment)[:40]}"
            )
        start = end = -(-self._at // alignment) * alignment
        for name, tensor in sorted(places, key=lambda place: place[1].offset):
            placed = tensor._replace(offset=start + tensor.offset)
            if name in self.tensors:
                raise ValueError(f"[gguf] {self.path}: tensor {name!r} occurs twice")
            if tensor.offset % alignment or placed.offset < end:
                raise ValueError(
                    f"[gguf] {self.path}: tensor {name!r} begins inside another or "
                    f"at no multiple of {alignment}; the file is damaged"
                )
            end = placed.offset + placed.nbytes
            if end > self._size:
                raise ValueError(
                    f"[gguf] {self.path}: tensor {name!r} ends after the file; "
                    "the download is incomplete or the file is damaged"
                )
            self.tensors[name] = placed

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self, longest: int = _MOST_BYTES) -> str:
        (length,) = self._unpack("<Q")
        if length > longest:
            raise OverflowError(length)
        return str(self._unpack(f"<{self._bounded(length, 1)}s")[0], "utf-8")

    def _strings(self, count: int) -> list[str]:
        self._strings_left -= self._bounded(count, 8)
        if self._strings_left < 0:
            raise ValueError(
                f"[gguf] {self.path} claims more than {_MOST_STRINGS} strings, which "
                "no vocabulary has; the file is damaged"
            )
        # A vocabulary has some 10^5: by _string each would take three times longer.
        data, at, read = self._data, self._at, struct.Struct("<Q").unpack_from
        words = []
        for _ in range(count):
            start = at + 8
            at = start + read(data, at)[0]
            if at > self._end:
                raise OverflowError(at)
            words.append(str(data[start:at], "utf-8"))
        self._at = at
        return words

    def _bounded(self, count: int, nbytes: int) -> int:
        """``count`` items of ``nbytes`` each, if the header can hold them."""
        if count * nbytes > self._end - self._at:
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
            return self._strings(count)
        if kind not in _NUMBERS:
            raise ValueError(f"[gguf] {self.path}: unknown array type {kind}")
        dtype = np.dtype("<" + _NUMBERS[kind])
        self._bounded(count, dtype.itemsize)
        array = np.frombuffer(self._data, dtype, count, self._at).copy()
        self._at += array.nbytes
        return array

    def _place(self) -> tuple[str, GGUFTensor]:
        name = self._string(_LONGEST_NAME)
        (n_dims,) = self._unpack("<I")
        if n_dims > _MOST_DIMS:
            raise ValueError(
                f"[gguf] {self.path}: tensor {name!r} has {n_dims} dimensions, more "
                f"than {_MOST_DIMS}; the file is damaged"
            )
        dims = self._unpack(f"<{n_dims}Q")
        kind, offset = self._unpack("<IQ")
        if kind not in FORMATS:
            raise ValueError(
                f"[gguf] {self.path}: tensor {name!r} is "
                f"{UNREAD.get(kind, f'of type {kind}')}; readable types are "
                + ", ".join(f.name for f in FORMATS.values())
            )
        if not dims or 0 in dims or dims[0] % FORMATS[kind].block:
            raise ValueError(
                f"[gguf] {self.path}: tensor {name!r} has an impossible shape {dims}"
            )
        return name, GGUFTensor(FORMATS[kind], dims[::-1], offset)
