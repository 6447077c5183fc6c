"""A safetensors file, read with suspicion: its header is checked before its data.

Format: 8-byte length, JSON header, data (github.com/huggingface/safetensors).
"""

import os
import reprlib
import struct
from collections import Counter
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..tensor_info import BITS, TensorInfo
from ..untrusted import MAX_JSON, open_file, parse_json

#: What MLX computes with on every device: no F64, no 8-bit floats.
DTYPES: dict[str, mx.Dtype] = {
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "I64": mx.int64,
    "I32": mx.int32,
    "I16": mx.int16,
    "I8": mx.int8,
    "U64": mx.uint64,
    "U32": mx.uint32,
    "U16": mx.uint16,
    "U8": mx.uint8,
    "BOOL": mx.bool_,
}

#: No real tensor has more axes or a longer name; MLX counts along an axis in 32 bits.
MAX_AXES, MAX_LENGTH, MAX_NAME = 32, 2**31 - 1, 500


class SafetensorsFile:
    """A file whose header has been read and checked; tensors are read one by one.

    Attributes:
        path: the file.
        tensors: every tensor by name.
        notes: what a user should hear of; nothing, here.

    Raises:
        ValueError: the file is damaged; the message names file and tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self.tensors: dict[str, TensorInfo] = {}
        self._starts: dict[str, int] = {}
        with open_file(path) as file:
            self._size = os.fstat(file.fileno()).st_size
            text = _header_text(path, file, self._size)
        start, spans = 8 + len(text), []
        for name, row in _header_rows(path, text):
            info, first, last = _tensor(path, name, row, self._size - start)
            self.tensors[name], self._starts[name] = info, start + first
            spans.append((first, last, name))
        _check_spans(path, spans, self._size - start)

    def load(self, name: str) -> mx.array:
        """Read one tensor.

        Raises:
            ValueError: the file has changed since its header was read.
        """
        start, (dtype, shape) = self._starts[name], self.tensors[name]
        return read_array(self.path, self._size, start, dtype, shape)


def read_array(
    path: Path, size: int, start: int, dtype: mx.Dtype, shape: tuple[int, ...]
) -> mx.array:
    """Read an array whose bytes start at ``start``, into MLX's own memory.

    ``mx.load`` would parse the header again, and an error while it reads comes as a
    RuntimeError out of some later ``mx.eval``.

    Raises:
        ValueError: the file no longer has ``size`` bytes.
    """
    array = mx.zeros(shape or (1,), BITS[dtype.size])
    mx.eval(array)
    if not array.size:
        return array.view(dtype)
    left = memoryview(array).cast("B")  # type: ignore[arg-type]
    with open_file(path) as file:
        file.seek(start)
        read = os.fstat(file.fileno()).st_size == size
        while left and read:  # one call reads at most 2 GB
            count = file.readinto(left) or 0
            left, read = left[count:], count > 0
    if not read:
        raise ValueError(f"[load] {path} has changed since it was opened; start again")
    return array.view(dtype).reshape(shape)


def _header_text(path: Path, file: FileIO, size: int) -> bytes:
    start = file.read(8) or b""
    if start == b"version ":
        raise ValueError(
            f"[safetensors] {path} is a git-lfs pointer, not the weights; "
            "run `git lfs pull` in its folder"
        )
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > size - 8:
        raise ValueError(
            f"[safetensors] {path} ({size} bytes) holds no complete header; "
            "the download is incomplete or the file is damaged"
        )
    if length > MAX_JSON:
        raise ValueError(
            f"[safetensors] {path} has a header of {length:,} bytes; "
            f"{MAX_JSON:,} are enough for 200,000 tensors"
        )
    return file.read(length) or b""


def _header_rows(path: Path, text: bytes) -> Iterable[tuple[str, Any]]:
    try:
        header = parse_json(text, object_pairs_hook=_unique)
    except _Twice as error:
        raise ValueError(f"[safetensors] {path}: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"[safetensors] {path}: the header is not JSON: {error}"
        ) from error
    if not isinstance(header, dict):
        raise ValueError(f"[safetensors] {path}: the header is not a JSON object")
    header.pop("__metadata__", None)
    return header.items()


class _Twice(ValueError):
    """A key occurs twice in a JSON object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header; readers disagree on which of two equal keys wins."""
    value = dict(pairs)
    if len(value) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise _Twice(f"{reprlib.repr(twice)} occurs twice in the header")
    return value


def _tensor(path: Path, name: str, row: Any, room: int) -> tuple[TensorInfo, int, int]:
    """A row of the header, and where its data starts and ends."""
    where = f"[safetensors] {path}: tensor {name[:MAX_NAME]!r}"
    if len(name) > MAX_NAME:
        raise ValueError(f"{where} has a name of {len(name):,} characters")
    try:
        dtype, shape, (first, last) = row["dtype"], row["shape"], row["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{where} needs a dtype, a shape and two data_offsets, "
            f"got {reprlib.repr(row)}"
        ) from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(
            f"{where} has dtype {reprlib.repr(dtype)}; readable are "
            f"{', '.join(DTYPES)}: take a 16-bit copy of the model"
        )
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_AXES
        or not all(type(n) is int and 0 <= n < 2**63 for n in [*shape, first, last])
        or max(shape, default=0) > MAX_LENGTH
    ):
        raise ValueError(
            f"{where} has an impossible shape or offset, {reprlib.repr(row)}"
        )
    info = TensorInfo(DTYPES[dtype], tuple(shape))
    if last > room:
        raise ValueError(
            f"{where} ends at byte {last} of the data, but only {room} are there; "
            "the download is incomplete or the file is damaged"
        )
    if last - first != info.nbytes:
        raise ValueError(
            f"{where} of shape {list(shape)} needs {info.nbytes} bytes, "
            f"but its offsets span {last - first}"
        )
    return info, first, last


def _check_spans(path: Path, spans: list[tuple[int, int, str]], room: int) -> None:
    """The format wants every byte of the data to belong to exactly one tensor."""
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            raise ValueError(
                f"[safetensors] {path}: the data of tensor {name!r} starts at byte "
                f"{first}, but {end} is the next free one; the file is damaged"
            )
        end = last
    if end != room:
        raise ValueError(
            f"[safetensors] {path} has {room - end} bytes after its last tensor; "
            "the file is damaged"
        )
