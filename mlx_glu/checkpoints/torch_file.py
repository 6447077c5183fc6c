"""A ``pytorch_model.bin``, read without torch and without running what is in it.

``torch.save`` writes a pickle that says how tensors lie in storages, and the storages:
as members of a zip archive since torch 1.6, one after the other behind the pickle
before. Source: pytorch, torch/serialization.py and torch/_utils.py.
"""

import math
import os
import reprlib
import struct
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..tensor_info import BITS, TensorInfo
from ..untrusted import open_file
from .pickled import MAX_PICKLE, Call, Name, Persistent, read_pickle
from .safetensors import MAX_AXES, MAX_LENGTH, MAX_NAME, read_array
from .torch_zip import data_start, read_directory

_TENSOR, _PARAMETER = (
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
)

#: What a storage holds; float64 becomes float32, which is what MLX computes with.
_STORAGES: dict[str, mx.Dtype | None] = {
    "torch.DoubleStorage": None,
    "torch.FloatStorage": mx.float32,
    "torch.HalfStorage": mx.float16,
    "torch.BFloat16Storage": mx.bfloat16,
    "torch.LongStorage": mx.int64,
    "torch.IntStorage": mx.int32,
    "torch.ShortStorage": mx.int16,
    "torch.CharStorage": mx.int8,
    "torch.ByteStorage": mx.uint8,
    "torch.BoolStorage": mx.bool_,
}
_ALLOWED = {_TENSOR, _PARAMETER, *_STORAGES}

_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little")


class TorchFile:
    """A file of ``torch.save``; tensors are read one by one.

    Attributes:
        path: the file.
        tensors: every tensor by name; float64 ones as float32.
        notes: what a user should hear of.

    Raises:
        ValueError: damaged, or not plain tensors by name; the message says what.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        with open_file(path) as file:
            self._size = os.fstat(file.fileno()).st_size
            try:
                self._views, self._starts = _open(file, self._size)
            except ValueError as error:
                raise ValueError(f"[torch] {path}: {error}") from error
        self.tensors = {
            name: TensorInfo(view.dtype or mx.float32, view.shape)
            for name, view in self._views.items()
        }
        doubles = [name for name, view in self._views.items() if view.dtype is None]
        if doubles:
            self.notes.append(
                f"{len(doubles)} tensors of {path.name} are float64 and read as "
                f"float32, {doubles[0]!r} the first"
            )

    def load(self, name: str) -> mx.array:
        """Read one tensor.

        Raises:
            ValueError: the file has changed since it was opened.
        """
        view = self._views[name]
        start = self._starts[view.storage] + view.first * view.itemsize
        if view.dtype is not None and view.is_contiguous:
            return read_array(self.path, self._size, start, view.dtype, view.shape)
        bits = BITS[view.itemsize]
        flat = np.array(read_array(self.path, self._size, start, bits, (view.span,)))
        steps = [stride * view.itemsize for stride in view.strides]
        array = np.lib.stride_tricks.as_strided(flat, view.shape, steps)
        array = np.ascontiguousarray(array).reshape(view.shape)
        if view.dtype is None:
            with np.errstate(over="ignore"):  # infinity, which converting can refuse
                return mx.array(array.view(np.float64).astype(np.float32))
        return mx.array(array).view(view.dtype)


class _View(NamedTuple):
    """A tensor in a storage of ``room`` elements; all numbers count elements."""

    storage: str
    room: int
    dtype: mx.Dtype | None
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element as stored."""
        return 8 if self.dtype is None else self.dtype.size

    @property
    def span(self) -> int:
        """Elements from the first to the last, both included."""
        steps = zip(self.shape, self.strides, strict=True)
        return 0 if 0 in self.shape else 1 + sum((n - 1) * step for n, step in steps)

    @property
    def is_contiguous(self) -> bool:
        """Row by row and without gaps."""
        step = 1
        for n, stride in zip(self.shape[::-1], self.strides[::-1], strict=True):
            if n > 1 and stride != step:
                return False
            step *= n
        return True


def _open(file: FileIO, size: int) -> tuple[dict[str, _View], dict[str, int]]:
    """The tensors, and where the storages start."""
    head = os.pread(file.fileno(), len(_LEGACY), 0)
    if head == _LEGACY:
        return _open_legacy(file, size)
    if head.startswith(b"PK\3\4"):
        return _open_zip(file)
    if head.startswith(b"version https"):
        raise ValueError("it is a git-lfs pointer, not the weights; run `git lfs pull`")
    raise ValueError("it is not a file of torch.save; is the download complete?")


def _open_zip(file: FileIO) -> tuple[dict[str, _View], dict[str, int]]:
    members = read_directory(file)

    def content(name: str, limit: int) -> bytes:
        member = members[name]
        if member.size > limit:
            raise ValueError(f"its {name[:200]!r} has {member.size:,} bytes")
        return os.pread(file.fileno(), member.size, data_start(file, member))

    pickles = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} members data.pkl; expected one")
    root = pickles[0].removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in members and content(order, 9) != b"little":
        raise ValueError("its numbers are big-endian, which is not read")
    views = _views(read_pickle(content(pickles[0], MAX_PICKLE), 0, _ALLOWED)[0])
    starts: dict[str, int] = {}
    for name, view in views.items():
        member = members.get(f"{root}data/{view.storage}")
        if member is None or member.size != view.room * view.itemsize:
            raise ValueError(
                f"the storage of tensor {name!r} is missing or of another size"
            )
        if view.storage not in starts:
            starts[view.storage] = data_start(file, member)
    return views, starts


def _open_legacy(file: FileIO, size: int) -> tuple[dict[str, _View], dict[str, int]]:
    data = os.pread(file.fileno(), MAX_PICKLE, 0)
    at, parts = 0, []
    for allowed in (set(), set(), set(), _ALLOWED, set()):
        value, at = read_pickle(data, at, allowed)
        parts.append(value)
    _, version, system, state, keys = parts
    if version != 1001 or type(system) is not dict or not system.get("little_endian"):
        raise ValueError("it is of a version of torch, or a machine, that is not read")
    views = _views(state)
    rooms = {view.storage: (view.room, view.itemsize) for view in views.values()}
    is_list = type(keys) is list and all(type(key) is str for key in keys)
    if not is_list or sorted(keys) != sorted(rooms):
        raise ValueError("its list of storages is not that of its tensors")
    starts = {}
    for key in keys:
        room, itemsize = rooms[key]
        if os.pread(file.fileno(), 8, at) != struct.pack("<q", room):
            raise ValueError(f"its storage {key[:200]!r} is not where it should be")
        starts[key] = at + 8
        at += 8 + room * itemsize
    if at > size:
        raise ValueError("its data end early; the download is incomplete")
    return views, starts


def _views(state: Any) -> dict[str, _View]:
    if type(state) is not dict or not state:
        raise ValueError("it does not hold tensors by name")
    views: dict[str, _View] = {}
    for name, value in state.items():
        if type(name) is not str or len(name) > MAX_NAME:
            raise ValueError(f"it has an entry {reprlib.repr(name)}; expected a name")
        if type(value) is Call and value.name == _PARAMETER and value.args:
            value = value.args[0]
        try:
            views[name] = _view(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"its entry {name!r} is no plain tensor: {error}"
            ) from error
    return views


def _view(value: Any) -> _View:
    """The tensor that a call would have made, if all its bytes are in the storage."""
    if type(value) is not Call or value.name != _TENSOR:
        raise TypeError(f"it is a {type(value).__name__}")
    storage, first, shape, strides, _, _, *metadata = value.args
    if any(metadata):  # conjugated or negated
        raise TypeError("torch would have to finish it")
    # "storage", its type, key, device and size; and, before torch 1.6, None.
    key: Any = storage.key if type(storage) is Persistent else ()
    kind, dtype, key, _, room, *view = key
    known = kind == "storage" and type(dtype) is Name and dtype in _STORAGES
    if not known or any(view):
        raise TypeError("its storage is unknown")
    if type(key) is not str or type(shape) is not tuple or type(strides) is not tuple:
        raise TypeError("it has no shape")
    numbers = (first, room, *shape, *strides)
    if (
        any(type(n) is not int or not 0 <= n < 2**62 for n in numbers)
        or len(shape) != len(strides)
        or len(shape) > MAX_AXES
        or max(shape, default=0) > MAX_LENGTH
    ):
        raise TypeError("its numbers are impossible")
    found = _View(key, room, _STORAGES[dtype], first, shape, strides)
    # An expanded tensor would need more memory than the file has bytes.
    if max(first + found.span, math.prod(shape)) > room:
        raise TypeError("it is larger than its storage")
    return found
