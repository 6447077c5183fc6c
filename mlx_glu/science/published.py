"""What papers report of gated units, as data."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class Table(NamedTuple):
    """Of one paper.

    Attributes:
        source: paper and table.
        setting: what was trained, and what was measured.
        columns: names of the numbers.
        rows: numbers by unit, as `training.ungated.feed_forward` calls it, or model;
            None where there is none.
    """

    source: str
    setting: str
    columns: list[str]
    rows: dict[str, list[float | None]]

    def column(self, name: str) -> dict[str, float]:
        """The numbers of a column by row."""
        i = self.columns.index(name)
        return {unit: x for unit, row in self.rows.items() if (x := row[i]) is not None}


@lru_cache(maxsize=1)
def tables() -> dict[str, Table]:
    """By first author: "shazeer", "narang", "dauphin"."""
    text = Path(__file__).with_name("published.json").read_text("utf-8")
    return {name: Table(**table) for name, table in json.loads(text).items()}
