"""``mlx-glu explain``: a model's feed-forwards, and what was measured."""

import subprocess
import sys
from collections import Counter

import pytest
from tiny_checkpoint import config_of, write_checkpoint

from mlx_glu import dispatch
from mlx_glu.cli import main
from mlx_glu.dispatch import Case
from mlx_glu.paired import Comparison
from mlx_glu.tuning import Machine, judging
from mlx_glu.tuning.store import default_store
from mlx_glu.tuning.verdicts import Verdict, key_of
from mlx_glu.variants import VARIANTS


@pytest.fixture(autouse=True)
def _uncounted(monkeypatch):
    """No calls of other tests."""
    monkeypatch.setattr(dispatch, "_counts", Counter())


def explain(capsys, *words):
    main(["explain", *map(str, words)])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "unit"), [("llama", "swiglu"), ("gemma2", "geglu_tanh")]
)
def test_a_model(family, unit, tmp_path, capsys):
    config = config_of(family)
    out = explain(capsys, "--model", write_checkpoint(tmp_path / "m", config))
    head, row, runs = out.splitlines()
    assert head.split() == ["feed-forward", "unit", "K", "x", "N", "format"]
    layers = config["num_hidden_layers"]
    sizes = f"{config['hidden_size']} x {config['intermediate_size']}"
    assert row.startswith(f"model.layers.0-{layers - 1}.mlp (GatedMLP)")
    assert row.split("  ")[1:] == [unit, sizes, "dense"]
    assert runs.split(maxsplit=3)[2:] == [
        "stock",
        "no Apple GPU here, and no simulate()",
    ]


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A cache with one verdict in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    judging.forget()
    case = Case(
        "glu_linear", "float16", 1536, 576, VARIANTS["swiglu"], "a4g32", "a4g32"
    )
    verdict = Verdict.of(Comparison(1.25, 1.2, 1.3))
    default_store().add(Machine.here(), key_of(case, 1), verdict)
    yield default_store().path
    judging.forget()


def test_what_was_measured_is_printed_and_forgotten(measured, capsys):
    out = explain(capsys, "--tuning")
    assert "glu_linear-swiglu-float16-576x1536-a4g32-a4g32" in out
    assert "1.250" in out
    assert "25.0% faster here" in out
    assert str(measured) in out
    explain(capsys, "--reset-tuning")
    assert not measured.exists()
    main(["explain", "--reset-tuning"])
    assert "nothing had been measured" in capsys.readouterr().err
    assert "nothing has been measured" in explain(capsys, "--tuning")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tuning", "--model", "x"], "--tuning is about this machine"),
        (["--tuning", "--reset-tuning"], "not allowed with"),
        (["--engine", "torch"], "invalid choice"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["explain", *words])
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_wrong_environment_is_one_line(tmp_path):
    folder = write_checkpoint(tmp_path / "m", config_of("llama"))
    done = subprocess.run(
        [sys.executable, "-m", "mlx_glu", "explain", "--model", folder],
        env={"MLX_GLU_IMPL": "off", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "MLX_GLU_IMPL is one of stock, fused but got 'off'" in done.stderr
