"""Where a converted folder came from: a file beside its weights that says so.

It names the source, but no path of the machine that made it, and differs between
two equal conversions in its date alone, which ``SOURCE_DATE_EPOCH`` can set.
"""

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import __version__
from ..checkpoints.checkpoint import Checkpoint, kept_files, read_json
from ..hashing import BackgroundHashes, sha256
from ..quantization import Quantization
from ..tensor_info import TensorInfo

PROVENANCE = "provenance.json"

#: Files that their owners are meant to edit.
_OWN_WORDS = ("README.md", PROVENANCE)


def source_files(checkpoint: Checkpoint) -> list[Path]:
    """Every file that a conversion reads."""
    folder = checkpoint.path
    if not folder.is_dir():
        return [folder]
    return [folder / "config.json", *kept_files(folder), *checkpoint.files]


def about(
    checkpoint: Checkpoint,
    settings: Mapping[str, Any],
    files: Mapping[str, Mapping[str, TensorInfo]],
) -> dict[str, dict[str, Any]]:
    """What decides the content of a converted folder, before anything is hashed.

    Args:
        checkpoint: the source.
        settings: as the user asked for them.
        files: by name, the tensors of each file that will be written.

    Raises:
        ValueError: ``SOURCE_DATE_EPOCH`` is no date.
    """
    _date()  # what is wrong with it must not come out after hours
    return {
        "settings": dict(settings),
        "versions": {
            "mlx_glu": __version__,
            "mlx": version("mlx"),
            "device": mx.default_device().type.name,
        },
        "source": {f.name: _state(f) for f in source_files(checkpoint)},
        "tensors": {"layout": hashlib.sha256(repr(files).encode()).hexdigest()},
    }


@contextmanager
def unchanged(files: Sequence[Path]) -> Iterator[None]:
    """Watch files that are read meanwhile.

    Raises:
        OSError: one changed or went; that is why, whatever else went wrong.
    """
    before, failure = {file: _state(file) for file in files}, None
    try:
        yield
    except Exception as error:
        failure = error
    for file, state in before.items():
        if _state(file) != state:
            raise OSError(f"{file} was changed while it was read") from failure
    if failure:
        raise failure


def write(
    folder: Path,
    checkpoint: Checkpoint,
    asked: Mapping[str, Mapping[str, Any]],
    formats: Mapping[str, Quantization | None],
    notes: Sequence[str],
    hashes: BackgroundHashes,
    written: Mapping[str, str],
) -> None:
    """Write ``provenance.json``.

    Args:
        folder: the converted folder, otherwise complete.
        checkpoint: its source.
        asked: the answer of `about`.
        formats: of every module that could be packed.
        notes: decisions a user should hear of.
        hashes: of the source's files.
        written: sha256 of files in ``folder``; the others are read.

    Raises:
        ValueError: a file of the source is not the one that the Hub has.
    """
    source = _origin(checkpoint.path)
    source["files"] = {}
    for file in source_files(checkpoint):
        digest = hashes.result(file)
        _check_blob(file, digest)
        source["files"][file.name] = _entry(file, digest)
    made = sorted(p for p in folder.iterdir() if p.name not in _OWN_WORDS)
    record = {
        "date": _date(),
        "versions": {**asked["versions"], "python": platform.python_version()},
        "source": source,
        "settings": asked["settings"],
        "formats": _short(formats),
        # A note may name the source by its path, which is nobody's business.
        "notes": [n.replace(str(checkpoint.path), source["name"]) for n in notes],
        "files": {p.name: _entry(p, written.get(p.name) or sha256(p)) for p in made},
    }
    text = json.dumps(record, indent=2) + "\n"
    (folder / PROVENANCE).write_text(text, encoding="utf-8")


def read(folder: Path) -> dict[str, Any] | None:
    """The record of a converted folder; None if it has none.

    Raises:
        ValueError: the file is no such record.
    """
    path = folder / PROVENANCE
    if not path.exists():
        return None
    record = read_json(path)
    files = record.get("files")
    if not isinstance(files, dict) or not all(
        Path(name).name == name
        and isinstance(row, dict)
        and {"size", "sha256"} <= {*row}
        for name, row in files.items()
    ):
        raise ValueError(f"[provenance] {path} does not say what files there are")
    return record


def verify(folder: Path) -> list[str]:
    """One line for each file that is not as the record says; none if all are.

    Raises:
        ValueError: there is a record, but it is damaged.
    """
    record = read(folder)
    if record is None:
        return [f"{PROVENANCE} is missing"]
    found = []
    for name, row in record["files"].items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != row["size"]:
            found.append(f"{name} has {file.stat().st_size} bytes, not {row['size']}")
        elif (digest := sha256(file)) != row["sha256"]:
            found.append(f"{name} has sha256 {digest}, not {row['sha256']}")
    others = {p.name for p in folder.glob("*.safetensors")} - {*record["files"]}
    return found + [f"{name} was not there" for name in sorted(others)]


def _date() -> str:
    seconds = os.environ.get("SOURCE_DATE_EPOCH") or str(int(time.time()))
    try:
        return datetime.fromtimestamp(int(seconds), timezone.utc).isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(
            f"[provenance] SOURCE_DATE_EPOCH is {seconds!r}; expected the seconds "
            "since 1970"
        ) from error


def _state(file: Path) -> list[int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _origin(path: Path) -> dict[str, Any]:
    """The Hub's name of a snapshot and its commit, else the name alone."""
    path = Path(os.path.abspath(path))
    for folder in (path, path.parent):
        model = folder.parent.parent.name
        if folder.parent.name == "snapshots" and model.startswith("models--"):
            name = model.removeprefix("models--").replace("--", "/", 1)
            return {"name": name, "revision": folder.name}
    return {"name": path.name}


def _check_blob(file: Path, digest: str) -> None:
    """The Hub's cache names large files by their sha256."""
    blob = file.resolve()
    is_named = blob.parent.name == "blobs" and len(blob.name) == len(digest)
    if is_named and blob.name != digest:
        raise ValueError(
            f"[convert] {file} is damaged: its sha256 is {digest}, the Hub's is "
            f"{blob.name}; delete {blob} and download the model again"
        )


def _entry(file: Path, digest: str) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": digest}


def _short(formats: Mapping[str, Quantization | None]) -> dict[str, str]:
    """The commonest format as that of ``*``, and every module that has another."""
    names = {path: form.name if form else "float" for path, form in formats.items()}
    common = Counter(names.values()).most_common(1)[0][0]
    return {"*": common} | {p: name for p, name in names.items() if name != common}
