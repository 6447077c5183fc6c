"""Write safetensors files tensor by tensor, and continue where a writer was ended."""

import hashlib
import json
import os
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints.safetensors import DTYPES
from ..tensor_info import BITS, TensorInfo
from .journal import Mark

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: Bytes that may wait to be written while the next tensor is computed.
_BACKLOG = 32 << 20

#: Bytes read at a time, and bytes written before the disk is told to begin.
_CHUNK, _SENT_AT_ONCE = 1 << 20, 16 << 20


class Writer:
    """Write one file whose tensors are known in advance.

    A thread writes and hashes while the caller computes the next tensor. A context
    manager: the file is complete and on disk once it is left without an error.

    Args:
        path: the file to create, or to continue.
        tensors: every tensor that will be written, in this order.
        marks: what an earlier writer of this file reported; as much of the file as
            agrees with them is kept.
        report: called with the mark after each tensor, from the thread.

    Attributes:
        left: names of the tensors that are still to be written, in order.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        marks: Sequence[Mark] = (),
        report: Callable[[Mark], None] = lambda mark: None,
    ) -> None:
        header = _header(tensors)
        sizes = [info.nbytes for info in tensors.values()]
        ends = list(accumulate(sizes, initial=len(header)))
        self._tensors, self._report = tensors, report
        self._file = FileIO(path, "r+" if marks and path.exists() else "w+")
        try:
            possible = {*ends}
            told = [mark for mark in marks if mark.size in possible]
            self._size, self._digest = _unharmed(self._file, told)
            self._file.seek(self._size)
            self._file.truncate()
            self._sent = self._size
            pairs = zip(tensors, ends[1:], strict=True)
            self.left = deque(name for name, end in pairs if end > self._size)
            if not self._size:
                self._append(memoryview(header))
        except BaseException:
            self._file.close()
            raise
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[int, Future[None]]] = deque()

    @property
    def mark(self) -> Mark:
        """Size and sha256 of what was written."""
        return Mark(self._size, self._digest.hexdigest())

    def write(self, name: str, array: mx.array) -> None:
        """Append the next tensor; it must be the one that was announced."""
        expected = self.left.popleft()
        info = self._tensors[name]
        assert (name, array.dtype, array.shape) == (expected, *info), (name, info)
        # Not flattened: MLX counts along an axis in 32 bits.
        data = mx.contiguous(array).view(BITS[info.dtype.size])
        data = data if data.ndim else data.reshape(1)
        mx.eval(data)  # here: the thread must not need MLX
        self._wait(_BACKLOG - info.nbytes)
        view = memoryview(b"")
        if data.size:
            view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._waiting.append((info.nbytes, self._thread.submit(self._append, view)))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        with self._file:
            try:
                if error is None:
                    self._wait(-1)
                    assert not self.left, self.left
                    os.fsync(self._file.fileno())
            finally:
                self._thread.shutdown(cancel_futures=True)

    def _wait(self, room: int) -> None:
        """Until no more than ``room`` bytes wait to be written, or none does."""
        while self._waiting and sum(size for size, _ in self._waiting) > room:
            self._waiting.popleft()[1].result()

    def _append(self, data: memoryview) -> None:
        # Counted first: after a failed write no mark agrees with the file any more.
        self._digest.update(data)
        self._size += len(data)
        while data:
            data = data[self._file.write(data) :]
        self._report(self.mark)
        if sys.platform == "linux" and self._size - self._sent > _SENT_AT_ONCE:
            # To the disk now, and out of the page cache: new pages for a whole model
            # take longer than writing it, and push out what others have there.
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._sent = self._size


def _header(tensors: Mapping[str, TensorInfo]) -> bytes:
    """The length and the JSON text that come before the data."""
    rows: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    position = 0
    for name, info in tensors.items():
        rows[name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, position + info.nbytes],
        }
        position += info.nbytes
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts on a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text


def _unharmed(file: FileIO, marks: Iterable[Mark]) -> tuple[int, Any]:
    """The furthest mark that a file agrees with: its size, and the hash so far."""
    digest, position = hashlib.sha256(), 0
    found = position, digest.copy()
    for mark in sorted(marks):
        while position < mark.size:
            data = file.read(min(mark.size - position, _CHUNK))
            if not data:
                return found
            digest.update(data)
            position += len(data)
        if digest.hexdigest() == mark.sha256:
            found = position, digest.copy()
    return found


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
