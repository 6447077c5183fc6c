"""What of a conversion is on disk already: a small file that one process holds."""

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

JOURNAL = "journal.jsonl"


class Mark(NamedTuple):
    """The start of a file: its size in bytes, and its sha256.

    A mark is no promise: after a loss of power a file may be shorter or hold
    zeros, so whoever continues compares the digest.
    """

    size: int
    sha256: str


class Journal:
    """The journal of a folder, which is made if need be; closing lets go of it.

    One JSON value a line: what is converted to what, then a mark for every tensor
    that was written.

    Attributes:
        about: what an earlier run said of its conversion, or None.
        marks: by file name, in the order of their making.

    Raises:
        BlockingIOError: another process holds it.
        ValueError: the folder is none of ours.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.about: Mapping[str, Mapping[str, Any]] | None = None
        self.marks: dict[str, list[Mark]] = defaultdict(list)
        if (
            folder.exists()
            and not self.path.exists()
            and any(p.name != JOURNAL for p in folder.iterdir())
        ):
            raise ValueError(
                f"[convert] {folder} is where the unfinished model would be, but "
                "holds something else; move it away"
            )
        self._file = self._hold()
        self._read()

    @property
    def nbytes(self) -> int:
        """How much was written, by the marks."""
        return sum(marks[-1].size for marks in self.marks.values() if marks)

    def begin(self, about: Mapping[str, Mapping[str, Any]]) -> None:
        """Forget what an earlier run did."""
        self.about, self.marks = about, defaultdict(list)
        self._file.truncate(0)
        self._append(about)

    def add(self, file_name: str, mark: Mark) -> None:
        """Write down how far a file is."""
        self.marks[file_name].append(mark)
        self._append([file_name, *mark])

    def is_in_place(self) -> bool:
        """Is this the file that others find, or was the folder removed meanwhile?"""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _hold(self) -> IO[bytes]:
        for _ in range(100):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._file = self.path.open("a+b")
            except FileNotFoundError:
                continue  # the last holder removes the folder just now
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                break
            except OSError:
                pass  # a file system without locks
            if self.is_in_place():
                return self._file
            self._file.close()
        raise BlockingIOError(
            f"another conversion is writing to {self.path.parent}; wait for its end, "
            "or choose another --mlx-path"
        )

    def _append(self, value: Any) -> None:
        # The line break comes first: a line that was cut off spoils no other.
        self._file.write(b"\n" + json.dumps(value).encode())
        self._file.flush()

    def _read(self) -> None:
        self._file.seek(0)
        for line in self._file.read().splitlines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            match value:
                case dict() if all(isinstance(topic, dict) for topic in value.values()):
                    self.about = value
                case [str(file_name), int(size), str(sha256)]:
                    self.marks[file_name].append(Mark(size, sha256))
