"""Where verdicts are kept: a file that several processes share."""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from .. import user_cache
from .machine import Machine
from .verdicts import Key, Verdict

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

#: A larger file is none of ours: a verdict takes a few hundred bytes.
MAX_BYTES = 16 << 20

#: Seconds to wait for another process, which writes in milliseconds.
PATIENCE_S = 10.0


class Store:
    """Verdicts of all machines that share a file.

    A file that cannot be read counts as absent, and one that cannot be written
    leaves verdicts in memory; either is said once, in a warning.
    """

    def __init__(self, path: Path | None) -> None:
        """Use ``path``, which need not exist; None keeps verdicts in memory."""
        self.path = path
        self._known: dict[str, dict[Key, Verdict]] = {}
        self._warned: set[str] = set()

    def verdicts(self, machine: Machine) -> Mapping[Key, Verdict]:
        """Verdicts that hold for a machine; read once, then from memory."""
        if machine.key not in self._known:
            section = self._read(machine).get(machine.key, {})
            self._known[machine.key] = _parse(section)
        return self._known[machine.key]

    def add(self, machine: Machine, key: Key, verdict: Verdict) -> None:
        """Keep a verdict, in place of an older one of its key."""
        self._known[machine.key] = {**self.verdicts(machine), key: verdict}
        if self.path is None:
            return
        case, rows = key
        try:
            with self._locked():
                machines = self._read(machine)
                ours = machines.setdefault(machine.key, {})
                ours.setdefault(case, {})[rows] = verdict.as_json()
                self._write(machines)
        except OSError as error:
            self._warn("written", error, "new verdicts hold in this process alone")

    def reset(self) -> None:
        """Forget the verdicts of all machines.

        Raises:
            ValueError: the file cannot be removed.
        """
        self._known.clear()
        self._warned.clear()
        if self.path is None or not os.path.lexists(self.path):
            return
        try:
            with self._locked():
                self._clear_place()
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"[tuning] {self.path} cannot be removed ({error}); remove it yourself"
            ) from error

    def _read(self, machine: Machine) -> dict[str, Any]:
        """The file's content by machine; sections of others are not looked at."""
        if self.path is None:
            return {}
        machines: dict[str, Any] = {}
        try:
            # Opening a pipe as usual would wait for its writer.
            with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES} bytes")
            found = json.loads(content)
            if not isinstance(found, dict):
                raise ValueError("it holds no object")
            machines = found
            _parse(machines.get(machine.key, {}))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError, RecursionError) as error:
            machines.pop(machine.key, None)
            self._warn("read", error, "it counts as absent, and is replaced in time")
        return machines

    def _write(self, machines: dict[str, Any]) -> None:
        assert self.path is not None
        self._clear_place()
        # Only who holds the lock writes, so a crash leaves one such file at most.
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(machines, indent=2) + "\n", encoding="utf-8")
        os.replace(new, self.path)

    def _clear_place(self) -> None:
        """Move a folder aside that is where the file goes."""
        assert self.path is not None
        if self.path.is_dir() and not self.path.is_symlink():
            aside = tempfile.mkdtemp(prefix="moved-", dir=self.path.parent)
            os.rename(self.path, Path(aside) / self.path.name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, which ends with the process that holds it."""
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Not truncated: it may be a link to something.
        with self.path.with_suffix(".lock").open("a") as lock:
            if fcntl is not None:
                _wait_for(lock.fileno())
            yield

    def _warn(self, what: str, error: Exception, then: str) -> None:
        if what in self._warned:
            return
        self._warned.add(what)
        reason = str(error) or type(error).__name__
        warnings.warn(
            f"[tuning] {self.path} cannot be {what} ({reason}); {then}",
            RuntimeWarning,
            stacklevel=3,
        )


def _parse(section: Any) -> dict[Key, Verdict]:
    """Verdicts of one machine.

    Raises:
        ValueError: the section is not what :meth:`Store.add` writes.
    """
    if not isinstance(section, dict):
        raise ValueError(f"{str(section)[:80]} has no cases")
    verdicts = {}
    for case, ranges in section.items():
        if not isinstance(ranges, dict):
            raise ValueError(f"{str(ranges)[:80]} has no ranges of M")
        for rows, found in ranges.items():
            verdicts[case, rows] = Verdict.from_json(found)
    return verdicts


def _wait_for(lock: int) -> None:
    """Take the lock of a file.

    Raises:
        OSError: the file system has no locks, or somebody holds it all the time.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"locked for {PATIENCE_S:g} s") from None
            time.sleep(0.002)


@cache
def _store_at(path: Path | None) -> Store:
    return Store(path)


def default_store() -> Store:
    """The store in the user's cache; in memory where there is no home directory."""
    try:
        return _store_at(user_cache.cache_folder() / "tuning" / "verdicts.json")
    except RuntimeError:
        return _store_at(None)
