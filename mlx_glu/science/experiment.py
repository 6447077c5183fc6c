"""What an experiment is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, NamedTuple, TypeVar, cast

#: Settings of one experiment: a frozen dataclass of numbers, names and tuples.
S = TypeVar("S")

#: What one measurement is of: values of JSON, which name it among all.
Cell = dict[str, Any]
#: A cell and what was measured of it, as it stands in the file.
Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment(Generic[S]):
    """A question that is put to the code.

    Attributes:
        quick: settings that show that everything runs, in seconds; they rank nothing.
        full: settings of the published rows.
        cells: what is measured under some settings, in order.
        then: what is measured afterwards, chosen by the rows of the first cells.
        measure: of one cell: results by name, numbers or lists of them. Random numbers
            come from seeds in the cell, so that it gives the same in any order and
            process; a number that is not finite becomes null in the file.
        summary: of all rows, a table: its first row has the heads.
        draw: fills a matplotlib figure from all rows.
        size: of the figure, inches.
        prepare: finds the files that settings need, so that their fields are paths.
            FileNotFoundError where there are none.
    """

    quick: S
    full: S
    cells: Callable[[S], Sequence[Cell]]
    measure: Callable[[S, Cell], dict[str, Any]]
    summary: Callable[[Sequence[Row]], list[list[str]]]
    draw: Callable[[Any, Sequence[Row]], None]
    size: tuple[float, float] = (7.2, 3.4)
    prepare: Callable[[S], S] = lambda settings: settings
    then: Callable[[S, Sequence[Row]], Sequence[Cell]] = lambda settings, rows: ()


class Entry(NamedTuple):
    """An experiment as the list shows it, without loading it.

    Attributes:
        module: in this folder; has ``EXPERIMENT``.
        claim: what it puts to the test.
        cost: of ``--full`` on two busy cores, from the seconds in the published rows.
    """

    module: str
    claim: str
    cost: str

    def load(self) -> Experiment[Any]:
        """Import it."""
        module = import_module(f".{self.module}", __package__)
        return cast(Experiment[Any], module.EXPERIMENT)


EXPERIMENTS = {
    "gradient-flow": Entry(
        "gradient_flow", "Gates keep gradients alive, however deep.", "40 min"
    ),
    "dead-units": Entry("dead_units", "Gated units do not die as ReLU's do.", "10 min"),
    "ntk": Entry("ntk", "Gating makes learning better conditioned.", "3 min"),
    "approximation": Entry(
        "approximation",
        "Products express more with as many parameters.",
        "25 min",
    ),
    "sharpness": Entry("sharpness", "Gating makes the loss smoother.", "10 min"),
    "char-lm": Entry("char_lm", "At equal parameters gated units learn more.", "2 h"),
    "activations": Entry(
        "activations", "A gate is a toll booth between 0 and 1.", "20 min"
    ),
}


def find(name: str) -> Entry:
    """The experiment of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in EXPERIMENTS:
        raise ValueError(
            f"[science] expected one of {', '.join(EXPERIMENTS)} but got {name!r}; "
            "see mlx-glu science list"
        )
    return EXPERIMENTS[name]
