"""A whole model on a GPU that is the simulator: measured, fused only where it wins."""

import warnings

import mlx.core as mx
import mlx_lm_zoo as zoo
import pytest
from mutants import Mutant, applied
from sim_programs import needs_simulator
from tiny_checkpoint import config_of, write_checkpoint

from mlx_glu import (
    dispatch,
    explain,
    fuse,
    jit,
    load_model,
    paired,
    simulate,
    tune,
    tuning,
)
from mlx_glu.fusion.measured import wanted
from mlx_glu.tuning import judging, self_test

pytestmark = needs_simulator

TOKENS = mx.array([[3]])


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """Dispatch sees a GPU and asks the judge; what it fuses runs in the simulator."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    self_test.forget()
    judging.forget()
    monkeypatch.setattr(jit, "backend", lambda inputs=None: "metal")
    with simulate(mode="fast"):
        yield
    self_test.forget()
    judging.forget()


@pytest.fixture
def clock(monkeypatch):
    """Sets how much faster than stock the fused arm is; arms do not run."""
    timed = []

    def set_to(speedup):
        def timer(arm, run):
            timed.append(arm)
            return 0.02 / (speedup if arm == "fused" else 1)

        monkeypatch.setattr(paired, "wall_clock", timer)
        return timed

    return set_to


def fused_ops(model):
    with dispatch.record() as choices:
        logits = zoo.logits(model, TOKENS)
    return logits, {c.op for c in choices if c.impl == "fused"}


def test_a_model_is_fused_where_it_wins(gpu, clock):
    model = zoo.build("deepseek_v3")
    before = zoo.logits(model, TOKENS)
    timed = clock(1.1)
    fuse(model)
    logits, ops = fused_ops(model)
    assert ops == {"glu_linear", "down_linear", "glu_mul"}
    assert mx.max(mx.abs(logits - before)) <= 2e-6 * mx.max(mx.abs(before))
    assert "10.0% faster here" in str(explain(model))
    assert "glu_linear-swiglu-float32-64x128-dense-dense" in tuning.report()
    # A second model of these sizes has its verdicts already.
    timed.clear()
    fuse(zoo.build("deepseek_v3"))
    assert timed == []


def test_a_model_that_would_be_slower_runs_its_own_code(gpu, clock):
    model = zoo.build("deepseek_v3")
    before = zoo.logits(model, TOKENS)
    clock(1.02)
    fuse(model)
    logits, ops = fused_ops(model)
    assert ops == set()
    assert mx.array_equal(logits, before)
    assert "2.0% faster here, below 3%" in str(explain(model))


def test_without_measuring_stock_runs(gpu):
    model = zoo.build("llama")
    before = zoo.logits(model, TOKENS)
    fuse(model, measure=False)
    logits, ops = fused_ops(model)
    assert ops == set()
    assert mx.array_equal(logits, before)
    assert "not measured on this machine; mlx_glu.tune(model)" in str(explain(model))


def test_a_wrong_kernel_is_not_used_and_said_once(gpu, clock):
    model = zoo.build("llama")
    before = zoo.logits(model, TOKENS)
    clock(2.0)
    wrong = Mutant("gated.h", "swapped", "T(Act::fwd(g, u))", "T(Act::fwd(u, g))")
    with applied(wrong), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fuse(model)
        logits, ops = fused_ops(model)
    assert [w.category for w in caught] == [RuntimeWarning]
    assert "glu_gemv" in str(caught[0].message)
    assert ops == {"down_linear", "glu_mul"}
    assert mx.max(mx.abs(logits - before)) <= 2e-6 * mx.max(mx.abs(before))
    assert "self-test" in str(explain(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fuse(zoo.build("llama"))


def test_our_models_are_measured_with_their_norm_and_residual(gpu, clock, tmp_path):
    folder = write_checkpoint(tmp_path / "model", config_of("llama"))
    model = load_model(folder)
    cases = {str(case) for case, _ in wanted(model)}
    assert any("norm" in case for case in cases)
    assert any("residual" in case for case in cases)
    clock(1.5)
    tune(model)
    _, ops = fused_ops(model)
    assert {"glu_linear", "down_linear"} <= ops
    assert "50.0% faster here" in str(explain(model))


def test_off_is_off(gpu, clock, set_impl):
    set_impl("stock")
    timed = clock(2.0)
    model = fuse(zoo.build("llama"))
    assert timed == []
    assert fused_ops(model)[1] == set()
    with pytest.raises(ValueError, match="MLX_GLU_IMPL=stock"):
        tune(model)
