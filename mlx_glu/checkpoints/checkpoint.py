"""A checkpoint on disk, whatever wrote it: a config and tensors by HF name.

Quantized layers appear as in MLX's own folders: ``P.weight`` (packed uint32),
``P.scales`` and, for affine groups, ``P.biases``.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from ..tensor_info import TensorInfo
from ..untrusted import open_file, parse_json, read_file, shown
from .safetensors import SafetensorsFile
from .torch_file import TorchFile

INDEX = "model.safetensors.index.json"

#: Files beside the weights that a converted folder keeps, byte for byte.
KEPT = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)

#: Bytes of one of them: a sparse file of a terabyte would fill the disk.
_MAX_KEPT = 64 << 20

#: Files of an index, and characters of a name, of which no file system has more.
_MAX_FILES, _MAX_NAME = 10_000, 255


class Checkpoint(ABC):
    """What a loader or converter needs to know of a checkpoint.

    Attributes:
        path: folder or file, for messages.
        config: ``config.json``, or what stands for it.
        tensors: every tensor by name, not read yet.
        notes: decisions a user should hear of, one line each.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    notes: Sequence[str] = ()

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return [self.path]

    @abstractmethod
    def load(self, name: str) -> mx.array:
        """Read one tensor. What was read is not kept for the next call."""

    @abstractmethod
    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files, generation config and licence."""


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a folder of safetensors or of torch's files, or a GGUF file.

    Raises:
        FileNotFoundError: no such path, or no weights in it.
        ValueError: damaged files; the message names file and tensor.
    """
    path = locate(path)
    if path.is_dir():
        return Folder(path)
    from .gguf_checkpoint import GGUFCheckpoint

    return GGUFCheckpoint(path)


def locate(path: str | Path) -> Path:
    """The folder or the GGUF file that ``path`` means, be it alone in its folder.

    Raises:
        FileNotFoundError: no such path.
        ValueError: another kind of file.
    """
    path = Path(os.path.expanduser(path))
    if not path.exists():
        raise FileNotFoundError(f"[load] {path} does not exist")
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1 or any(path.glob("*.safetensors")):
            return path
        path = files[0]
        open_file(path).close()  # no link out of the folder, no pipe
    if path.suffix != ".gguf":
        raise ValueError(
            f"[load] {path} is a file; give the folder that holds config.json, "
            "or a .gguf file"
        )
    return path


class _Weights(Protocol):
    """One open file of weights."""

    path: Path
    tensors: dict[str, TensorInfo]
    notes: list[str]

    def load(self, name: str) -> mx.array: ...


class Format(NamedTuple):
    """How files of weights are found in a folder, and opened."""

    name: str
    index_name: str
    pattern: str
    open: Callable[[Path], _Weights]


#: The first that a folder has is read.
FORMATS = (
    Format("safetensors", INDEX, "model*.safetensors", SafetensorsFile),
    Format("PyTorch", "pytorch_model.bin.index.json", "pytorch_model*.bin", TorchFile),
)


class Folder(Checkpoint):
    """A Hugging Face or MLX folder: config.json, one file or shards with an index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(path / "config.json")
        found = [
            f for f in FORMATS if (path / f.index_name).exists() or _files(path, f)
        ]
        self._file_of = _open_files(path, found[0] if found else FORMATS[0])
        self.tensors = {n: file.tensors[n] for n, file in self._file_of.items()}
        files = {id(file): file for file in self._file_of.values()}.values()
        self.notes = [note for f in files for note in f.notes]
        if len(found) > 1:
            self.notes.append(f"{found[1].pattern} is not read: there are safetensors")

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return list(dict.fromkeys(file.path for file in self._file_of.values()))

    def load(self, name: str) -> mx.array:
        """Read one tensor."""
        return self._file_of[name].load(name)

    def write_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files, generation config and licence."""
        for path in kept_files(self.path):
            (folder / path.name).write_bytes(read_file(path, _MAX_KEPT))


def kept_files(folder: Path) -> list[Path]:
    """What a folder has of ``KEPT``; a folder LICENSES is none of it."""
    found = (path for pattern in KEPT for path in sorted(folder.glob(pattern)))
    return [path for path in found if not path.is_dir()]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: no such file; the message lists what is there.
        ValueError: not JSON, or not an object.
    """
    try:
        text = read_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"[load] {path} does not exist; {_listing(path.parent)}"
        ) from error
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"[load] {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"[load] {path} must hold a JSON object")
    return value


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder"
    names = sorted(repr(p.name)[1:-1] for p in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{folder} holds {shown or 'nothing'}"


def _files(folder: Path, form: Format) -> list[Path]:
    return sorted(folder.glob(form.pattern))


def _open_files(folder: Path, form: Format) -> dict[str, _Weights]:
    """The file of every tensor, from the index where there is one."""
    index, weight_map = folder / form.index_name, {}
    if index.exists():
        weight_map = read_index(index, Path(form.pattern).suffix)
        names = sorted(set(weight_map.values()))
    else:
        names = [path.name for path in _files(folder, form)]
    if not names:
        raise FileNotFoundError(
            f"[load] no {form.pattern} in {folder}; {_listing(folder)}"
        )
    place: dict[str, Path] = {}
    file_of: dict[str, _Weights] = {}
    for path in map(folder.joinpath, names):
        if not path.exists():
            raise FileNotFoundError(
                f"[load] {shown(path.name)}, named by {index}, is missing; "
                + _listing(folder)
            )
        file = form.open(path)
        for name in file.tensors:
            if name in place:
                raise ValueError(
                    f"[load] tensor {name!r} is in {place[name].name} and in "
                    f"{path.name} of {folder}; remove the stale file"
                )
            place[name], file_of[name] = path, file
    for name, file_name in weight_map.items():
        if name not in place:
            raise ValueError(
                f"[load] tensor {shown(name)} is not in {folder / file_name}, "
                f"where {index.name} says it is"
            )
    return file_of


def read_index(index: Path, suffix: str) -> dict[str, str]:
    """The file of every tensor, as an index says.

    Raises:
        ValueError: no index, or one that names anything but files beside it.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"[load] {index} has no weight_map")
    for name, file_name in weight_map.items():
        # A path that leaves the folder is never right, and may be an attack.
        if (
            not isinstance(file_name, str)
            or os.path.basename(file_name) != file_name
            or len(file_name) > _MAX_NAME
            or not file_name.endswith(suffix)
        ):
            raise ValueError(
                f"[load] {index} puts tensor {shown(name)} into "
                f"{shown(file_name)}; a {suffix} file inside the folder was "
                "expected"
            )
    if len(set(weight_map.values())) > _MAX_FILES:
        raise ValueError(f"[load] {index} names more than {_MAX_FILES:,} files")
    return weight_map
