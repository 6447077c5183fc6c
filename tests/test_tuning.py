"""What is measured, what follows from it, and what operations are told.

Kernels run in the simulator or not at all; times are made up but where it is said.
"""

import itertools
import re
import warnings
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mutants import Mutant, applied
from sim_programs import needs_simulator

from mlx_glu import dispatch, jit, ops, simulate, tuning
from mlx_glu.dispatch import MAX_M, Case, record, use_impl
from mlx_glu.layers import GatedMLP
from mlx_glu.paired import Comparison, wall_clock
from mlx_glu.proof import run as proof_run
from mlx_glu.tuning import Machine, Store, arms, judging, measure, self_test
from mlx_glu.tuning.machine import vector_limit
from mlx_glu.tuning.verdicts import Verdict, key_of
from mlx_glu.variants import VARIANTS

# So little memory that there are two copies of a weight.
M4 = Machine("Apple M4", "applegpu_g16g", 1 << 20, 10, "macOS 26.1", "0.32.4", "0.1")
M5 = replace(M4, name="Apple M5", architecture="applegpu_g17g")
GLU = Case("glu_linear", "float32", 16, 64, VARIANTS["swiglu"], "a4g64", "a4g64")
DOWN = Case("down_linear", "float32", 16, 64, weight="dense")
MUL = Case("glu_mul", "float32", 16, variant=VARIANTS["geglu"])


@pytest.fixture(autouse=True)
def _anew(tmp_path, monkeypatch):
    """No verdict of the user's, and none of another test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    self_test.forget()
    judging.forget()
    yield
    self_test.forget()
    judging.forget()


@pytest.fixture
def untested(monkeypatch):
    """Kernels count as right; test_tuning_self_test.py is about that."""
    right = lambda check: proof_run.Result(check, 0.0, "", None, (), 0.0)
    monkeypatch.setattr(proof_run, "run", right)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "own" / "verdicts.json")


class Clock:
    """A timer that runs nothing: a call of stock takes ``call_s``."""

    def __init__(self, speedups=2.0, call_s=1e-4, noise=0.0):
        self.speedups, self.call_s, self.noise = speedups, call_s, noise
        self.timed, self.seconds = [], 0.0
        self.rng = np.random.default_rng(0)

    def __call__(self, arm, run):
        assert arm == run.impl
        if (run.case, run.M) not in self.timed:
            self.timed.append((run.case, run.M))
        seconds = self.call_s * run.calls
        if arm == "fused":
            many = isinstance(self.speedups, dict)
            seconds /= self.speedups[run.M] if many else self.speedups
        seconds *= 1 + self.noise * abs(self.rng.normal())
        self.seconds += seconds
        return seconds


def tune(cases, store, clock, machine=M4, **given):
    tuning.tune(cases, machine=machine, timer=clock, store=store, **given)


#: Speed-ups at both ends, noise; the verdict and where it comes from.
DECISIONS = {
    "wins at both ends": (1.2, 1.05, 0, "fused", r"^5\.0% faster here, measured", 2),
    "wins at one end": (1.2, 0.98, 0, "stock", r"^2\.0% slower here, measured", 2),
    "loses at once": (0.5, 1.5, 0, "stock", r"^100\.0% slower here, measured", 1),
    "just 3%": (1.0301, 1.2, 0, "fused", r"^3\.0% faster here, measured", 2),
    "less than 3%": (1.2, 1.02, 0, "stock", r"^2\.0% faster here, below 3%", 2),
    "the same": (1.0, 1.5, 0, "stock", r"^0\.0% faster here, below 3%", 1),
    "within noise": (1.08, 1.08, 1, "stock", r"faster here but within noise, mea", 1),
    "wins in noise": (1.5, 1.6, 0.05, "fused", r"^\d\d\.\d% faster here, meas", 2),
}


@pytest.mark.parametrize("decision", DECISIONS)
def test_decisions(decision, store, untested):
    first, last, noise, impl, why, ends = DECISIONS[decision]
    clock = Clock({2: first, 5: last}, noise=noise)
    tune([(GLU, 3)], store, clock)
    found = judging.decide(GLU, 2, M4, store)
    assert found[0] == impl
    assert re.search(why, found[1])
    assert found == judging.decide(GLU, 5, M4, Store(store.path))
    assert clock.timed == [(GLU, 2), (GLU, 5)][:ends]
    for other in ((GLU, 1), (DOWN, 3), (MUL, 3)):
        impl, why = judging.decide(*other, M4, store)
        assert (impl, why[:12]) == ("stock", "not measured")


@pytest.mark.parametrize("call_s", [1e-7, 1e-5, 1e-3, 0.02])
def test_the_budget_is_kept(call_s, store, untested):
    clock = Clock(1.1, call_s)
    tune([(MUL, 4096)], store, clock)
    assert clock.seconds < 1.1 * measure.BUDGET_S
    assert judging.decide(MUL, 4096, M4, store)[0] == "fused"
    assert clock.timed == [(MUL, 513), (MUL, self_test.LARGE_M)]


def test_what_takes_too_long_is_not_decided(store, untested):
    lines, clock = [], Clock(1.1, 0.2)
    tune([(GLU, 1)], store, clock, progress=lines.append)
    assert clock.seconds < 0.5 * measure.BUDGET_S
    assert not store.verdicts(M4)
    assert lines == [f"{GLU}, M 1: not measured, a run takes too long for 2 s"]


def test_a_verdict_is_not_measured_again(store, untested):
    tune([(GLU, 2), (GLU, 5), (GLU, 1)], store, Clock())
    assert store.verdicts(M4).keys() == {key_of(GLU, 1), key_of(GLU, 2)}
    clock, lines = Clock(), []
    tune([(GLU, 4), (DOWN, 1)], Store(store.path), clock, progress=lines.append)
    assert clock.timed == [(DOWN, 1)]
    assert [line.split(": ")[0] for line in lines] == [
        f"{GLU}, M 2 to 5",
        f"{DOWN}, M 1",
    ]
    assert all(": fused, 100.0% faster here, measured " in line for line in lines)
    clock = Clock()
    tune([(GLU, 4)], store, clock, machine=replace(M4, mlx="0.33"))
    assert clock.timed == [(GLU, 2), (GLU, 5)]


def test_ctrl_c_keeps_what_is_decided(store, untested):
    clock = Clock()

    def timer(arm, run):
        if run.case == MUL:
            raise KeyboardInterrupt
        return clock(arm, run)

    with pytest.raises(KeyboardInterrupt):
        tune([(GLU, 1), (DOWN, 1), (MUL, 1)], store, timer)
    decided = {key_of(GLU, 1), key_of(DOWN, 1)}
    assert Store(store.path).verdicts(M4).keys() == decided


def test_a_kernel_that_fails_at_full_size_is_off(store, untested):
    def timer(arm, run):
        if arm == "fused":
            raise RuntimeError("Unable to build\nnote: x\nsource:7:3: error: no y\nz")
        return 1e-3

    with pytest.warns(RuntimeWarning, match=r"glu_qmv fails on Apple M4 for glu_lin"):
        tune([(GLU, 1)], store, timer)
    impl, why = judging.decide(GLU, 1, M4, store)
    assert impl == "stock"
    assert re.fullmatch(
        "its self-test failed here on .*: M = 1: RuntimeError: Unable to build "
        "source:7:3: error: no y",
        why,
    )


def test_what_stock_cannot_do_is_no_verdict_on_a_kernel(store, untested):
    def timer(arm, run):
        raise MemoryError("stock")

    with pytest.raises(MemoryError):
        tune([(GLU, 1)], store, timer)
    assert not store.verdicts(M4)


@needs_simulator
def test_a_wrong_kernel_is_never_timed(store):
    wrong = "metal::simd_sum(y[m][r])", "metal::simd_sum(y[m][r]) + 1.0f"
    clock = Clock()
    with (
        applied(Mutant("matvec.h", "wrong", *wrong)),
        pytest.warns(RuntimeWarning, match="down_gemv fails") as caught,
    ):
        tune([(DOWN, 1), (DOWN._replace(K=128), 1)], store, clock)
    assert len(caught) == 1
    assert not clock.timed
    impl, why = judging.decide(DOWN, 1, M4, Store(store.path))
    assert impl == "stock"
    assert "its self-test failed here on 2" in why


@needs_simulator
def test_the_real_arms_of_a_case_run(store):
    """Both, through the real clock: times of a CPU and of a simulator."""
    before = [np.array(a) for a in mx.random.state]
    with simulate(), record() as choices:
        tune([(DOWN, 1)], store, wall_clock)
    asked = {c.impl for c in choices if c.case == DOWN and c.M == 1}
    assert asked == {"stock", "fused"}
    assert all(map(np.array_equal, before, map(np.array, mx.random.state)))
    # The simulator is slower than anything, if it was not too slow to be timed.
    assert judging.decide(DOWN, 1, M4, store)[0] == "stock"


def test_twice_the_work_is_slower():
    """The one test with a real clock: of this CPU."""
    x = mx.random.normal((256, 256), key=mx.random.key(1))

    class Work:
        calls = 1

        def __init__(self, products):
            self.products = products

        def __call__(self):
            y = x
            for _ in range(self.calls * self.products):
                y = (x @ y) / 16
            mx.eval(y)

    found = measure.compare_arms(
        {"stock": Work(1), "fused": Work(2)}, wall_clock, 4 * measure.BUDGET_S
    )
    assert found is not None
    assert found.verdict == "slower"
    assert 0.3 < found.speedup < 0.8


ALL = [
    GLU,
    DOWN,
    MUL,
    GLU._replace(biases="biases", norm="gemma", up="nvfp4", N=100),
    GLU._replace(weight="dense", up="a2g32", biases="up_bias", norm="norm"),
    GLU._replace(dtype="bfloat16", parameters="float16", biases="gate_bias"),
    DOWN._replace(weight="mxfp8", biases="gate_bias", residual=True, N=31),
    DOWN._replace(dtype="float16", weight="a8g128", K=128, parameters="float32"),
    *(
        MUL._replace(layout=layout, dtype="float16", variant=VARIANTS["swiglu_clamped"])
        for layout in ("concat", "interleave", "concat_value_first")
    ),
]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_arms_ask_for_the_case_itself(case):
    for M in (1, 3):
        made = arms.make_arms(case, M, M4)
        made["stock"].calls = 20
        with record() as choices:
            made["stock"]()
        asked = [(c.case, c.M, c.impl) for c in choices if c.op == case.op]
        assert asked == [(case, M, "stock")] * 20


@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_long_chain_stays_finite(case):
    arm = arms.make_arms(case, 2, M4)["stock"]
    x = arm.x
    with use_impl("stock"):
        for _ in range(200):
            y = next(arm.operations)(x)
            x = mx.maximum(x, y[..., :1])
    assert mx.isfinite(x).all()
    assert mx.isfinite(y).all()
    if case.op != "glu_mul":
        assert mx.array_equal(x, arm.x)


def test_a_call_depends_on_the_last_and_has_the_next_weight():
    seen = []

    def operation(weight):
        def run(x):
            seen.append((weight, x))
            return x[..., :3] + 1

        return run

    turns = itertools.cycle([operation(0), operation(1), operation(2)])
    both = [arms.Arm(i, DOWN, 1, mx.zeros((1, 1, 4)), turns, 2) for i in ("a", "b")]
    for arm in both:
        arm.impl = "stock"
        arm()
    assert [weight for weight, _ in seen] == [0, 1, 2, 0]
    assert [x[0, 0].tolist() for _, x in seen] == [[0] * 4, [1] * 4] * 2


def test_weights_are_more_than_the_cache_but_fit_into_memory():
    large = replace(M4, memory=64 << 30)
    copies = arms._copies
    assert copies(5 << 20, large) == 52
    assert copies(1 << 30, large) == 2
    assert copies(1 << 10, large) == arms.MOST_COPIES
    assert copies(5 << 20, replace(M4, memory=1 << 30)) == 25
    assert copies(5 << 20, M4) == 2
    assert copies(0, large) == arms.MOST_COPIES


def test_without_an_apple_gpu(monkeypatch, store):
    monkeypatch.setattr(jit, "backend", lambda *_: None)
    for given in ({}, {"machine": M4}, {"timer": Clock()}):
        with pytest.raises(ValueError, match=r"^\[tune\] needs an Apple GPU; .*"):
            tuning.tune([(GLU, 1)], store=store, **given)


def test_with_everything_turned_off(set_impl, store):
    set_impl("stock")
    with pytest.raises(ValueError, match=r"^\[tune\] MLX_GLU_IMPL=stock turns all"):
        tune([(GLU, 1)], store, Clock())


def test_what_has_no_kernel_is_said(store, untested):
    lines, clock = [], Clock()
    tune([(GLU, 40)], store, clock, progress=lines.append)
    assert not clock.timed
    assert lines[0].endswith("stock, 40 rows; the fused product takes up to 5")


def test_cases_of_a_layer():
    layer = GatedMLP(64, 128, variant="swiglu")
    call = lambda *Ms: [layer(mx.zeros((1, M, 64))) for M in Ms]
    found = tuning.cases_of(lambda: call(1, 2, 3, 5, 100, 1))
    asked = [(case.op, dispatch.m_range(case.op, M)) for case, M in found]
    assert len(set(asked)) == len(asked)
    mul = {r for op, r in asked if op == "glu_mul"}
    assert mul == {(1, 1), (2, 5), (65, 512)}
    for op in ("glu_linear", "down_linear"):
        assert {r for name, r in asked if name == op} == {(1, 1), (2, MAX_M)}
    assert all(case.N in (64, 128) for case, _ in found)
    sparse = GatedMLP(64, 128, variant="gelu_topk")
    ops_left = {c.op for c, _ in tuning.cases_of(lambda: sparse(mx.zeros((1, 64))))}
    assert ops_left == {"down_linear"}


# MLX's table as reference/mlx-kernel-facts.md has it, written once more.
LIMITS = """
17 g 33 25 13
18 p 33 25 13
17 d 32 18 12
16 g 13 15 13
15 s 13 15 13
15 d 32 18 12
14 d 32 18 12
14 s 14 10 6
14 g 14 10 6
13 s 14 10 7
13 g 14 10 6
13 d 32 18 12
12 g 18 12 10
12 d 32 18 12
"""


@pytest.mark.parametrize("line", LIMITS.split("\n")[1:-1])
def test_vector_limits(line):
    generation, suffix, *limits = line.split()
    sizes = ((2048, 2048),), ((2049, 64), (4096, 4096)), ((4097, 64), (64, 14336))
    for row, limit in zip(sizes, limits, strict=True):
        for K, N in row:
            assert vector_limit(int(generation), suffix, K, N) == int(limit)


def test_neural_accelerators_have_the_last_word(store):
    chips = {
        "applegpu_g17g": True,
        "applegpu_g17p": False,
        "applegpu_g18p": True,
        "applegpu_g16s": False,
        "applegpu_g99x": True,
        "AMD": False,
    }
    case = DOWN._replace(N=5000)
    for name, has in chips.items():
        machine = replace(M4, architecture=name)
        assert machine.has_neural_accelerators is has
        faster = Verdict.of(Comparison(1.5, 1.4, 1.6))
        store.add(machine, key_of(case, 5), faster)
        store.add(machine, key_of(MUL, 5), faster)
        assert judging.decide(case, 12, machine, store)[0] == "fused"
        assert judging.decide(case, 13, machine, store)[0] == (
            "stock" if has else "fused"
        )
        assert judging.decide(MUL, 5, machine, store)[0] == "fused"
    why = judging.decide(case, 13, M5, store)[1]
    assert why == "13 rows; MLX can use the chip's accelerators from 13"


@pytest.fixture
def on_metal(monkeypatch):
    """Operations believe that a GPU is here; only stock can run."""
    monkeypatch.setattr(jit, "backend", lambda *_: "metal")
    monkeypatch.setattr(Machine, "here", staticmethod(lambda: M4))


def test_operations_ask_and_are_told(on_metal, untested):
    gate = mx.ones((2, 16))
    with record() as choices:
        ops.glu_mul(gate, gate, "geglu")
    (choice,) = choices
    assert choice.impl == "stock"
    assert choice.why == "not measured on this machine; mlx_glu.tune(model) measures it"
    tuning.tune([(MUL, 2)], timer=Clock(0.98), machine=M4)
    with record() as choices:
        ops.glu_mul(gate, gate, "geglu")
    assert choices[0].why.startswith("2.0% slower here, measured 2")
    tuning.reset()
    tuning.tune([(MUL, 2)], timer=Clock(1.5), machine=M4)
    assert tuning.judge(MUL, 2)[0] == "fused"


def test_the_usual_answer_reads_no_file(on_metal, monkeypatch, untested):
    tuning.tune([(MUL, 1)], timer=Clock(), machine=M4)
    first = tuning.judge(MUL, 1)
    assert first[0] == "fused"

    def refuse(*_):
        raise AssertionError("the store was asked again")

    monkeypatch.setattr(Store, "verdicts", refuse)
    assert tuning.judge(MUL, 1) is first


def test_a_broken_file_does_not_stop_an_operation(on_metal, tmp_path):
    file = tmp_path / "mlx_glu" / "tuning" / "verdicts.json"
    file.parent.mkdir(parents=True)
    file.write_text("[")
    gate = mx.ones((1, 16))
    with pytest.warns(RuntimeWarning, match=re.escape(f"{file} cannot be read")):
        y = ops.glu_mul(gate, gate, "bilinear")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mx.array_equal(ops.glu_mul(gate, gate * 2, "bilinear"), y * 2)


def test_report_and_reset(on_metal, untested, tmp_path):
    lines = tuning.report().splitlines()
    assert lines[0] == f"machine: {M4.key}"
    assert lines[1] == f"kept in: {tmp_path}/mlx_glu/tuning/verdicts.json"
    assert lines[2:] == ["nothing has been measured on this machine yet"]
    tuning.tune([(GLU, 1), (GLU, 2)], timer=Clock({1: 1.25, 2: 0.8}), machine=M4)
    store = tuning.store.default_store()
    store.add(M4, key_of(MUL, 600), Verdict.failure("glu_mul, M = 513: nan"))
    _, _, head, *rows = tuning.report().splitlines()
    assert head.split("  ")[0] == "case"
    assert len(rows) == 3
    assert re.match(
        rf"{re.escape(str(GLU))} +1 +fused +1\.250 +1\.250 to 1\.250 +25\.0% faster",
        rows[0],
    )
    assert re.match(rf"{re.escape(str(GLU))} +2 to 5 +stock +0\.800", rows[1])
    assert re.match(rf"{MUL} +513 and more +stock +- +- +its self-test fai", rows[2])
    assert "nothing has been measured" in tuning.report(machine=M5)
    assert tuning.judge(GLU, 1)[0] == "fused"
    assert tuning.reset() == store.path
    assert not store.path.exists()
    assert "nothing has been measured" in tuning.report()
    assert tuning.judge(GLU, 1)[0] == "stock"


def test_this_machine():
    here = Machine.here()
    assert here == Machine.here()
    assert here.memory > 1 << 28
    assert here.mlx in here.key
    assert all(str(x) in here.key for x in (here.name, here.os, here.package))
