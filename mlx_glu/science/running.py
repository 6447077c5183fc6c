"""Run the cells of an experiment, each once, however often it is interrupted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import asdict
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import mlx.core as mx

from .experiment import Cell, Experiment, Row, find
from .rows import RowFile


def run(
    name: str, settings: Any, file: RowFile, *, workers: int = 1
) -> Iterator[tuple[int, int]]:
    """Measure what the file lacks and append it, cell by cell.

    Args:
        name: of the experiment.
        settings: of that experiment.
        file: has the rows of such settings, or none.
        workers: processes that share the cells, each with one thread of BLAS.

    Yields:
        Cells done and cells of all, at the start and after each.
    """
    experiment = find(name).load()
    cells: list[Cell] = []
    for stage in (experiment.cells, lambda own: experiment.then(own, file.rows)):
        cells += stage(settings)
        missing = [cell for cell in cells if not file.has(cell)]
        done = len(cells) - len(missing)
        yield done, len(cells)
        measured = _measured(name, experiment, settings, missing, workers)
        with closing(measured):  # ends its processes, whatever happens here
            for row in measured:
                file.append(row)
                done += 1
                yield done, len(cells)
    file.sort(cells)


def default_workers() -> int:
    """One for a GPU, which is shared badly; else one a core."""
    if mx.default_device().type == mx.DeviceType.gpu:
        return 1
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _measured(
    name: str,
    experiment: Experiment[Any],
    settings: Any,
    cells: Sequence[Cell],
    workers: int,
) -> Generator[Row, None, None]:
    workers = min(workers, len(cells))
    if workers <= 1:
        for cell in cells:
            yield _row(experiment, settings, cell)
        return
    spawn = get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=_ignore_interrupts)
    with _one_thread(), pool:
        try:
            waiting = [pool.submit(_in_worker, name, settings, cell) for cell in cells]
            for future in as_completed(waiting):
                yield future.result()
        except BaseException:
            # Cells under way take minutes, and nobody would write their rows. Without
            # processes the pool gives up those that wait, too.
            for process in active_children():
                process.terminate()
            raise


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_worker(name: str, settings: Any, cell: Cell) -> Row:
    return _row(find(name).load(), settings, cell)


def _row(experiment: Experiment[Any], settings: Any, cell: Cell) -> Row:
    start = time.perf_counter()
    found = experiment.measure(settings, cell)
    return {**cell, **found, "seconds": round(time.perf_counter() - start, 2)}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Workers that begin here have one thread of BLAS: cores are theirs already."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def open_rows(path: Path, name: str, settings: Any) -> RowFile:
    """The rows in a file, if they are of these settings; else a new file.

    Raises:
        ValueError: the file has rows of other settings, or is no such file.
    """
    return RowFile(path, name, asdict(settings))
