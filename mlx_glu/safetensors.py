"""Read safetensors headers with suspicion, and write files tensor by tensor.

``mx.load`` reads the data; it trusts the header, so the header is checked
here first. Format: 8-byte length, JSON header, data
(github.com/huggingface/safetensors).
"""

import json
import math
import os
import reprlib
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import mlx.core as mx

#: What ``mx.load`` reads and is no 8-bit float; it has no F64.
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
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: No real header is longer; a longer one is a damaged or hostile file.
MAX_HEADER = 100_000_000

#: No real tensor has more axes; MLX counts along one in 32 bits.
_MAX_AXES, _MAX_LENGTH = 32, 2**31 - 1


class TensorInfo(NamedTuple):
    """A tensor that has not been read yet."""

    dtype: mx.Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * self.dtype.size


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file, after checking that all their bytes are there.

    Raises:
        ValueError: the file is damaged; the message names file and tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise ValueError(
                f"[safetensors] {path} is a git-lfs pointer, not the weights; "
                "run `git lfs pull` in its folder"
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, MAX_HEADER):
            raise ValueError(
                f"[safetensors] {path} ({size} bytes) holds no complete header; "
                "the download is incomplete or the file is damaged"
            )
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        why = error if isinstance(error, _Twice) else "the header is not JSON"
        raise ValueError(f"[safetensors] {path}: {why}") from error
    if not isinstance(header, dict):
        raise ValueError(f"[safetensors] {path}: the header is not a JSON object")
    header.pop("__metadata__", None)
    room = size - 8 - length
    tensors, spans = {}, []
    for name, row in header.items():
        tensors[name], first, last = _tensor(path, name, row, room)
        spans.append((first, last, name))
    _check_spans(path, spans, room)
    return tensors


class _Twice(ValueError):
    """A key occurs twice in a JSON object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header; readers disagree on which of two equal keys wins."""
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise _Twice(f"{key!r} occurs twice in the header")
        value[key] = item
    return value


def _tensor(path: Path, name: str, row: Any, room: int) -> tuple[TensorInfo, int, int]:
    """A row of the header, and where its data starts and ends."""
    where = f"[safetensors] {path}: tensor {name!r}"
    try:
        dtype, shape, (first, last) = row["dtype"], row["shape"], row["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{where} needs a dtype, a shape and two data_offsets, "
            f"got {reprlib.repr(row)}"
        ) from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(
            f"{where} has dtype {reprlib.repr(dtype)}; readable are {', '.join(DTYPES)}"
        )
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_AXES
        or not all(type(n) is int and n >= 0 for n in [*shape, first, last])
        or max(shape, default=0) > _MAX_LENGTH
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


class Writer:
    """Write one file whose tensors are known in advance, holding one at a time.

    A context manager: the file is complete once it is left without an error.

    Args:
        path: the file to create.
        tensors: every tensor that will be written, in this order.
    """

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
        position = 0
        for name, info in tensors.items():
            end = position + info.nbytes
            header[name] = {
                "dtype": _NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # data starts on a multiple of 8 bytes
        self._left = list(tensors.items())[::-1]
        self._file: IO[bytes] = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, array: mx.array) -> None:
        """Append the next tensor; it must be the one that was announced."""
        expected, info = self._left.pop()
        assert (name, array.dtype, array.shape) == (expected, *info), (name, info)
        data = mx.contiguous(array).reshape(-1).view(mx.uint8)
        self._file.write(memoryview(data))  # type: ignore[arg-type]

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        with self._file:
            if error is None:
                assert not self._left, self._left
                self._file.flush()
                os.fsync(self._file.fileno())


def shards(
    tensors: Iterable[tuple[str, TensorInfo]], limit: int
) -> list[dict[str, TensorInfo]]:
    """Split tensors, in order, into files of at most ``limit`` bytes.

    A tensor larger than ``limit`` has a file to itself.
    """
    files: list[dict[str, TensorInfo]] = [{}]
    used = 0
    for name, info in tensors:
        if files[-1] and used + info.nbytes > limit:
            files.append({})
            used = 0
        files[-1][name] = info
        used += info.nbytes
    return files
