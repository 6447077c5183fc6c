"""A folder that is either absent or complete, and never lost when replaced."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def check_destination(source: Path, destination: Path, overwrite: bool) -> None:
    """Refuse a destination that must not be written.

    Raises:
        FileExistsError: it exists and ``overwrite`` is not set.
        ValueError: it holds the source, or is no model folder to be replaced.
    """
    if not destination.exists() and not destination.is_symlink():
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


@contextmanager
def new_folder(destination: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that takes the destination's place if all goes well, else goes."""
    parent = destination.absolute().parent
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    work = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{destination.name}.partial-"
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        folder = work / "new"
        folder.mkdir()
        yield folder
        _replace(destination, folder, work / "old", overwrite)
    except OSError as error:
        raise OSError(f"[convert] {destination} cannot be made: {error}") from error
    finally:
        if work:
            shutil.rmtree(work / "new", ignore_errors=True)
            if destination.exists():  # else "old" is all that is left of it
                shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):
                work.rmdir()
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # only where nothing came to be


def _replace(destination: Path, new: Path, old: Path, overwrite: bool) -> None:
    """Put ``new`` in the destination's place; if that fails, the old one returns."""
    if not overwrite:
        os.rename(new, destination)  # fails on a folder that is not empty
        return
    try:
        with suppress(FileNotFoundError):
            os.rename(destination, old)
        os.rename(new, destination)
    except BaseException:
        if old.exists():
            os.rename(old, destination)
        raise
