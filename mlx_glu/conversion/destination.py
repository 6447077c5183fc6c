"""A folder that is either absent or complete, and never lost when replaced.

The work is done in ``.NAME.partial`` beside the destination NAME:

- ``journal.jsonl`` says what is converted and how far it is; who works holds it;
- ``new`` becomes the destination;
- ``ready`` is ``new`` while it takes the place of an older model, then that model;
- ``old`` is that model where a file system cannot exchange two folders.
"""

import ctypes
import errno
import json
import os
import reprlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .journal import JOURNAL, Journal

#: Bytes; less than this is made again in a moment, and not kept for ``--resume``.
WORTH_KEEPING = 64 << 20

#: By topic and key: what decides the content of a folder. JSON values.
About = Mapping[str, Mapping[str, Any]]

_NEW, _READY, _OLD = "new", "ready", "old"


def check_destination(source: Path, destination: Path, overwrite: bool) -> None:
    """Refuse a destination that must not be written.

    What a killed run left between the last two steps is put right first.

    Raises:
        FileExistsError: it exists and ``overwrite`` is not set.
        ValueError: it holds the source, or is no model folder to be replaced.
    """
    work = work_folder(destination)
    if work.exists() and not (work / _NEW).exists():
        with suppress(BlockingIOError), Journal(work):
            _clear(work, destination)
    if not os.path.lexists(destination):
        return
    if not overwrite:
        raise FileExistsError(
            f"[convert] {destination} exists; choose another --mlx-path, or replace "
            "it with --overwrite"
        )
    if destination.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(
            f"[convert] {destination} holds the source; choose another --mlx-path"
        )
    if not (destination / "config.json").exists():
        raise ValueError(
            f"[convert] {destination} is not a model folder (no config.json), so it "
            "is not replaced; choose another --mlx-path"
        )


def work_folder(destination: Path) -> Path:
    """Where a destination is made, and what an interrupted run left of it is."""
    whole = destination.absolute()
    return whole.parent / f".{whole.name}.partial"


def unfinished(destination: Path) -> Path | None:
    """The work folder, if it holds part of a model."""
    work = work_folder(destination)
    return work if (work / _NEW).exists() else None


@contextmanager
def new_folder(
    destination: Path, overwrite: bool, about: About, resume: bool = False
) -> Iterator[tuple[Path, Journal]]:
    """A folder that takes the destination's place if all goes well.

    Else nothing is left; but if the process is interrupted, or a file cannot be read
    or written, much work is kept for ``resume``.

    Args:
        destination: the folder to make or to replace.
        overwrite: replace it.
        about: what decides the folder's content, by topic and key; JSON values.
        resume: continue what an earlier run left, if there is something.

    Yields:
        The folder, and the journal in which to write down the files' marks.

    Raises:
        OSError: it cannot be made; the message says whether work was kept.
        ValueError: what is there was made of something else; it is kept.
    """
    work = work_folder(destination)
    made = [p for p in work.parents if not p.exists()]
    hint = ""
    try:
        with Journal(work) as journal:
            if resume and journal.about is not None:
                _check_same(destination, journal.about, about)
            try:
                if not overwrite and os.path.lexists(destination):
                    raise FileExistsError("it exists by now")
                if not (resume and journal.about and (work / _NEW).is_dir()):
                    _delete(work / _NEW)
                    journal.begin(about)
                    (work / _NEW).mkdir()
                yield work / _NEW, journal
                _publish(work, destination, overwrite, journal)
            except (OSError, KeyboardInterrupt, SystemExit):
                if (work / _NEW).exists() and journal.nbytes >= WORTH_KEEPING:
                    hint = "; what was done is kept, and --resume continues"
                raise
            finally:
                if not hint and journal.is_in_place():
                    _clear(work, destination)
    except OSError as error:
        raise OSError(
            f"[convert] {destination} cannot be made: {error}{hint}"
        ) from error
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # only where nothing came to be


def _check_same(destination: Path, old: About, new: About) -> None:
    old, new = _flat(old), _flat(json.loads(json.dumps(new)))
    changes = [
        f"{key} was {reprlib.repr(old.get(key))}, is {reprlib.repr(new.get(key))}"
        for key in {**new, **old}
        if old.get(key) != new.get(key)
    ]
    if changes:
        more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise ValueError(
            f"[convert] {destination} was begun otherwise: {'; '.join(changes[:3])}"
            f"{more}; start afresh without --resume"
        )


def _flat(about: About) -> dict[str, Any]:
    return {
        f"{topic} {key}": value
        for topic, values in about.items()
        for key, value in values.items()
    }


def _publish(work: Path, destination: Path, overwrite: bool, journal: Journal) -> None:
    """Put the new folder in the destination's place, all of it on disk before."""
    new, ready = work / _NEW, work / _READY
    for path in (*new.iterdir(), new):
        _sync(path)
    if not journal.is_in_place():
        raise FileNotFoundError(f"{work} was removed meanwhile")
    if overwrite and os.path.lexists(destination):
        os.rename(new, ready)
        if not _exchange(ready, destination):
            os.rename(destination, work / _OLD)
            os.rename(ready, destination)
    else:
        os.rename(new, destination)  # fails on a folder that is not empty
    _sync(destination.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step; False where that does not exist."""
    libc = ctypes.CDLL(None, use_errno=True)
    one, two, swap = os.fsencode(a), os.fsencode(b), 2
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(one, two, swap)
        else:
            here = -100  # AT_FDCWD
            failed = libc.renameat2(here, one, here, two, swap)
    except AttributeError:
        return False
    number = ctypes.get_errno()
    if failed and number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(number, os.strerror(number), str(b))
    return not failed


def _clear(work: Path, destination: Path) -> None:
    """Remove all that is left of the work; the older model is put back first."""
    old = work / _OLD
    with suppress(OSError):
        if not os.path.lexists(destination):
            os.rename(old, destination)
    for path in (work / _NEW, work / _READY):
        _delete(path)
    if os.path.lexists(destination):
        _delete(old)
    with suppress(OSError):
        if os.listdir(work) == [JOURNAL]:  # it tells the next run whose folder it is
            (work / JOURNAL).unlink()
            work.rmdir()


def _delete(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on disk, where the file system can tell."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
