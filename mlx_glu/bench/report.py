"""The report: one HTML file that needs nothing else, and files written whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path

from . import svg
from .charts import charts
from .counts import Simulated
from .machine import Machine
from .rows import WRONG, Row, tables

#: How it was measured; the README of this folder has more.
METHOD = (
    "Every arm is compared with float64 first; a wrong one is not timed.",
    "One run is a chain of dependent calls, x = x + ffn(norm(x)), through layers that "
    "together exceed the caches; all arms take turns with the same layers.",
    "Runs are interleaved there and back (ABBA), each arm coming first in turn, so "
    "that drift meets all alike. p20, p50 and p80 are over blocks.",
    "Speed-up is the median over blocks of stock's time over the arm's; its interval "
    "is a 95% bootstrap. Faster or slower is said only where the interval excludes 1.",
    "Bytes are those of a formula: weights once, activations as often as the arm "
    "reads and writes them. Their share is that of the bandwidth of a large x + 1, "
    "measured just before.",
)
_STYLE = """
:root { --ink: #1b1b1b; --ground: #fff; --soft: #ccc; --mark: #f3f3f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --ground: #161616; --soft: #555; --mark: #242424; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--ground); max-width: 1000px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: .5em 0; font-variant-numeric: tabular-nums;
  display: block; overflow-x: auto; }
th, td { padding: .15em .7em; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid var(--soft); }
tr:nth-child(even) { background: var(--mark); }
th:nth-child(2), td:nth-child(2), th:last-child, td:last-child { text-align: left; }
dt { float: left; clear: left; width: 9em; opacity: .7; } dd { margin-left: 9em; }
.bad { font-weight: bold; }
figure { margin: 1em 0; } svg { width: 100%; max-width: 720px; }
svg text { fill: var(--ink); font-size: 12px; }
svg .title { font-weight: bold; } svg .middle { text-anchor: middle; }
svg .end { text-anchor: end; } svg .grid { stroke: var(--soft); stroke-opacity: .5; }
svg .level { stroke: var(--ink); stroke-dasharray: 5 4; }
svg .line { fill: none; stroke-width: 1.5; } svg .whisker { stroke-width: 1.5; }
"""


def html(
    rows: Sequence[Row],
    machine: Machine,
    command: str,
    notes: Sequence[str] = (),
    failures: Sequence[str] = (),
    simulated: Simulated | None = None,
) -> str:
    """The page.

    Args:
        rows: all results.
        machine: where they were measured.
        command: that makes this again.
        notes: what a reader must know.
        failures: why the command failed, if it did.
        simulated: counts to stand beside the times, or None.
    """
    facts = {**machine._asdict(), "command": command}
    facts["copy_gbps"] = f"{machine.copy_gbps:.4g} GB/s (large x + 1, read and written)"
    parts = ["<h1>mlx-glu bench</h1>", "<dl>"]
    parts += [
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
        if value is not None
    ]
    parts.append("</dl>")
    parts += [f'<p class="bad">{escape(line)}</p>' for line in failures]
    parts += [f"<p>{escape(line)}</p>" for line in notes]
    for title, table, below in tables(rows):
        parts += [f"<h2>{escape(title)}</h2>", _table(table)]
        parts += [f"<p>{escape(line)}</p>" for line in below]
    parts += [f"<figure>{svg.draw(chart)}</figure>" for chart in charts(rows)]
    if simulated:
        parts += [f"<h2>{escape(simulated.title)}</h2>", _table(simulated.table())]
    parts += [
        "<h2>Method</h2><ul>",
        *(f"<li>{escape(m)}</li>" for m in METHOD),
        "</ul>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>mlx-glu bench, {escape(machine.chip)}</title>"
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>'
        f"<body>\n{body}\n</body></html>\n"
    )


def _table(table: Sequence[Sequence[str]]) -> str:
    head, *lines = table
    cells = "".join(f"<th>{escape(c)}</th>" for c in head)
    text = [f"<tr>{cells}</tr>"]
    for line in lines:
        bad = ' class="bad"' if line[-1].startswith((WRONG, "too noisy")) else ""
        cells = "".join(f"<td>{escape(c)}</td>" for c in line)
        text.append(f"<tr{bad}>{cells}</tr>")
    return f"<table>{''.join(text)}</table>"


def check_path(flag: str, path: Path) -> None:
    """Whether a file can be written, before anything is measured for it.

    Raises:
        ValueError: it cannot; the message says why.
    """
    target = path.resolve()  # a link stays one
    if target.is_dir():
        raise ValueError(f"{flag} {path} is a folder; name a file in it")
    if target.exists() and not target.is_file():
        raise ValueError(f"{flag} {path} is a device or a pipe; name a file")
    try:
        _temporary(target).unlink()
    except OSError as error:
        raise ValueError(
            f"{flag} {path} cannot be written: {error.strerror}"
        ) from error


def write(path: Path, content: bytes) -> None:
    """Write a whole file or none; an old one is replaced."""
    target = path.resolve()
    work = _temporary(target)
    try:
        work.write_bytes(content)
        os.replace(work, target)
    finally:
        with suppress(FileNotFoundError):
            work.unlink()


def _temporary(path: Path) -> Path:
    number, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    os.close(number)
    # mkstemp's files are their owner's alone; a report is as any other file.
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(name, 0o666 & ~mask)
    return Path(name)
