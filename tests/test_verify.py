"""``mlx-glu verify``, and that a wrong kernel does not pass it."""

import json
import math
import re
import signal
import subprocess
import sys

import mlx.core as mx
import pytest
from sim_programs import needs_simulator

from mlx_glu import jit, metal_source, simulate
from mlx_glu.cli import main
from mlx_glu.metal_sim import toolchain
from mlx_glu.proof import plans, run

#: Two rows, a column more than the tile has, biases of both kinds.
CASE = next(
    case
    for case in plans.quick()
    if case.kernel == "down_qmv" and case.biases and case.M > 1 and case.N == 31
)


@pytest.fixture
def verify(capsys):
    """Run in this process; exit code, stdout and stderr."""

    def verify(*argv):
        code = 0
        try:
            main(["verify", *map(str, argv)])
        except SystemExit as leaving:
            code = leaving.code
        return (code or 0, *capsys.readouterr())

    return verify


@pytest.fixture
def plant(monkeypatch):
    """Change a line of ``metal/``, for this test."""
    read = metal_source._text
    caches = metal_source._pieces, metal_source.trim, jit._build

    def plant(file, old, new):
        def changed(name):
            text = read(name)
            if name == file:
                assert text.count(old) == 1, f"{old!r} is not once in {file}"
                text = text.replace(old, new)
            return text

        monkeypatch.setattr(metal_source, "_text", changed)
        for cache in caches:
            cache.cache_clear()

    yield plant
    for cache in caches:
        cache.cache_clear()


@needs_simulator
def test_the_table(verify):
    code, out, err = verify("--only", "x31x576-a4g64")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].startswith("simulated on ")
    assert ", not a GPU; MLX " in lines[0]
    assert lines[1].split("  ")[0] == "kernel"
    cases = sum("x31x576-a4g64" in case.id for case in plans.quick())
    assert cases > 3
    name, count, failed, worst, traffic, seconds = lines[2].split()
    assert (name, int(count), failed, traffic) == ("glu_qmv", cases, "0", "1.000")
    assert 0 < float(worst) <= 1
    assert float(seconds) > 0
    assert len(lines) == 3


@needs_simulator
def test_json(verify):
    code, out, err = verify("--only", CASE.id, "--json")
    assert code == 0
    (line,) = out.splitlines()
    fields = json.loads(line)
    assert (fields["case"], fields["kernel"]) == (CASE.id, CASE.kernel)
    assert fields["passed"] is True
    assert fields["faults"] == []
    assert 0 < fields["worst_error"] <= 1
    assert fields["traffic"] == 1
    assert re.fullmatch(r"result 0 at \[0, \d+, \d+\]", fields["worst_at"])
    assert err == fields["ran_on"] + "\n"


def test_nothing_to_run(verify):
    code, out, err = verify("--only", "mxfp7")
    assert (code, out) == (2, "")
    assert err.startswith("mlx-glu: error: --only 'mxfp7' is in no id; ")
    assert err.count("\n") == 1


def test_without_a_compiler(verify, monkeypatch):
    monkeypatch.setitem(sys.modules, "ziglang", None)
    toolchain.zig.cache_clear()
    code, out, err = verify()
    toolchain.zig.cache_clear()
    assert (code, out) == (2, "")
    assert err.startswith("mlx-glu: error: ")
    assert err.endswith("pip install ziglang==0.17.1 pyelftools\n")
    assert err.count("\n") == 1


PLANTED = {
    "a wrong number": (
        ("projection.h", "value + at(bias, n)", "value - at(bias, n)"),
        "elements are worse than stock",
    ),
    "a column that nobody writes": (
        ("projection.h", "m < M && r < rows", "m < M && r < rows && n > 0"),
        "unwritten",
    ),
    "a bias read twice": (
        ("quant.h", "= at(biases, group);", "= at(biases, group ^ 1) * 0.0f + WHOLE"),
        "traffic: weight_b has",
    ),
    "a row beyond the weight": (
        ("matvec.h", "uint(r) < rows)", "uint(r) <= rows)"),
        "out-of-bounds",
    ),
    "what Metal refuses": (
        ("load.h", "return *(const device V*)p;", "return *(const V*)p;"),
        "lint: ",
    ),
    "what does not compile": (
        ("projection.h", "y[i] = T(value", "y[i] = T(valve"),
        "CompileError: ",
    ),
}


@needs_simulator
@pytest.mark.parametrize(("change", "fault"), PLANTED.values(), ids=PLANTED)
def test_a_planted_fault(change, fault, verify, plant):
    file, old, new = change
    plant(file, old, new.replace("WHOLE", old.removeprefix("= ")))
    code, out, err = verify("--only", CASE.id)
    assert (code, err) == (1, "")
    assert f"\nFAILED {CASE.id}\n" in out
    assert fault in out
    assert "Traceback" not in out
    assert out.splitlines()[2].split()[:3] == ["down_qmv", "1", "1"]
    assert out.endswith(f"mlx-glu verify --json --only {CASE.id}\n")


@needs_simulator
def test_a_planted_fault_in_json(verify, plant):
    plant("projection.h", "y[i] = T(value", "y[i] = T(NAN + value")
    code, out, _ = verify("--only", CASE.id, "--json")
    fields = json.loads(out)
    assert (code, fields["passed"], fields["worst_error"]) == (1, False, None)
    # What is added to NaN need not be read, so that the traffic is wrong too.
    assert re.match(r"(\d+) of \1 elements are worse", fields["faults"][-1])


@needs_simulator
def test_stock_does_not_pass_for_a_kernel(monkeypatch):
    monkeypatch.setattr("mlx_glu.dispatch.MAX_M", 1)
    result = run.run(CASE)
    faults = "\n".join(result.faults)
    assert "down_linear ran stock: 2 rows; the fused product takes up to 1" in faults
    assert "0 runs of down_qmv" in faults


@needs_simulator
def test_as_on_a_gpu(monkeypatch):
    """What is done on a Mac, with the simulator in the place of Metal."""
    monkeypatch.setattr(run, "_on_gpu", lambda: True)
    gpu = {"device_name": "Apple M9", "architecture": "applegpu_g99s"}
    monkeypatch.setattr(mx, "device_info", lambda: gpu)
    monkeypatch.setattr("platform.mac_ver", lambda: ("27.1", ("", "", ""), "arm64"))
    words = r"Apple M9 \(applegpu_g99s\), macOS 27\.1, MLX [\d.]+"
    assert re.fullmatch(words, run.where_it_runs())
    with simulate():
        result = run.run(CASE)
        assert (result.faults, result.traffic) == ((), None)
        assert 0 < result.ratio <= 1
        multiply, calls = run.problem(CASE).call, []

        def changing():
            calls.append(multiply()[0] + len(calls) * 100)
            return calls[-1:]

        given = run.problem(CASE)._replace(call=changing)
        monkeypatch.setattr(run, "problem", lambda case: given)
        result = run.run(CASE)
    assert "two runs gave different bits: is there a race?" in result.faults
    assert result.ratio < math.inf


@needs_simulator
def test_ctrl_c_prints_what_was_done():
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_glu", "verify", "--cases", "full"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert first.startswith("simulated on ")
    assert out.startswith("kernel  ")
    assert process.returncode == 130
    assert err.splitlines()[-1] == "mlx-glu: interrupted"
    assert "Traceback" not in err
