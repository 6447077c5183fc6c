"""mlx-glu bench on one layer: right first, then timed, and nothing said in vain."""

import json
import math
from dataclasses import fields

import mlx.core as mx
import numpy as np
import pytest
from sim_programs import needs_simulator

from mlx_glu import dispatch, jit, metal_sim, paired, simulate
from mlx_glu.bench import arms, layer, plan, rows, shapes
from mlx_glu.bench.arms import ARMS, Check, Layer, Setup, bytes_moved
from mlx_glu.bench.child import ENVIRONMENT, Child
from mlx_glu.bench.layer import CHILD, Chain, Effort, measure
from mlx_glu.bench.machine import this_machine
from mlx_glu.bench.rows import NOISY, NOT_RUN, WRONG, Row
from mlx_glu.cli import main
from mlx_glu.quantization import Quantization

SMALL = shapes.Shape("small", 64, 128)
PACKED = Setup(SMALL, Quantization(64, 4), mx.float32)
DENSE = Setup(SMALL, None, mx.float32)
#: One call a run, two layers.
QUICK = Effort(blocks=6, run_s=0, rotated=1)
on_cpu = pytest.mark.skipif(jit.backend() is not None, reason="for a CPU")


class Clock:
    """A timer that knows what an arm takes; runs it all the same."""

    def __init__(self, noise=0.0, **seconds):
        self.seconds, self.noise = seconds, noise
        self.rng = np.random.default_rng(1)

    def __call__(self, arm, run):
        run()
        return self.seconds.get(arm, 1.0) * (1 + self.noise * self.rng.normal())


def result(setup=DENSE, M=3, effort=QUICK, timer=None, **how):
    """Rows by arm."""
    parts = measure(setup, [M], effort, 1e-9, timer=timer or Clock(), **how)
    return {row.arm: row for part in parts for row in part}


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(0.5, "faster"), (2.0, "slower"), (1.0, "within noise")]
)
def test_verdicts(seconds, verdict):
    found = result(timer=Clock(noise=0.01, concat=seconds))
    row = found["concat"]
    assert (found["stock"].verdict, row.verdict) == ("baseline", verdict)
    assert row.low <= row.speedup <= row.high
    assert row.speedup == pytest.approx(1 / seconds, rel=0.03)
    assert row.us_p50 == pytest.approx(1e6 * seconds, rel=0.03)
    assert row.us_p20 <= row.us_p50 <= row.us_p80
    assert row.gbps == pytest.approx(row.bytes / row.us_p50 / 1e3)
    assert row.copy_share == pytest.approx(row.gbps / 1e-9)


def test_too_noisy():
    row = result(timer=Clock(noise=0.5, concat=0.5))["concat"]
    assert row.verdict == NOISY
    assert "concat varied by" in row.why
    wide = QUICK._replace(max_variation=9)
    assert result(effort=wide, timer=Clock(noise=0.1, concat=0.5))["concat"].why == ""


def test_a_noisy_baseline_judges_nobody():
    rng = np.random.default_rng(1)

    def timer(arm, run):
        return rng.uniform(1, 3) if arm == "stock" else 1.0

    row = result(timer=timer)["concat"]
    assert row.verdict == NOISY
    assert row.why.startswith("stock varied by")


@on_cpu
def test_what_cannot_run_here():
    found = result()
    assert {found[n].verdict for n in ("fused", "fused_block", CHILD)} == {NOT_RUN}
    assert "needs a Mac" in found["fused"].why
    assert "MLX_MAX_OPS_PER_BUFFER=1000" in found[CHILD].why
    assert found["stock"].impl == "mlx"


def swapped(layer, x):
    return layer.act(layer.up_proj(x), layer.gate_proj(x))


def last_column_lost(layer, x):
    h = ARMS["stock"].hidden(layer, x)
    return mx.concatenate([h[:, :-1], mx.zeros((len(h), 1))], axis=-1)


def does_not_compile(layer, x):
    raise RuntimeError("[metal::Device] Unable to build")


WRONGS = {
    "gate and up swapped": {"hidden": swapped},
    "last column lost": {"hidden": last_column_lost},
    "no residual": {"output": lambda layer, h, x: layer.down_proj(h)},
    "not finite": {"output": lambda layer, h, x: x * math.nan},
    "another dtype": {"hidden": lambda layer, x: mx.zeros((3, 128), mx.float16)},
    "does not compile": {"hidden": does_not_compile},
    "another shape": {"output": lambda layer, h, x: x[:1]},
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_a_wrong_arm_has_no_time(wrong):
    planted = ARMS["concat"]._replace(**WRONGS[wrong])
    found = result(arms={"stock": ARMS["stock"], "concat": planted})
    row = found["concat"]
    assert (row.verdict, row.us_p50, row.speedup) == (WRONG, None, None)
    assert row.why
    assert found["stock"].us_p50


def test_a_wrong_baseline_leaves_nothing_to_compare():
    planted = ARMS["stock"]._replace(hidden=swapped)
    found = result(arms={"stock": planted, "concat": ARMS["concat"]})
    assert {r.verdict for r in found.values() if r.arm != CHILD} == {WRONG}
    assert found["concat"].why.startswith("stock is wrong: gated product: ")


@on_cpu
def test_wrong_products_of_the_cpu_are_noticed():
    """Why 16-bit packed weights are refused: MLX's own numbers are wrong."""
    setup = Setup(shapes.Shape("long", 1024, 64), Quantization(64, 4), mx.float16)
    found = result(setup)
    assert found["stock"].verdict == WRONG
    assert "more than roundings make" in found["stock"].why


@needs_simulator
def test_a_kernel_is_held_to_more_than_the_size_of_its_error():
    """One element, off by what a mean does not show."""

    def hidden(one, x):
        h = ARMS["fused"].hidden(one, x)
        h[2, 77] *= 1 + 2**-6
        return h

    with simulate():
        check = Check(Layer(DENSE), mx.random.normal((4, 64)), ARMS["stock"])
        assert check.fault_of(ARMS["fused"]) == ""
        found = check.fault_of(ARMS["fused"]._replace(hidden=hidden))
    assert found.startswith("gated product: ")


SETUPS = [
    *(DENSE._replace(dtype=dtype) for dtype in (mx.float32, mx.float16, mx.bfloat16)),
    *(
        PACKED._replace(quantization=q)
        for q in (Quantization(32, 8), Quantization(64, 3))
    ),
    PACKED._replace(quantization=Quantization(32, 4, "mxfp4")),
    *(Setup(SMALL._replace(variant=v), None, mx.float32) for v in shapes.VARIANTS[1:]),
]


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_stock_and_concat_are_right(setup):
    x = mx.random.normal((3, 64)).astype(setup.dtype)
    check = Check(Layer(setup), x, ARMS["stock"])
    assert check.fault_of(ARMS["stock"]) == ""
    assert check.fault_of(ARMS["concat"]) == ""


KERNELS = [
    Setup(SMALL, Quantization(32, 4), mx.float32),
    Setup(SMALL._replace(variant="geglu_tanh"), None, mx.bfloat16),
]


@needs_simulator
@pytest.mark.parametrize("setup", KERNELS, ids=str)
def test_fused_arms_are_right_and_fused(setup):
    names = ("stock", "fused", "fused_block")
    with simulate():
        found = result(setup, arms={name: ARMS[name] for name in names})
    for name in names[1:]:
        assert (found[name].impl, found[name].why) == ("fused simulated", "")
        assert found[name].verdict == "within noise"


@needs_simulator
def test_says_what_did_not_run_fused():
    with simulate():
        row = result(DENSE, M=6, arms={n: ARMS[n] for n in ("stock", "fused")})["fused"]
    assert row.impl == "fused and stock simulated"
    products = "glu_linear, down_linear ran stock: 6 rows; the fused product takes up"
    assert row.why.startswith(products)


@needs_simulator
@pytest.mark.parametrize("setup", [DENSE, PACKED], ids=str)
def test_bytes_are_those_that_the_kernels_touch(setup):
    one, x = Layer(setup), mx.random.normal((1, 64))
    with simulate(), metal_sim.record() as runs:
        mx.eval(ARMS["fused_block"].run(one, x))
    buffers = [b for run in runs for b in run.report.buffers.values()]
    touched = [b.touched for b in buffers if not b.name.endswith("_shape")]
    assert sum(touched) == bytes_moved(ARMS["fused_block"], one, x)


def test_bytes_of_stock_are_those_of_its_arrays():
    one, x = Layer(PACKED), mx.random.normal((3, 64))
    gate = one.gate_proj
    weights = [one.norm.weight] + [
        a for m in (gate, one.up_proj, one.down_proj) for a in m.parameters().values()
    ]
    h = ARMS["stock"].hidden(one, x)
    # Norm, gate, up, their product, down, sum: what each reads and writes.
    arrays = [x, x, *[x, h] * 2, h, h, h, h, x, x, x, x]
    expected = sum(a.nbytes for a in (*weights, *arrays))
    assert bytes_moved(ARMS["stock"], one, x) == expected
    rows_of_n = sum(a.shape == h.shape for a in arrays)
    assert ARMS["stock"].activations == (len(arrays) - rows_of_n, rows_of_n)


def test_weights_rotate_and_are_not_the_same_memory():
    seen = []
    arm = ARMS["stock"]._replace(hidden=lambda one, x: seen.append(id(one)) or x[:, :0])
    arm = arm._replace(output=lambda one, h, x: x)
    chain = Chain(DENSE, rotated=3 * Layer(DENSE).weight_bytes)
    for calls in (2, 2):
        chain.run(arm, chain.input(1), calls)
    assert len(set(seen)) == 3
    assert seen[3] == seen[0]
    before = mx.get_active_memory()
    other = chain.first.copy()
    assert mx.get_active_memory() - before >= other.weight_bytes
    assert mx.array_equal(other.up_proj.weight, chain.first.up_proj.weight)


def test_the_child_runs_stock_in_its_environment():
    with Child(PACKED, rotated=1) as child:
        environment = f"/proc/{child._process.pid}/environ"
        if jit.backend() is None:
            with open(environment) as file:
                text = file.read()
            assert all(f"{name}={v}\0" in text for name, v in ENVIRONMENT.items())
        child.prepare(2, 3)
        assert 0 < child.run() < 10
        child._process.kill()
        child._process.wait()
        with pytest.raises(ValueError, match="ended early"):
            child.run()


def test_the_childs_arm_is_timed_by_the_child(monkeypatch):
    class Fake:
        def __init__(self, *_):
            self.asked = []

        __enter__ = lambda self: self
        __exit__ = lambda self, *_: None
        prepare = lambda self, M, calls: self.asked.append((M, calls))
        run = lambda self: 0.25

    monkeypatch.setattr(layer, "Child", Fake)
    monkeypatch.setattr(jit, "backend", lambda inputs=None: "metal")
    found = result(arms={"stock": ARMS["stock"]}, timer=Clock(stock=1.0))
    assert found[CHILD].speedup == 4
    assert found[CHILD].bytes == found["stock"].bytes


def test_use_impl_does_not_leak(monkeypatch):
    monkeypatch.setattr(layer, "runs_kernels", lambda: True)
    only = {"stock": ARMS["stock"]}
    parts = measure(DENSE, [1, 2], QUICK, 1.0, timer=Clock(), arms=only)
    for _ in parts:
        assert dispatch._forced.get() is None


def run_cli(capsys, *argv):
    code = 0
    try:
        main(["bench", *map(str, argv)])
    except SystemExit as leaving:
        code = leaving.code
    return (code, *capsys.readouterr())


TINY = ("--shape", "64x128", "--rows", 1, 3, "-n", 2, "--max-variation", 1000)


@on_cpu
def test_table(capsys):
    code, out, err = run_cli(capsys, *TINY, "--no-simulate")
    assert (code, err) == (0, "")
    assert "64x128 (swiglu, K 64, N 128): 4-bit affine, group size 64, float32" in out
    lines = [line.split()[:2] for line in out.splitlines()]
    for M in ("1", "3"):
        assert [M, "stock"] in lines
        assert [M, "concat"] in lines
    assert "not run: fused, fused_block: needs a Mac" in out
    assert "note: These are times of a CPU" in out


FACTS = {"date", "package", "commit", "chip", "device", "os", "mlx", "copy_gbps", "cmd"}


@on_cpu
def test_json(capsys):
    flags = ("--json", "--dense", "--q-bits", 8, "--no-simulate")
    code, out, _ = run_cli(capsys, *TINY, *flags)
    assert code == 0
    found = [json.loads(line) for line in out.splitlines()]
    names = FACTS | {field.name for field in fields(Row)}
    assert all(set(row) == names for row in found)
    timed = [row for row in found if row["verdict"] != NOT_RUN]
    assert {(r["arm"], r["M"], r["bits"]) for r in timed} == {
        (arm, M, bits)
        for arm in ("stock", "concat")
        for M in (1, 3)
        for bits in (None, 8)
    }
    for row in timed:
        assert 0 < row["us_p20"] <= row["us_p50"] <= row["us_p80"]
        assert row["bytes"] > 3 * 64 * 128
        assert (row["speedup"] is None) == (row["arm"] == "stock")
    cmd = found[0]["cmd"]
    assert cmd.startswith("mlx-glu bench --shape 64x128 --rows 1 3 --q-bits 8 --dense")
    assert "--json" not in cmd


@on_cpu
@needs_simulator
def test_simulated_counts_stand_beside(capsys):
    flags = ("--shape", "512x1024", "--rows", 1, "-n", 2, "--max-variation", 1000)
    code, out, _ = run_cli(capsys, *flags, "--json")
    assert code == 0
    counts = [json.loads(x) for x in out.splitlines() if "ffn_simulated" in x]
    stock, ours = counts
    assert (stock["dispatches"], stock["stages"]) == (6, 5)
    assert (ours["dispatches"], ours["stages"]) == (2, 2)
    assert ours["bytes_once"] < stock["bytes_once"]
    assert set(stock) > FACTS


@on_cpu
def test_without_simulated_counts_it_says_why(capsys):
    _, out, _ = run_cli(capsys, *TINY, "--dense")
    assert "note: no simulated counts: they need" in out


def test_a_wrong_arm_fails_the_command(capsys, monkeypatch):
    monkeypatch.setitem(ARMS, "concat", ARMS["concat"]._replace(hidden=swapped))
    code, out, err = run_cli(capsys, *TINY, "--no-simulate")
    assert code == 1
    (line,) = (x for x in out.splitlines() if x.split()[:2] == ["3", "concat"])
    assert line.split()[2:] == ["-"] * 7 + [WRONG]
    assert "WRONG: concat, M 3: gated product: " in out
    assert "2 results are WRONG" in err


def test_noise_fails_the_command(capsys, monkeypatch):
    monkeypatch.setattr(paired, "wall_clock", Clock(noise=0.4))
    monkeypatch.setattr(Chain, "calls", lambda self, arm, x, seconds: 1)
    flags = ("--shape", "64x128", "--rows", 1, "-n", 8, "--no-simulate")
    code, out, err = run_cli(capsys, *flags)
    assert code == 1
    assert NOISY in out
    assert "varied by more than 10%" in err
    assert "--max-variation" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--shape llama", "--shape is a model or sizes KxN but got 'llama'; choose fr"),
        ("--shape 64x128:tanh", "a variant that mlx-lm runs, swiglu, geglu,"),
        ("--shape 0x128", "K and N of at least 8 but got '0x128'"),
        ("--shape 96x128", "has K = 96, which groups of 64 do not divide"),
        ("--rows 0", "--rows must be at least 1"),
        ("-n 0", "--num-trials must be at least 1"),
        ("--max-variation 0", "--max-variation must be above 0"),
        ("--delay -1", "--delay at least 0"),
        ("--q-bits 7", "affine has bits 2, 3, 4, 5, 6, 8; got 7"),
        ("--q-mode mxfp4 --q-bits 8", "mxfp4 has bits 4; got 8"),
        ("--q-mode int4", "invalid choice: 'int4'"),
        ("--engine mlx-lm", "--engine has no effect without --model"),
        ("-p 5", "--prompt-tokens has no effect without --model"),
        ("--model x --rows 1", "--rows has no effect with --model"),
        ("--model /nowhere", "/nowhere does not exist"),
        ("--report /nowhere/r.html", "--report /nowhere/r.html cannot be written: No"),
        ("--report /", "--report / is a folder"),
        ("--report a --plot a", "both name a; name two files"),
    ],
)
def test_refused(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paired, "interleave", None)  # nothing is timed before
    code, out, err = run_cli(capsys, *arguments.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert not [*tmp_path.iterdir()]


@on_cpu
def test_packed_16_bit_weights_are_refused_on_a_cpu(capsys):
    code, _, err = run_cli(capsys, "--dtype", "bfloat16", "float32")
    assert code == 2
    assert "wrong by percents" in err


def test_shapes():
    for name, shape in shapes.SHAPES.items():
        assert name == shape.name == name.lower()
        assert shape.source.count("/") == 1
        assert shape.K < shape.N
        assert shapes.parse(name.upper()) == shape
    assert set(shapes.VARIANTS) == set(arms.ACTIVATIONS)
    assert shapes.parse("64x128:geglu") == shapes.Shape("64x128", 64, 128, "geglu")


def test_defaults():
    def setups(**changed):
        names = ("modes", "bits", "group_sizes", "dtypes")
        given = {**dict.fromkeys(names), "dense": False, **changed}
        return plan.setups(changed.pop("shapes", None), **given)

    (only,) = setups()
    assert only.quantization == Quantization(64, 4)
    assert [s.quantization for s in setups(dense=True)] == [None]
    both = [s.quantization for s in setups(dense=True, bits=[4, 8])]
    assert both == [None, Quantization(64, 4), Quantization(64, 8)]


def test_machine():
    machine = this_machine()
    assert machine.copy_gbps > 0.1
    assert machine.chip


def test_numbers_are_readable():
    row = rows.compared(Row("ffn", "a", "m", M=1), {"a": [0.01234567] * 3}, 1, 1)
    assert rows.cells(row)[2:4] == ["12346", "12346 - 12346"]


def test_a_few_runs_prove_nothing(capsys):
    flags = ("--shape", "64x128", "--rows", 1, "-n", 4, "--no-simulate")
    _, out, _ = run_cli(capsys, *flags, "--max-variation", 1000)
    row = next(line for line in out.splitlines() if " concat " in line)
    assert "too few runs" in row
    assert row.split()[-4] == "-"  # no interval
