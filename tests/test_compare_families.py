"""scripts/compare_families.py: the table of families, ours beside mlx-lm's."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "compare_families.py"
sys.path.insert(0, str(SCRIPT.parent))

from compare_families import BEGIN, END, ask_mlx_lm, shown, write  # noqa: E402


def compare(*words):
    return subprocess.run(
        [sys.executable, SCRIPT, *words], capture_output=True, text=True
    )


def test_two_families():
    """Ours is within the bound; mlx-lm 0.32 does not know Mistral's window."""
    pytest.importorskip("mlx_lm")
    done = compare("gemma", "mistral")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (.*) \|$", done.stdout, re.M)
    head, _, *rows = [row.split(" | ") for row in rows]
    assert head[0] == "family"
    assert [row[0] for row in rows if "," not in row[0]] == ["mistral", "gemma"]
    for row in rows:
        assert len(row) == len(head)
        assert all(float(cell) <= 2e-5 for cell in row[1:3]), row
        for cell in row[3:]:
            assert float(cell.strip("*")) > 2e-5 if "*" in cell else float(cell) <= 2e-5
    assert "float64" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lama"], "no family 'lama'"),
        (["gemma", "--write", "x"], "--write takes all families"),
    ],
)
def test_mistakes(words, message):
    done = compare(*words)
    assert done.returncode == 2
    assert message in done.stderr


def test_it_goes_between_its_markers(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{BEGIN}old{END}\nafter\n")
    write(file, "\nnew\n")
    assert file.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    file.write_text("no markers")
    with pytest.raises(SystemExit, match="needs one"):
        write(file, "new")
    assert file.read_text() == "no markers"


def test_a_crash_is_an_answer(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    crash = "crash: exit code 1"
    assert ask_mlx_lm("llama", str(tmp_path)) == [crash, crash]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (1.26e-6, "1e-6"),
        (2e-5, "2e-5"),
        (2.1e-5, "**2e-5**"),
        (0.817, "**0.82**"),
        (float("inf"), "**inf**"),
        ("KeyError: 'a|b'", "`KeyError: 'a b'`"),
        ("ValueError: too\nlong. And more.", "`ValueError: too long`"),
    ],
)
def test_cells(cell, text):
    assert shown(cell) == text
