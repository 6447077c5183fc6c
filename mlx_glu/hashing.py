"""sha256 of files, in one go or while other work goes on."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

#: Bytes read at a time: they stay in the cores' caches.
_CHUNK = 1 << 20


def sha256(file: Path, stop: Event | None = None) -> str:
    """The digest of a file's content, in hexadecimal.

    Args:
        file: read from its start to its end.
        stop: an event that ends the reading; what is returned then means nothing.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with file.open("rb", buffering=0) as stream:
        while not (stop and stop.is_set()) and (size := stream.readinto(buffer)):
            digest.update(buffer[:size])
    return digest.hexdigest()


class BackgroundHashes:
    """Digests of files, computed by a thread; leaving the context ends it.

    Args:
        files: in the order in which others read them.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._stop = Event()
        self._thread = ThreadPoolExecutor(1)
        self._found = {f: self._thread.submit(sha256, f, self._stop) for f in files}

    def result(self, file: Path) -> str:
        """The digest of one of the files; waits for it."""
        return self._found[file].result()

    def __enter__(self) -> "BackgroundHashes":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)
