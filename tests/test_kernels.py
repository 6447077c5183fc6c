"""Every kernel against float64: right, checked, lint clean, each byte moved once.

The cases are those of ``mlx-glu verify``: a covering hundred, and ``-m slow`` for
the thorough thousand.
"""

import math
import re
from itertools import combinations, islice, product

import mlx.core as mx
import numpy as np
import pytest
from conftest import assert_no_worse, derivative64, f64, oracle_mul
from sim_programs import needs_simulator

from mlx_glu import elementwise, jit, kernels, metal_source, ops, simulate, use_impl
from mlx_glu.dispatch import MAX_M, record
from mlx_glu.metal_sim import record as record_runs
from mlx_glu.proof import plans, run
from mlx_glu.proof.cases import (
    DTYPES,
    FORMATS,
    LAYOUTS,
    NVFP4_KS,
    POINTWISE,
    VARIATIONS,
    Case,
)
from mlx_glu.proof.oracle import dense64, down_linear64, glu_linear64
from mlx_glu.proof.problems import problem
from mlx_glu.proof.tolerance import worst
from mlx_glu.quantization import QuantizedWeight, dequantize
from mlx_glu.reference import Norm
from mlx_glu.variants import VARIANTS, get

QUICK, FULL = plans.quick(), plans.full()


def check(case):
    result = run.run(case)
    assert not result.faults, "\n".join(result.faults)
    assert 0 <= result.ratio <= 1
    assert result.where
    assert result.traffic in (1.0, None)


@needs_simulator
@pytest.mark.parametrize("case", QUICK, ids=lambda c: c.id)
def test_quick(case):
    check(case)


@pytest.mark.slow
@needs_simulator
@pytest.mark.parametrize("case", FULL, ids=lambda c: c.id)
def test_full(case):
    check(case)


def values(cases, kernel, field):
    return {getattr(case, field) for case in cases if case.kernel == kernel}


def test_quick_is_a_covering_hundred():
    assert len(QUICK) <= 120
    for cases in (QUICK, FULL):
        assert len({case.id for case in cases}) == len(cases)
        assert all(case.possible for case in cases)
    for kernel in ("glu_qmv", "down_qmv"):
        for field, wanted in plans.FIELDS[kernel].items():
            assert values(QUICK, kernel, field) >= set(wanted) - {80}, (kernel, field)
    for kernel in ("glu_mul", "glu_mul_vjp"):
        for field, wanted in plans.FIELDS[kernel].items():
            assert values(QUICK, kernel, field) == set(wanted), (kernel, field)
    for kernel in ("glu_gemv", "down_gemv"):
        assert values(QUICK, kernel, "K") >= {64, 65, 1151}
        for field in {"M", "N", "dtype", "residual", "norm", "biases"}.intersection(
            plans.FIELDS[kernel]
        ):
            wanted = set(plans.FIELDS[kernel][field])
            assert values(QUICK, kernel, field) == wanted, (kernel, field)
    # A single row has another tile than several.
    tiles = {(c.weight, c.M > 1) for c in QUICK if c.kernel == "glu_qmv"}
    assert tiles >= set(product(FORMATS, (False, True)))
    assert {case.option for case in QUICK} == {None, *VARIATIONS}


def test_full_has_every_triple():
    wanted = set(product(POINTWISE, DTYPES, FORMATS))
    triples = {(c.variant, c.dtype, c.weight) for c in FULL if c.kernel == "glu_qmv"}
    assert triples >= wanted
    for kernel in ("glu_mul", "glu_mul_vjp"):
        own = {(c.variant, c.dtype, c.layout) for c in FULL if c.kernel == kernel}
        assert own == set(product(POINTWISE, DTYPES, LAYOUTS))
    assert len(FULL) < 1600


@pytest.mark.parametrize(
    ("kernel", "spared"),
    [
        ("glu_qmv", set()),
        ("glu_mul", set()),
        ("glu_mul_vjp", set()),
        # Fewer cases than such pairs; glu_qmv has them.
        ("down_qmv", {"K"}),
        ("glu_gemv", {"K", "variant", "parameters"}),
        ("down_gemv", {"K"}),
    ],
)
def test_full_has_every_pair(kernel, spared):
    fields = {k: v for k, v in plans.FIELDS[kernel].items() if k not in spared}
    own = [case for case in FULL if case.kernel == kernel]
    for one, two in combinations(fields, 2):
        found = {(getattr(case, one), getattr(case, two)) for case in own}
        for pair in set(product(fields[one], fields[two])) - found:
            # Sizes that only one format takes, and what is no case at all.
            case = Case(kernel, **dict(zip((one, two), pair, strict=True)))
            assert not case.possible or set(pair) & set(NVFP4_KS), (one, two, pair)


def test_exhaustive_is_the_product():
    first = list(islice(plans.exhaustive(), 2000))
    assert len({case.id for case in first}) == 2000
    assert all(case.possible for case in first)
    assert {case.biases for case in first} == {"", "biases"}
    assert {case.up for case in first} == {"a2g32", "a2g64"}


def test_the_numbers_of_a_case_are_always_the_same():
    case = next(c for c in QUICK if c.kernel == "glu_qmv" and c.strided)
    for a, b in zip(problem(case).oracle, problem(case).oracle, strict=True):
        assert np.array_equal(a, b)


# The oracle, by other means.


@pytest.mark.parametrize("name", FORMATS)
def test_the_oracle_unpacks_as_mlx_does(name):
    q = FORMATS[name]
    w = mx.array(np.random.default_rng(0).normal(size=(6, 256)).astype(np.float32))
    parts = mx.quantize(w, q.group_size, q.bits, mode=q.mode)
    packed, scales, biases = (*parts, None)[:3]
    weight = QuantizedWeight(packed, scales, biases, q.group_size, q.bits, q.mode)
    theirs = f64(dequantize(packed, scales, biases, q))
    assert_no_worse(dequantize(packed, scales, biases, q), theirs, dense64(weight))
    if biases is None:
        assert np.array_equal(theirs, dense64(weight))


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "nvfp4"])
def test_the_oracle_knows_every_code_and_scale(name):
    q = FORMATS[name]
    codes = np.arange(1024, dtype=np.uint8).view(np.uint32).reshape(8, 32)
    K = 32 * 32 // q.bits
    # MLX's scale 0xff is no finite number, and E4M3 scales have no sign.
    top = 127 if name == "nvfp4" else 255
    scales = np.arange(8 * K // q.group_size, dtype=np.int64) * 37 % top
    scales = mx.array(scales.astype(np.uint8).reshape(8, -1))
    weight = QuantizedWeight(mx.array(codes), scales, None, q.group_size, q.bits, name)
    theirs, ours = f64(dequantize(*weight[:3], q)), dense64(weight)
    fits = ~(np.abs(ours) > 3.4e38)
    assert np.array_equal(theirs[fits], ours[fits], equal_nan=True)


def test_the_oracle_agrees_with_stock():
    rng = np.random.default_rng(1)
    normal = lambda *shape: mx.array(rng.normal(size=shape).astype(np.float32))
    x, gate, up, down = normal(2, 64), normal(5, 64), normal(5, 64), normal(7, 64)
    biases = normal(5), normal(5)
    for offset in (0, 1):
        norm = Norm(normal(64), 0.1, offset)
        with use_impl("stock"):
            y = ops.glu_linear(
                x,
                gate,
                up,
                "geglu",
                gate_bias=biases[0],
                up_bias=biases[1],
                norm=norm,
            )
        oracle = glu_linear64(x, gate, up, get("geglu"), *biases, norm)
        assert_no_worse(y, oracle, oracle, terms=64)
    bias, residual = normal(7), normal(2, 7)
    with use_impl("stock"):
        y = ops.down_linear(x, down, bias=bias, residual=residual)
    oracle = down_linear64(x, down, bias, residual)
    assert_no_worse(y, oracle, oracle, terms=64)


def test_no_number_of_a_gradient_lies_on_a_corner():
    """The oracle differentiates by differences of up to 2**-11."""
    for case in FULL:
        if case.kernel != "glu_mul_vjp" or case.layout != "separate" or case.strided:
            continue
        given = problem(case)
        gate, up = (f64(a) for a in vars_of(given))
        corners = {0.0, 7.0, -7.0}
        for array in (gate, up):
            for corner in corners:
                assert np.abs(array - corner).min() > 2**-11
        silu = derivative64(lambda g: oracle_mul(g, g * 0 + 1, get("swiglu")), gate)
        assert np.isfinite(silu).all()


def vars_of(given):
    """The arrays that the call of a problem holds."""
    cells = dict(
        zip(given.call.__code__.co_freevars, given.call.__closure__, strict=True)
    )
    return cells["arrays"].cell_contents.values()


# The rule.


def test_the_rule_gives_a_ratio_and_a_place():
    o = np.array([[1.0, 2.0, 4.0]])
    y = np.array([[1.0, 2.0, 4.0 * (1 + 2.0**-21)]], np.float32)
    found = worst(y, o, o)
    assert found.ratio == pytest.approx(2, rel=1e-6)
    assert found.at == (0, 2)
    assert "1 of 3 elements are worse than stock (1 in the last column)" in found.fault
    assert "first at (0, 2)" in found.fault
    fine = worst(y, y, o)
    assert (fine.ratio, fine.fault) == (0.5, "")
    assert worst(y, o, o, terms=1).ratio < 1
    assert worst(y[:, :0], o[:, :0], o[:, :0]) == (0.0, (), "")
    y[0, 1] = math.nan
    assert worst(y, o, o).ratio == math.inf
    assert worst(y, o, o).at == (0, 1)
    # Beyond the dtype, the infinity of the sign and nothing else.
    half = np.array([math.inf, 1.0], np.float16)
    assert worst(half, half, np.array([70000.0, 1.0])).ratio == 0
    assert worst(half, half, np.array([-70000.0, 1.0])).ratio == math.inf


# The texts and what is built of them.


@pytest.fixture
def texts(monkeypatch):
    """What would be compiled, instead of compiling it: (header, body)."""
    found = []

    def note(source, inputs, outputs, **launch):
        found.append((metal_source.trim(source.file, source.body), source.body))
        return [mx.zeros(shape, dtype) for shape, dtype in outputs]

    monkeypatch.setattr(jit, "run", note)
    return found


@pytest.mark.parametrize("variant", POINTWISE)
def test_texts_are_short_and_ascii(variant, texts):
    """Header and body with everything in them; MLX adds the signature."""
    # Group sizes are numbers in the text: the longest stands for all.
    formats = {(q.mode, q.bits): q for q in FORMATS.values()}.values()
    N, K = 65536, 16384  # nothing is evaluated
    weights = []
    for q in formats:
        parts = q.packed(ops_info((N, K)))
        arrays = [mx.zeros(info.shape, info.dtype) for info in parts.values()]
        weight, scales, biases = (*arrays, None)[:3]
        weights.append(
            QuantizedWeight(weight, scales, biases, q.group_size, q.bits, q.mode)
        )
    bias, norm = mx.zeros(N, mx.bfloat16), Norm(mx.zeros(K, mx.bfloat16), 1e-6, 1)
    row = VARIANTS[variant]
    for M in (1, 2):
        x = mx.zeros((M, K), mx.bfloat16)
        for gate, up in product(weights, weights):
            kernels.glu_linear(x, gate, up, row, bias, bias, norm).run(x)
        for weight in weights:
            residual = mx.zeros((M, N), mx.bfloat16)
            kernels.down_linear(x, weight, bias, residual).run(x)
        pair = mx.zeros((M, N)), mx.zeros((M, N))
        elementwise.glu_mul(pair, row)
        elementwise.glu_mul_vjp(pair, pair[0], row)
    assert len(texts) == 2 * (len(weights) ** 2 + len(weights) + 2)
    for header, body in texts:
        assert (header + body).isascii()
        assert len(header + body) < 8192, body


def ops_info(shape):
    from mlx_glu.tensor_info import TensorInfo

    return TensorInfo(mx.bfloat16, shape)


@needs_simulator
def test_rows_of_x_build_two_kernels():
    weight = mx.quantize(mx.random.normal((33, 96)), 32, 4)
    gate = up = QuantizedWeight(*weight, 32, 4, "affine")
    x = mx.random.normal((MAX_M, 96))
    with simulate(mode="fast"), record_runs() as runs:
        before = jit.built()
        for M in (1, 2, 3, 4, 5, 1, 4):
            ops.glu_linear(x[:M], gate, up, "gtu")
            ops.glu_linear(x[None, :M], gate, up, "gtu")
        assert jit.built() - before == 2
    names = [r.name for r in runs]
    assert len(set(names)) == 2
    assert names[0] == names[1] != names[2]
    assert all(re.fullmatch(r"mlx_glu_qmv_[0-9a-f]{12}", name) for name in names)


@needs_simulator
def test_names_tell_texts_apart():
    a = mx.random.normal((3, 40))
    with simulate(mode="fast"), record_runs() as runs:
        for variant in ("swiglu", get("swiglu", beta=2.0), "quick_geglu", "swiglu"):
            ops.glu_mul(a, a, variant)
        ops.glu_mul(a[:, :39], a[:, :39])
        ops.glu_mul(a.astype(mx.float16), a.astype(mx.float16))
    names = [r.name for r in runs]
    assert names[0] == names[3]
    assert len(set(names)) == 4
    # The dtype is in the function's name, which MLX completes.
    assert names[5] == names[0]
    assert runs[5].text != runs[0].text


@needs_simulator
def test_views_are_read_as_they_are():
    rng = np.random.default_rng(2)
    normal = lambda *shape: mx.array(rng.normal(size=shape).astype(np.float32))
    gate, up = normal(64, 31).T, normal(62, 64)[::2]
    for x in (
        normal(64, 3).T,
        normal(4, 2, 64)[::2, 0],
        mx.broadcast_to(gate[0], (2, 64)),
    ):
        with simulate(), record() as choices:
            y = ops.glu_linear(x, gate, up)
        assert [c.impl for c in choices] == ["fused"]
        with use_impl("stock"):
            stock = ops.glu_linear(x, gate, up)
        oracle = glu_linear64(x, gate, up, get("swiglu"))
        assert_no_worse(y, stock, oracle, terms=64)


@needs_simulator
def test_no_rows_and_many_rows_are_stocks():
    weight = mx.random.normal((31, 64))
    for M in (0, MAX_M + 1):
        x = mx.zeros((M, 64))
        with simulate(), record() as choices, record_runs() as runs:
            assert ops.glu_linear(x, weight, weight).shape == (M, 31)
            assert ops.down_linear(x, weight).shape == (M, 31)
        assert not [r for r in runs if "mul" not in r.name]
        assert {c.impl for c in choices if c.op != "glu_mul"} == {"stock"}
