"""docs/science.md: its tables are those of its rows, which are of the full settings."""

import json
import re
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path

import pytest

from mlx_glu.science import published
from mlx_glu.science.experiment import EXPERIMENTS
from mlx_glu.science.rows import RowFile

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from science_tables import PAGE, ROWS, filled  # noqa: E402

#: Files are named by who runs it.
OF_USER = ("text", "model")


def test_tables_are_those_of_the_rows():
    """``scripts/science_tables.py --write`` makes them."""
    page = PAGE.read_text("utf-8")
    assert filled(page) == page
    assert re.findall(r"<!-- (char-lm|ntk|shazeer) -->\n\|", page)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_was_measured(name, tmp_path):
    experiment = EXPERIMENTS[name].load()
    head, *rows = map(json.loads, (ROWS / f"{name}.jsonl").read_text().splitlines())
    assert is_dataclass(experiment.full)
    settings = RowFile(tmp_path / "rows", name, asdict(experiment.full)).header
    assert head["experiment"] == settings["experiment"]
    own, known = head["settings"], settings["settings"]
    for key in known.keys() - set(OF_USER):
        assert own[key] == known[key], key
    assert own.keys() == known.keys()
    cells = [*experiment.cells(experiment.full)]
    cells += experiment.then(experiment.full, rows)
    plain = json.loads(json.dumps(cells))
    assert [{k: row[k] for k in c} for row, c in zip(rows, plain, strict=True)] == plain


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_page_shows_figure_and_command(name):
    page = PAGE.read_text("utf-8")
    assert f"mlx-glu science run {name} --full" in page
    for theme in ("", "-dark"):
        file = f"science/{name}{theme}.svg"
        assert f'"{file}"' in page
        assert (PAGE.parent / file).stat().st_size < 200_000


def test_readme_shows_figures_that_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    shown = re.findall(r'(?:src|srcset)="(docs/science/[\w-]+\.svg)"', text)
    assert len(shown) == 4
    assert all((ROOT / path).exists() for path in shown)
    assert "(docs/science.md)" in text


def test_links_lead_somewhere():
    """To headings of the page, as GitHub names them."""
    page = PAGE.read_text("utf-8")
    heads = re.findall(r"^## (.*)$", page, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}
    wanted = set(re.findall(r"\]\(#([\w-]+)\)", page))
    assert wanted
    assert wanted <= anchors


def test_papers_are_named_with_their_numbers():
    page = PAGE.read_text("utf-8")
    for table in published.tables().values():
        (number,) = re.findall(r"arXiv:[\d.]+\d", table.source)
        assert number in page
