"""Rows of results on disk: JSON lines, below the settings that they belong to."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import blas
from ..bench.machine import described
from ..bench.report import write
from ..hashing import sha256
from .experiment import Cell, Row


class RowFile:
    """A header, then rows; appended to, so that an interruption loses one at most.

    Args:
        path: of the file; it need not exist.
        name: of the experiment.
        settings: by name, values of JSON. A path becomes the name, and of a file the
            sha256 too.

    Raises:
        ValueError: it has rows of another experiment or of other settings.
    """

    def __init__(self, path: Path, name: str, settings: dict[str, Any]) -> None:
        self.path = path
        self.header = {"experiment": name, "settings": _plain(settings)}
        self.rows: list[Row] = []
        self._machine: dict[str, Any] | None = None
        if path.exists():
            self._read()

    def _read(self) -> None:
        text = self.path.read_text("utf-8")
        lines = text.splitlines()
        is_cut = bool(text) and not text.endswith("\n")
        if is_cut:
            lines.pop()  # while it was written
        try:
            head, *rows = [json.loads(line) for line in lines] or [{}]
            own = {key: head.get(key) for key in self.header}
        except (json.JSONDecodeError, AttributeError) as error:
            raise ValueError(
                f"[science] {self.path} is no file of rows: {error}; move it away"
            ) from error
        if own != self.header:
            raise ValueError(
                f"[science] {self.path} has rows of {own}, not of {self.header}; "
                "move it away, or write to another --out"
            )
        self._machine = head["machine"]
        self.rows = rows
        if is_cut:
            self._write(rows)  # else the next row would go on in that line

    @property
    def machine(self) -> dict[str, Any]:
        """Where the rows were measured first."""
        if self._machine is None:
            self._machine = _machine()
        return self._machine

    def has(self, cell: Cell) -> bool:
        """Whether the cell was measured."""
        plain = _plain(cell)
        return any(_has(row, plain) for row in self.rows)

    def append(self, row: Row) -> None:
        """Add a row, on disk at once."""
        row = _plain(row)
        if not self.rows:
            self._write([])
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
        self.rows.append(row)

    def sort(self, cells: Sequence[Cell]) -> None:
        """Bring the rows into the order of the cells."""
        plain = [_plain(cell) for cell in cells]
        rows = [row for cell in plain for row in self.rows if _has(row, cell)]
        if rows != self.rows:
            self._write(rows)

    def _write(self, rows: Sequence[Row]) -> None:
        head = {**self.header, "machine": self.machine}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write(self.path, "".join(map(_line, [head, *rows])).encode())
        self.rows = list(rows)


def _has(row: Row, cell: Cell) -> bool:
    return all(row.get(key) == value for key, value in cell.items())


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """As JSON will give it back; six digits of a float, null for one not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Path):
        named = {"name": value.name}
        return named | ({"sha256": sha256(value)} if value.is_file() else {})
    return value


def _machine() -> dict[str, Any]:
    found = described()
    return found | ({"fast_blas": blas.is_fast()} if found["device"] == "cpu" else {})
