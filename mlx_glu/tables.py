"""Tables of text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(
    table: Sequence[Sequence[str]], *, right: Collection[int] = ()
) -> list[str]:
    """Lines of a table, its columns two spaces apart.

    Args:
        table: rows of cells, as many in each.
        right: columns that end, and do not begin, below each other: numbers.

    Returns:
        A line for each row.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = enumerate(zip(row, widths, strict=True))
        padded = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in cells)
        lines.append("  ".join(padded).rstrip())
    return lines
