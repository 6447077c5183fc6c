"""The tables of docs/science.md, from the rows in docs/science.

Each stands between <!-- NAME --> and <!-- /NAME -->, where NAME is an experiment's, or
that of a table of mlx_glu/science/published.json.

    .venv/bin/python scripts/science_tables.py [--write]
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from mlx_glu.science.experiment import EXPERIMENTS  # before MLX: it brings the BLAS
from mlx_glu.science.figures import label
from mlx_glu.science.published import tables

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "science.md"
ROWS = ROOT / "docs" / "science"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put them into the page")
    args = parser.parse_args()
    text = filled(PAGE.read_text("utf-8"))
    if args.write:
        PAGE.write_text(text, "utf-8")
    else:
        print(*(table(name) for name in (*EXPERIMENTS, *tables())), sep="\n\n")


def filled(page: str) -> str:
    """The page with every table made anew."""

    def block(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- {name} -->\n{table(name)}\n<!-- /{name} -->"

    names = "|".join((*EXPERIMENTS, *tables()))
    return re.sub(rf"<!-- ({names}) -->.*?<!-- /\1 -->", block, page, flags=re.S)


def table(name: str) -> str:
    """As Markdown: what a paper reports, or what the command prints below the rows."""
    if name in tables():
        paper = tables()[name]
        head = [name.capitalize(), *(c.replace("_", " ") for c in paper.columns)]
        body = [
            [label(unit), *("" if x is None else f"{x:g}" for x in numbers)]
            for unit, numbers in paper.rows.items()
        ]
    else:
        lines = (ROWS / f"{name}.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines[1:]]
        head, *body = EXPERIMENTS[name].load().summary(rows)
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


if __name__ == "__main__":
    main()
