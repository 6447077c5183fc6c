"""Verdicts as people read them, and how to be rid of them."""

from __future__ import annotations

from pathlib import Path

from ..tables import aligned
from . import judging, self_test
from .machine import Machine
from .store import Store, default_store


def report(machine: Machine | None = None, store: Store | None = None) -> str:
    """A table of the verdicts for a machine, and where they are kept.

    Args:
        machine: by default this one.
        store: by default the user's cache.

    Returns:
        Lines: the machine, the file, a header and a row for each verdict.
    """
    machine = machine or Machine.here()
    store = store or default_store()
    rows = [("case", "M", "runs", "speed-up", "95% interval", "why")]
    for (case, rows_of_x), verdict in sorted(store.verdicts(machine).items()):
        speedup, interval = "-", "-"
        if verdict.speedup is not None:
            speedup = f"{verdict.speedup:.3f}"
            interval = f"{verdict.low:.3f} to {verdict.high:.3f}"
        rows.append((case, rows_of_x, verdict.impl, speedup, interval, verdict.why))
    where = store.path or "memory, as there is no home directory"
    lines = [f"machine: {machine.key}", f"kept in: {where}"]
    if len(rows) == 1:
        return "\n".join([*lines, "nothing has been measured on this machine yet"])
    return "\n".join([*lines, *aligned(rows)])


def reset(store: Store | None = None) -> Path | None:
    """Forget all verdicts, those of other machines and versions too.

    Args:
        store: by default the user's cache.

    Returns:
        The file that is gone; None where there was none.

    Raises:
        ValueError: the file cannot be removed.
    """
    store = store or default_store()
    path = store.path if store.path is not None and store.path.exists() else None
    store.reset()
    self_test.forget()
    judging.forget()
    return path
