"""The self-test passes right kernels and turns wrong ones off, simulated here."""

import warnings

import mlx.core as mx
import numpy as np
import pytest
from mutants import Mutant, applied
from sim_programs import needs_simulator

from mlx_glu import simulate
from mlx_glu.dispatch import Case
from mlx_glu.tuning import Machine, Store, judging, self_test
from mlx_glu.variants import VARIANTS, get

pytestmark = needs_simulator

MACHINE = Machine("Apple M4", "applegpu_g16g", 16 << 30, 10, "macOS 26.1", "0.32", "0")
SWIGLU = VARIANTS["swiglu"]
OTHER = get("swiglu_clamped", alpha=1.1, limit=3.0, offset=0.25)
CASES = [
    Case(
        *("glu_linear", "bfloat16", 4864, 896, SWIGLU, "a4g64", "a6g32"),
        *("up_bias", "norm"),
        parameters="float16",
    ),
    Case("glu_linear", "float16", 300, 100, VARIANTS["geglu"], "dense", "dense"),
    Case("glu_linear", "float32", 8, 64, VARIANTS["glu"], "dense", "mxfp4"),
    Case(
        *("down_linear", "float16", 896, 4864, None, "a8g128", "", "gate_bias"),
        residual=True,
    ),
    Case("down_linear", "float32", 31, 65, None, "dense"),
    Case("glu_mul", "float16", 4864, variant=SWIGLU),
    Case("glu_mul", "float32", 64, variant=OTHER),
    Case("glu_linear", "float32", 64, 64, OTHER, "dense", "a4g32"),
    Case("glu_mul", "bfloat16", 4863, variant=SWIGLU, layout="interleave_value_first"),
]
DOWN = CASES[4]


@pytest.fixture(autouse=True)
def _anew():
    self_test.forget()
    yield
    self_test.forget()


@pytest.fixture
def caught():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@pytest.fixture
def runs(monkeypatch):
    """The checks that are run."""
    from mlx_glu.proof import run

    checks, real = [], run.run

    def spy(check):
        checks.append(check)
        return real(check)

    monkeypatch.setattr(run, "run", spy)
    return checks


@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_kernels_pass_at_both_ends_of_a_range(case, runs):
    with simulate():
        assert self_test.fault(case, 3, MACHINE) == ""
    assert {check.kernel for check in runs} == set(self_test.kernels(case))
    assert sorted({check.M for check in runs}) == [2, 5]
    for check in runs:
        for field in ("dtype", "K", "weight", "up", "biases", "norm", "residual"):
            assert getattr(check, field) == getattr(case, field)
        assert check.parameters == case.parameters
        fours = case.op == "glu_mul" and case.N % 4 == 0
        assert min(case.N, 32 if fours else 31) == check.N
        assert (check.variant or None) == case.variant


def test_a_range_without_end_has_a_stated_M(runs):
    case = CASES[5]
    assert self_test.measured_at("glu_mul", 4096) == (513, self_test.LARGE_M)
    assert self_test.measured_at("glu_linear", 1) == (1,)
    assert self_test.fault(case, 4096, MACHINE) == ""
    assert {check.M for check in runs} == {513, self_test.LARGE_M}


def test_each_kernel_is_tested_once(runs):
    for N in (31, 100, 4864):
        self_test.fault(DOWN._replace(N=N), 1, MACHINE)
    assert len(runs) == 1
    self_test.fault(DOWN, 1, Machine("M5", "", 1, 1, "", "", ""))
    assert len(runs) == 2


#: Old text and new of metal/matvec.h: a wrong number, a read past the end, no Metal.
PLANTED = {
    "wrong number": ("metal::simd_sum(y[m][r])", "metal::simd_sum(y[m][r]) + 1.0f"),
    "past the end": ("k < K; k +=", "k <= K; k +="),
    "does not compile": ("k < K; k +=", "k < nothing; k +="),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_wrong_kernel_is_off_with_one_warning(planted, caught):
    with applied(Mutant("matvec.h", planted, *PLANTED[planted])), simulate():
        what = self_test.fault(DOWN, 1, MACHINE)
        other = self_test.fault(DOWN._replace(K=64), 1, MACHINE)
        assert self_test.fault(DOWN, 1, MACHINE) == what
    assert what.startswith("down_gemv, M = 1: ")
    assert other
    (warning,) = caught
    assert warning.category is RuntimeWarning
    message = str(warning.message)
    assert message.startswith(f"[tuning] down_gemv fails on {MACHINE.name} for ")
    assert "\n" not in message


def test_the_gradient_of_the_product_is_tested_too(caught):
    case = Case("glu_mul", "float32", 64, variant=VARIANTS["reglu"])
    lines = "by_gate, by_up)", "by_up, by_gate)"
    with applied(Mutant("glu_mul_vjp.metal", "exchanged", *lines)):
        assert self_test.fault(case, 1, MACHINE).startswith("glu_mul_vjp, M = 1: ")
    assert len(caught) == 1


def test_whatever_is_raised_is_a_fault(caught):
    unknown = DOWN._replace(weight="a9g7")
    assert self_test.fault(unknown, 1, MACHINE).startswith("down_qmv, M = 1: KeyError")
    assert len(caught) == 1


def test_it_runs_inside_a_trace():
    """A kernel's first use may be inside mx.compile, as in mlx-lm's training."""
    found = []

    @mx.compile
    def traced(x):
        found.append(self_test.fault(DOWN, 1, MACHINE))
        found.append(self_test.fault(CASES[5], 1, MACHINE))
        return x * 2

    with simulate():
        y = traced(mx.array([1.0, 2.0]))
    assert y.tolist() == [2.0, 4.0]
    assert found == ["", ""]


def test_the_users_random_numbers_stay_as_they_are():
    mx.random.seed(3)
    before = [np.array(a) for a in mx.random.state]
    self_test.fault(DOWN, 1, MACHINE)
    assert all(map(np.array_equal, before, map(np.array, mx.random.state)))


@pytest.mark.parametrize("right", [True, False])
def test_the_built_in_table_is_not_believed_without_it(right, caught, monkeypatch):
    row = judging.Row("applegpu_g16", ("down_linear",), (), (), "fused", "3% on an M4")
    monkeypatch.setattr(judging, "BUILT_IN", (row, *judging.BUILT_IN))
    decide = lambda: judging.decide(DOWN, 1, MACHINE, Store(None))
    if right:
        assert decide() == ("fused", "3% on an M4")
        return
    with applied(Mutant("matvec.h", "", *PLANTED["wrong number"])):
        impl, why = decide()
    assert impl == "stock"
    assert why.startswith("its self-test failed here: down_gemv")
    assert len(caught) == 1
