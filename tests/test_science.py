"""The frame of the experiments: rows, resuming, figures, command; and two of them."""

import json
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest

from mlx_glu import cli
from mlx_glu.science import char_lm, char_lm_report, corpus, figures, ntk, published
from mlx_glu.science.char_model import CharModel, Shape, count_parameters, evaluate
from mlx_glu.science.experiment import EXPERIMENTS
from mlx_glu.science.rows import RowFile
from mlx_glu.science.running import open_rows, run

QUICK = ntk.EXPERIMENT.quick


def finish(path, name="ntk", settings=QUICK, workers=1):
    file = open_rows(path, name, settings)
    *_, (done, total) = run(name, settings, file, workers=workers)
    assert done == total == len(file.rows)
    return file


def without_times(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def ntk_file(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("rows") / "ntk.jsonl")


def test_file_says_where_it_was_measured(ntk_file):
    head, *rows = map(json.loads, ntk_file.path.read_text().splitlines())
    assert head["experiment"] == "ntk"
    assert head["settings"]["hidden_dims"] == QUICK.hidden_dims
    assert {"date", "mlx", "chip", "device", "package"} <= head["machine"].keys()
    assert rows == ntk_file.rows
    assert all(row["seconds"] >= 0 for row in rows)


def test_finished_cells_are_not_measured_again(ntk_file, tmp_path):
    """The last line was cut while it was written; what is whole stays as it is."""
    path = tmp_path / "ntk.jsonl"
    text = ntk_file.path.read_text()
    lines = text.splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[3], lines[2], lines[5][:20]]))
    kept = [json.loads(line) for line in lines[2:4]]
    file = finish(path)
    assert [row for row in file.rows if row in kept] == kept
    assert without_times(file.rows) == without_times(ntk_file.rows)
    assert path.read_text().count("\n") == len(lines)


def test_a_row_that_was_cut_leaves_nothing(ntk_file, tmp_path):
    """What is appended stands in a line of its own, even if nothing is sorted later."""
    path = tmp_path / "ntk.jsonl"
    head, *lines = ntk_file.path.read_text().splitlines(keepends=True)
    path.write_text("".join([head, lines[0], lines[1][:20]]))
    file = open_rows(path, "ntk", QUICK)
    file.append(ntk_file.rows[1])
    assert path.read_text() == "".join([head, *lines[:2]])


def test_what_interrupts_ends_the_processes(tmp_path):
    """At once, though cells are under way: nobody is left to write their rows."""
    file = open_rows(tmp_path / "ntk.jsonl", "ntk", ntk.Settings())
    steps = run("ntk", ntk.Settings(), file, workers=2)
    while next(steps)[0] < 1:
        pass
    assert len(multiprocessing.active_children()) == 2
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert multiprocessing.active_children() == []
    assert open_rows(file.path, "ntk", ntk.Settings()).rows == file.rows


def test_processes_give_the_same_rows(ntk_file, tmp_path):
    file = finish(tmp_path / "ntk.jsonl", workers=2)
    assert without_times(file.rows) == without_times(ntk_file.rows)


def test_rows_of_other_settings_are_refused(ntk_file):
    before = ntk_file.path.read_bytes()
    with pytest.raises(ValueError, match="not of"):
        open_rows(ntk_file.path, "ntk", ntk.Settings())
    with pytest.raises(ValueError, match="not of"):
        open_rows(ntk_file.path, "other", QUICK)
    assert ntk_file.path.read_bytes() == before


@pytest.mark.parametrize("text", ["not JSON\n", "{]\n", "[1]\n", '"x"\n', "{}\n"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "ntk.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        open_rows(path, "ntk", QUICK)
    assert path.read_text() == text


def test_numbers_that_are_not_finite_are_null(tmp_path):
    file = RowFile(tmp_path / "a.jsonl", "a", {"text": Path(__file__)})
    file.append({"x": float("nan"), "y": [float("inf"), 1 / 3]})
    head, row = map(json.loads, file.path.read_text().splitlines())
    assert row == {"x": None, "y": [None, 0.333333]}
    assert head["settings"]["text"]["name"] == "test_science.py"
    assert len(head["settings"]["text"]["sha256"]) == 64


def test_figures_are_the_same_each_time(ntk_file, tmp_path):
    pytest.importorskip("matplotlib")
    first = figures.save(ntk.EXPERIMENT, ntk_file.rows, tmp_path / "a")
    second = figures.save(ntk.EXPERIMENT, ntk_file.rows, tmp_path / "b")
    assert [p.name for p in first] == ["a.svg", "a-dark.svg"]
    light, dark = (p.read_bytes() for p in first)
    assert [light, dark] == [p.read_bytes() for p in second]
    assert b"#ffffff" in light
    assert b"#ffffff" not in dark


def test_every_unit_is_drawn_in_its_own_way():
    """Colour may be lost in print, so marker, fill or line tell units apart, too."""
    units = [*figures.STYLES]
    shown = []
    for unit in units:
        own = figures.style(unit)
        filled = own["markerfacecolor"] != "none"
        shown.append((own["marker"], filled, own["linestyle"]))
    twins = {"gelu_tanh", "geglu_tanh"}  # never beside the exact ones
    kept = [how for unit, how in zip(units, shown, strict=True) if unit not in twins]
    assert len(set(kept)) == len(kept)


# The command.


def test_list_names_all(capsys):
    cli.main(["science", "list"])
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["name", *EXPERIMENTS]


def test_run_writes_rows_and_figures(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "results"
    cli.main(["science", "run", "ntk", "--out", str(out)])
    names = {p.name for p in out.iterdir()}
    assert names == {"ntk-quick.jsonl", "ntk-quick.svg", "ntk-quick-dark.svg"}
    said = capsys.readouterr()
    assert "reglu" in said.out
    assert "only --full answers" in said.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "nothing"], "expected one of"),
        (["run", "ntk", "--text", "x"], "--text does not go with ntk"),
        (["run", "ntk", "--workers", "0"], "--workers must be at least 1"),
        (["run", "ntk", "--quick", "--full"], "not allowed with"),
        (["run", "char-lm", "--text", "missing.txt"], "missing.txt"),
        (["run"], "NAME"),
        ([], "ACTION"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(capsys, tmp_path, argv, says, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["science", *argv])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [["ntk"], ["all", "--text", "text"]], ids=" ".join)
def test_a_place_without_files_is_found_first(capsys, tmp_path, names, monkeypatch):
    """Before anything is measured."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("abcdefghij" * 300)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["science", "run", *names, "--out", "text"])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "text" in said.err.splitlines()[-1]
    assert "--out text cannot be a folder" in said.err
    assert said.out == ""


def test_rows_of_other_settings_are_found_first(ntk_file, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    other = tmp_path / "dead-units-quick.jsonl"
    other.write_bytes(ntk_file.path.read_bytes())
    with pytest.raises(SystemExit):
        cli.main(["science", "run", "ntk", "dead-units", "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert str(other) in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == [other]


# The tangent kernel.


@pytest.mark.parametrize(
    ("unit", "curve"),
    [("relu", ntk.relu_kernel), ("reglu", ntk.reglu_kernel)],
    ids=["relu", "reglu"],
)
def test_wide_block_has_the_kernel_of_theory(unit, curve):
    """At N = 20000 the random kernel is within its own noise of the infinite one."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    K = ntk.kernel(unit, x, 20000, seed=0)
    expected = curve(np.clip(x @ x.T, -1, 1))
    scale = np.trace(K) / np.trace(expected)
    np.testing.assert_allclose(K / scale, expected, atol=0.05)


def test_condition_is_that_of_the_kernel():
    cell = ntk.cells(QUICK)[0]
    found = ntk.measure(QUICK, cell)
    assert found == ntk.measure(QUICK, cell)
    assert found["largest"] / found["smallest"] == pytest.approx(found["condition"])
    assert found["smallest"] < 1 < found["largest"]


# The character model.


@pytest.fixture(scope="module")
def char_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "char-lm.jsonl"
    return finish(path, "char-lm", char_lm.EXPERIMENT.quick)


def test_units_are_compared_at_their_best_rate(char_file):
    for row in char_file.rows:
        if row["phase"] != "tune":
            assert row["learning_rate"] == char_lm.best_rate(
                char_file.rows, row["unit"]
            )
    phases = [row["phase"] for row in char_file.rows]
    assert [phases.count(p) for p in ("tune", "compare", "wide", "noise")] == [
        4,
        4,
        2,
        2,
    ]


def test_units_cost_the_same_but_the_wide_ones(char_file):
    same = {r["parameters"] for r in char_file.rows if r["phase"] != "wide"}
    (wide,) = {r["parameters"] for r in char_file.rows if r["phase"] == "wide"}
    assert len(same) == 1
    shape = char_lm.EXPERIMENT.quick.shape
    # Half as many again in the feed-forward.
    assert wide - same.pop() == 4 * shape.dims**2 * shape.layers


def test_parts_that_are_shared_begin_alike():
    shape = Shape(dims=12, layers=1, heads=2, context=16)
    a, b = (CharModel(20, shape, unit, seed=3) for unit in ("relu", "swiglu"))
    assert count_parameters(a) == count_parameters(b)
    for name in ("embed", "head"):
        assert (a[name].weight == b[name].weight).all()
    first, second = a.layers[0].attention, b.layers[0].attention
    assert (first.o_proj.weight == second.o_proj.weight).all()


def test_loss_counts_every_character_once():
    """Against a loop over windows in float64."""
    shape = Shape(dims=12, layers=1, heads=2, context=16)
    model = CharModel(9, shape, "geglu", seed=1)
    ids = np.random.default_rng(0).integers(0, 9, 75).astype(np.int32)
    import mlx.core as mx

    losses = []
    for start in range(0, 64, 16):
        window = ids[start : start + 17]
        logits = np.array(model(mx.array(window[None, :-1])), np.float64)[0]
        logits -= logits.max(axis=1, keepdims=True)
        shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses += [-shares[i, c] for i, c in enumerate(window[1:])]
    assert evaluate(model, ids, 16, batch=3) == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_unit_that_never_trained_is_named():
    rows = [{"phase": "tune", "unit": "glu", "learning_rate": 1.0, "tune_loss": None}]
    with pytest.raises(ValueError, match="glu"):
        char_lm.best_rate(rows, "glu")


def test_comparison_pairs_seeds():
    """Seeds differ much, units by 0.1 everywhere: only pairs can see it."""

    def row(phase, unit, seed, loss):
        named = {"phase": phase, "unit": unit, "seed": seed, "learning_rate": 1e-3}
        return {**named, "tune_loss": loss, "test_loss": loss}

    rows = [row("compare", "relu", s, 2.0 + s) for s in range(5)]
    rows += [row("compare", "glu", s, 2.1 + s) for s in reversed(range(5))]
    rows += [row("compare", "geglu", s, None if s == 4 else 1.9 + s) for s in range(5)]
    rows += [row("noise", "relu", s, 3.0 + s) for s in range(5, 10)]
    rows += [row("compare", "silu", s, None) for s in range(5)]
    glu, geglu, noise = char_lm_report.compare(rows)
    assert glu.found.mean == pytest.approx(0.1)
    assert glu.found.sd == pytest.approx(0, abs=1e-12)
    assert geglu.found.mean == pytest.approx(-0.1)
    assert (geglu.name, geglu.pairs) == ("GEGLU (4 of 5 seeds)", 4)
    rows += [row("tune", "glu", 0, 2.0) | {"learning_rate": x} for x in (1e-3, 4e-3)]
    table = char_lm_report.summary(rows)
    assert table[-1][:3] == ["SiLU", "-", "diverged"]
    assert table[2][1] == "0.001, the lowest"
    assert noise.p is None
    assert noise.found.mean == pytest.approx(6)


def test_text_is_split_in_three(tmp_path):
    path = tmp_path / "text"
    path.write_text("abcdefghij" * 300)
    text = corpus.read(path)
    assert text.characters == "abcdefghij"
    assert [len(text.train), len(text.tune), len(text.test)] == [2700, 150, 150]
    path.with_name("short").write_text("abc")
    with pytest.raises(ValueError, match="2000 characters"):
        corpus.read(path.with_name("short"))


def test_published_tables_hold_what_papers_say():
    """Differences that the papers' own texts name."""
    shazeer = published.tables()["shazeer"].column("loss_65k")
    assert min(shazeer, key=shazeer.get) == "geglu"
    assert shazeer["geglu"] < shazeer["swiglu"] < shazeer["reglu"]
    narang = published.tables()["narang"].column("loss")
    assert min(narang, key=narang.get) == "swiglu"
    for table in published.tables().values():
        assert all(len(row) == len(table.columns) for row in table.rows.values())
