"""A checkpoint on disk, whatever wrote it: a config and tensors by HF name.

Quantized layers appear as in MLX's own folders: ``P.weight`` (packed uint32),
``P.scales`` and, for affine groups, ``P.biases``.
"""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from .safetensors import TensorInfo, read_header

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


class Checkpoint(ABC):
    """What a loader or converter needs to know of a checkpoint.

    Attributes:
        path: folder or file, for messages.
        config: ``config.json``, or what stands for it.
        tensors: every tensor by name, not read yet.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]

    @abstractmethod
    def load(self, name: str) -> mx.array:
        """Read one tensor. What was read is not kept for the next call."""

    @abstractmethod
    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files, generation config and licence."""


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a folder of safetensors, or a GGUF file.

    Raises:
        FileNotFoundError: no such path, or no weights in it.
        ValueError: damaged files; the message names file and tensor.
    """
    path = Path(os.path.expanduser(path))
    if not path.exists():
        raise FileNotFoundError(f"[load] {path} does not exist")
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1 or any(path.glob("*.safetensors")):
            return SafetensorsFolder(path)
        path = files[0]
    if path.suffix != ".gguf":
        raise ValueError(
            f"[load] {path} is a file; give the folder that holds config.json, "
            "or a .gguf file"
        )
    from .gguf_checkpoint import GGUFCheckpoint

    return GGUFCheckpoint(path)


class SafetensorsFolder(Checkpoint):
    """A Hugging Face or MLX folder: config.json, one file or shards with an index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(path / "config.json")
        self.tensors, self._file_of = _read_headers(path)
        self._open: dict[Path, dict[str, mx.array]] = {}

    def load(self, name: str) -> mx.array:
        """Read one tensor."""
        file = self._file_of[name]
        if name not in self._open.get(file, {}):
            try:
                loaded = mx.load(str(file), format="safetensors")
            except RuntimeError as error:
                raise ValueError(f"[load] MLX cannot read {file}: {error}") from error
            assert isinstance(loaded, dict)
            self._open[file] = loaded
        # Handing over the only reference lets the data go when the caller is done.
        return self._open[file].pop(name)

    def write_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files, generation config and licence."""
        for pattern in KEPT:
            for file in self.path.glob(pattern):
                shutil.copyfile(file, folder / file.name)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: no such file; the message lists what is there.
        ValueError: not JSON, or not an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"[load] {path} does not exist; {_listing(path.parent)}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"[load] {path} is not UTF-8 text") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"[load] {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"[load] {path} must hold a JSON object")
    return value


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder"
    names = sorted(p.name for p in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{folder} holds {shown or 'nothing'}"


def _read_headers(folder: Path) -> tuple[dict[str, TensorInfo], dict[str, Path]]:
    """Every tensor and its file, from the index where there is one."""
    index = folder / INDEX
    if index.exists():
        weight_map = _weight_map(index)
        files = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        weight_map = {}
        files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"[load] no model*.safetensors in {folder}; {_listing(folder)}"
        )
    tensors: dict[str, TensorInfo] = {}
    file_of: dict[str, Path] = {}
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"[load] {file.name!r}, named by {index}, is missing; "
                + _listing(folder)
            )
        header = read_header(file)
        for name, info in header.items():
            if name in file_of:
                raise ValueError(
                    f"[load] tensor {name!r} is in {file_of[name].name} and in "
                    f"{file.name} of {folder}; remove the stale file"
                )
            tensors[name], file_of[name] = info, file
    for name, file_name in weight_map.items():
        if name not in file_of:
            raise ValueError(
                f"[load] tensor {name!r} is not in {folder / file_name}, "
                f"where {index.name} says it is"
            )
    return tensors, file_of


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"[load] {index} has no weight_map")
    for name, file_name in weight_map.items():
        # A path that leaves the folder is never right, and may be an attack.
        if (
            not isinstance(file_name, str)
            or Path(file_name).name != file_name
            or not file_name.endswith(".safetensors")
        ):
            raise ValueError(
                f"[load] {index} puts tensor {name!r} into {file_name!r}; "
                "a .safetensors file inside the folder was expected"
            )
    return weight_map
