"""Files from strangers: what may be opened, how much is read, what JSON is parsed.

A checkpoint folder may hold pipes, links to other people's files, or a config of a
gigabyte. All that is read from one comes through here, or checks as much itself.
"""

import json
import os
import reprlib
import stat
from io import FileIO
from pathlib import Path
from typing import Any

#: Bytes and items of a JSON file. The index of 100,000 tensors has 10 MB and 100,000
#: items, a safetensors header of as many 14 MB and 800,000; what Python makes of
#: these limits stays below half a gigabyte and one second.
MAX_JSON, MAX_ITEMS = 32 << 20, 1_500_000


def open_file(path: Path) -> FileIO:
    """Open a regular file for reading, if it belongs to its folder.

    A link must stay in the folder, or lead to the blobs of the same model in Hugging
    Face's cache, where every file of a snapshot is a link. Any other could bring a
    private file into what is converted and given away.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a link that leads away, a folder, a pipe, a device, or a name that
            a terminal cannot show.
    """
    if not path.name.isprintable():
        raise ValueError(f"[load] {path.parent} has a file {path.name!r}; rename it")
    folder = path.parent.resolve()
    try:
        target = path.resolve(strict=True)
    except RuntimeError as error:  # a loop of links, before Python 3.13
        raise ValueError(f"[load] {path} is a link to itself") from error
    homes = [folder]
    homes += [p.parent / "blobs" for p in (folder, *folder.parents) if _holds_blobs(p)]
    if not any(target.is_relative_to(home) for home in homes):
        raise ValueError(
            f"[load] {path} is a link out of its folder, to {target}; links are "
            "followed inside a folder and in Hugging Face's cache: copy the file"
        )
    # A pipe would block until someone writes to it.
    descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(
            f"[load] {path} is a folder, a pipe or a device; expected a file"
        )
    return FileIO(descriptor)


def read_file(path: Path, limit: int = MAX_JSON) -> bytes:
    """The content of a file of at most ``limit`` bytes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is larger, or `open_file` refuses it.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(
                f"[load] {path} has {size:,} bytes; no real one has more than {limit:,}"
            )
        return file.read(size) or b""


def read_text(path: Path, limit: int = MAX_JSON) -> str:
    """A file as UTF-8; errors as of `read_file`, and for what is no UTF-8."""
    try:
        return read_file(path, limit).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"[load] {path} is not UTF-8 text") from error


def parse_json(text: bytes, items: int = MAX_ITEMS, **options: Any) -> Any:
    """Parse JSON of at most ``items`` values; ``options`` are those of json.loads.

    Raises:
        ValueError: no JSON, more values, or nested deeper than Python's stack.
    """
    # Each value but the first of a list or object follows a comma. Two characters of
    # text become a list of 56 bytes, so the size of the text alone bounds little.
    found = sum(map(text.count, (b",", b"[", b"{")))
    if found > items:
        raise ValueError(f"it has up to {found:,} values; no real one has {items:,}")
    try:
        return json.loads(text.decode(), **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(value: object) -> str:
    """Its repr, short enough for a message."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 300
    return short.repr(value)


def _holds_blobs(folder: Path) -> bool:
    """Is this the ``snapshots`` of ``models--org--name/{snapshots,blobs}``?"""
    return folder.name == "snapshots" and folder.parent.name.startswith("models--")
