"""mlx-glu bench --model: a whole model with and without fusion."""

import contextlib
import importlib
import json
import sys
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from sim_programs import needs_simulator
from tiny_checkpoint import config_of, write_checkpoint

from mlx_glu import dispatch, jit, simulate
from mlx_glu.bench import model
from mlx_glu.bench.model import Effort, load, logits_fault, measure
from mlx_glu.bench.rows import NOISY, NOT_RUN, WRONG
from mlx_glu.cli import main

QUICK = Effort(
    prompt_tokens=5,
    generation_tokens=2,
    prefill_step_size=3,
    trials=2,
    max_variation=0.1,
)
on_cpu = pytest.mark.skipif(jit.backend() is not None, reason="for a CPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = config_of("llama", num_hidden_layers=2)
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny", config)


class Clock:
    """Seconds by phase; runs it all the same, and keeps the order."""

    def __init__(self, **seconds):
        self.seconds, self.order = seconds, []

    def __call__(self, arm, run):
        run()
        self.order.append(arm)
        return self.seconds.get(arm.replace(" ", "_"), 1.0)


@needs_simulator
def test_both_arms_in_turns(folder):
    """Of our own model: one kernel a token and layer, where a kernel exists."""
    clock = Clock(stock_prompt=2.0, fused_prompt=1.0, fused_decode=1.25)
    with simulate():
        rows = measure(
            load(str(folder), "mlx-glu"), replace(QUICK, trials=5), timer=clock
        )
    found = {(row.op, row.arm): row for row in rows}
    assert list(found) == [
        *(("prompt", "stock"), ("prompt", "fused")),
        *(("decode", "stock"), ("decode", "fused")),
    ]
    block = [f"{arm} {op}" for arm in ("stock", "fused") for op in ("prompt", "decode")]
    assert clock.order[:8] == block + block[2:] + block[:2]
    prompt, decode = found["prompt", "fused"], found["decode", "fused"]
    assert (prompt.verdict, prompt.speedup, prompt.tps) == ("faster", 2, 5)
    assert (decode.verdict, decode.speedup, decode.tps) == ("slower", 0.8, 1.6)
    assert (decode.us_p50, prompt.M, decode.M) == (625000, 5, 1)
    assert (decode.impl, decode.why) == ("fused simulated", "")
    assert found["decode", "stock"].impl == "stock"
    assert dispatch._forced.get() is None


@on_cpu
def test_without_a_gpu_stock_alone_is_timed(folder):
    rows = measure(load(str(folder), "mlx-glu"), QUICK, timer=Clock())
    verdicts = [(row.arm, row.verdict) for row in rows]
    assert verdicts == [("stock", "baseline")] * 2 + [("fused", NOT_RUN)] * 2
    assert "needs a Mac" in rows[2].why


def as_if_fused(monkeypatch):
    """Both arms run, by the operations of this CPU."""
    monkeypatch.setattr(model, "runs_kernels", lambda: True)


def test_wrong_logits_have_no_time(folder, monkeypatch):
    as_if_fused(monkeypatch)
    engine = load(str(folder), "mlx-glu")
    right, wrong = engine.forward, 0

    def forward(ids, cache):
        return right(ids, cache) * (1 + 0.01 * wrong)

    @contextlib.contextmanager
    def using(arm):
        nonlocal wrong
        wrong = arm == "fused"
        yield

    changed = model.replace(engine, forward=forward, using=using)
    clock = Clock()
    rows = measure(changed, QUICK, timer=clock)
    assert {row.verdict for row in rows} == {WRONG}
    assert {(row.tps, row.speedup) for row in rows} == {(None, None)}
    assert "prompt: fused logits are" in rows[0].why
    assert clock.order == []


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_logits_rule(dtype):
    logits = np.random.default_rng(0).normal(size=1000)
    stock = mx.array(logits).astype(dtype)
    rounded = mx.array(logits * (1 + 2.0**-24)).astype(dtype)
    assert logits_fault(rounded, stock, 4) == ""
    assert logits_fault(mx.array(logits[::-1].copy()).astype(dtype), stock, 4)
    assert logits_fault(stock * mx.array(np.nan, dtype), stock, 4)


@on_cpu
def test_cli(folder, capsys):
    flags = ["-p", "4", "-g", "2", "-n", "2", "--max-variation", "1000", "--json"]
    main(["bench", "--model", str(folder), *flags])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["op"] for row in rows] == ["prompt", "decode"] * 2
    assert rows[0]["tps"] == pytest.approx(1e6 / rows[0]["us_p50"], rel=1e-3)
    assert rows[0]["model"] == "tiny"


@on_cpu
def test_cli_fails_on_noise(folder, capsys):
    flags = ["-p", "4", "-g", "2", "-n", "3", "--max-variation", "1e-9"]
    with pytest.raises(SystemExit) as leaving:
        main(["bench", "--model", str(folder), *flags])
    assert leaving.value.code == 1
    assert NOISY in capsys.readouterr().out


def test_mlx_lm_fuses_and_takes_apart(folder, monkeypatch):
    """The engine of mlx-lm, when it is installed."""
    pytest.importorskip("mlx_lm")
    as_if_fused(monkeypatch)
    fusion = importlib.import_module("mlx_glu.fusion")
    done = []
    for name in ("fuse", "unfuse"):
        monkeypatch.setattr(fusion, name, lambda m, name=name: done.append(name))
    write_tokenizer_beside(folder)
    engine = load(str(folder), "mlx-lm")
    rows = measure(engine, QUICK, timer=Clock())
    assert [row.arm for row in rows] == ["stock", "fused"] * 2
    assert {row.why for row in rows[1::2]} == {"nothing of this model is fused"}
    assert done[:2] == ["fuse", "unfuse"]
    # The look before, the warm-up, and two runs a block.
    assert done.count("fuse") == done.count("unfuse") == 2 + 2 * QUICK.trials


def write_tokenizer_beside(folder):
    """The smallest that transformers loads."""
    from tiny_tokenizers import llama_metadata

    from mlx_glu.tokenizer.gguf_tokenizer import write_tokenizer

    write_tokenizer(llama_metadata(), folder)


def test_mlx_lm_that_is_not_there(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx_lm", None)
    with pytest.raises(ValueError, match="mlx-lm"):
        load(str(folder), "mlx-lm")
