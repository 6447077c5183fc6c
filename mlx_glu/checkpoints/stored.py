"""What lies on disk, read file by file, so that one broken file hides no other."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..quantization import dtype_name
from ..tensor_info import TensorInfo
from ..untrusted import MAX_JSON, open_file, parse_json
from .checkpoint import FORMATS, Format, read_index
from .gguf import GGUFFile
from .safetensors import DTYPES, SafetensorsFile


class Tensor(NamedTuple):
    """A tensor as its file has it; ``dtype`` is MLX's name, or the file's own."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str

    @classmethod
    def of(cls, info: TensorInfo, file: str = "") -> "Tensor":
        """A tensor that MLX can have."""
        return cls(dtype_name(info.dtype), info.shape, info.nbytes, file)


@dataclass
class Stored:
    """The files of a checkpoint.

    Attributes:
        format: "safetensors", "GGUF", "PyTorch", or "" where there are no weights.
        files: name to size in bytes.
        tensors: by name, of all files that can be read.
        faults: what is wrong with files, one line each.
        metadata: of a GGUF file.
    """

    format: str = ""
    files: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def read_stored(path: Path) -> Stored:
    """List a folder's tensors, or a GGUF file's, from headers alone.

    Raises:
        ValueError: a GGUF file that is damaged.
    """
    if path.is_file():
        return _gguf(path)
    stored = Stored()
    for format, index, pattern, read in _FORMATS:
        names = _indexed(path / index, Path(pattern).suffix, stored.faults)
        for name in names or sorted(p.name for p in path.glob(pattern)):
            _add(stored, path / name, read)
        if stored.files:
            stored.format = format
            break
    return stored


def _gguf(path: Path) -> Stored:
    file = GGUFFile(path)
    tensors = {
        name: Tensor(tensor.format.name, tensor.shape, tensor.nbytes, path.name)
        for name, tensor in file.tensors.items()
    }
    files = {path.name: path.stat().st_size}
    return Stored("GGUF", files, tensors, metadata=file.metadata)


def _indexed(index: Path, suffix: str, faults: list[str]) -> list[str]:
    """The files that an index names, if there is one and it is good."""
    if not index.is_file():
        return []
    try:
        return sorted(set(read_index(index, suffix).values()))
    except (ValueError, OSError) as error:
        faults.append(str(error))
        return []


def _add(stored: Stored, path: Path, read: Callable[[Path], Any]) -> None:
    try:
        stored.files[path.name] = path.stat().st_size
        infos = read(path).tensors
        found = {k: Tensor.of(info, path.name) for k, info in infos.items()}
    except FileNotFoundError:
        stored.faults.append(f"[load] {path} is missing")
        return
    except (ValueError, OSError) as error:
        stored.faults.append(str(error))
        found = dict(_rows(path)) if path.suffix == ".safetensors" else {}
    stored.tensors |= found


def _rows(path: Path) -> Iterator[tuple[str, Tensor]]:
    """What a header that was refused still says, of 8-bit floats or missing bytes."""
    try:
        with open_file(path) as file:
            (length,) = struct.unpack("<Q", file.read(8) or b"")
            header = parse_json(file.read(min(length, MAX_JSON)) or b"")
        rows = list(header.items())
    except (ValueError, AttributeError, OSError, struct.error):
        return
    for name, row in rows:
        match row:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [a, b]} if (
                all(type(n) is int and 0 <= n < 2**63 for n in (*shape, a, b))
            ):
                known = dtype_name(DTYPES[dtype]) if dtype in DTYPES else dtype[:20]
                yield name, Tensor(known, tuple(shape), max(0, b - a), path.name)


#: What `open_checkpoint` takes comes first.
_FORMATS = (*FORMATS, Format("safetensors", "", "*.safetensors", SafetensorsFile))
