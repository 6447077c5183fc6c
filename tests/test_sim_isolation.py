"""Kernels that crash or never end: Python lives, and the error says what is known."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from sim_programs import needs_simulator
from sim_runner import findings, marked_line, simulate

from mlx_glu.metal_sim import bindings
from mlx_glu.metal_sim.launch import run
from mlx_glu.metal_sim.options import Options
from mlx_glu.metal_sim.program import Program, runtime
from mlx_glu.metal_sim.report import TRACE, KernelError

pytestmark = needs_simulator

ENDLESS = """volatile int zero = 0;
while (true) {
  if (zero) break;  // here
}
out[i] = 1;
"""


def still_works():
    _, out = simulate("out[i] = x[i] * 2;")
    np.testing.assert_array_equal(out, 2 * np.arange(512))


def children():
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()


@pytest.mark.parametrize("mode", ["fast", "checked"])
def test_endless_loop(mode):
    start = time.monotonic()
    found = findings(ENDLESS, mode=mode, time_limit=0.3)
    assert time.monotonic() - start < 10
    assert [finding.kind for finding in found] == ["timeout"]
    assert "did not end in 0.3 s" in found[0].message
    line = marked_line(ENDLESS)
    assert found[0].where.split(":")[-1] in {str(line - 1), str(line)}
    still_works()


def test_threads_that_wait_for_each_other():
    # Other lanes never run while one spins: no forward progress, as on the GPU.
    body = """
    device atomic_uint* flag = (device atomic_uint*)out;
    if (lane == 0) {
      while (atomic_load_explicit(flag + 1, memory_order_relaxed) == 0) {}
    } else {
      atomic_store_explicit(flag + 1, 1u, memory_order_relaxed);
    }
    """
    found = findings(body, size=2, initialised=True, mode="fast", time_limit=0.3)
    assert [finding.kind for finding in found] == ["timeout"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("out[i + 512] = 1;  // here", "byte 2048 of 'out' of 2048 bytes"),
        ("out[i] = x[int(i) - 200000];  // here", "byte -800000 of 'x'"),
    ],
)
def test_wrong_index_in_fast_mode(body, says):
    found = findings(body, mode="fast")
    assert [finding.kind for finding in found] == ["crash"]
    assert found[0].message.startswith("SIGSEGV at address")
    assert says in found[0].message
    assert found[0].where.endswith(f":{marked_line(body)}")
    still_works()


def test_write_to_an_input_in_fast_mode():
    found = findings("((device float*)x)[i] = 0; out[i] = 1;", mode="fast")
    assert [finding.kind for finding in found] == ["crash"]
    assert "byte 0 of 'x'" in found[0].message


def test_wild_pointer_in_fast_mode():
    found = findings("*(device float*)(ulong)(i + 64) = 1; out[i] = 0;", mode="fast")
    assert [finding.kind for finding in found] == ["crash"]
    still_works()


def test_division_by_zero_in_fast_mode():
    # Only some processors trap it.
    body = "out[i] = 7 / (int(i) - 3);"
    assert {f.kind for f in findings(body, mode="fast")} <= {"crash"}
    still_works()


@pytest.mark.parametrize("mode", ["fast", "checked"])
@pytest.mark.parametrize("elements", [60000, 1000000])
def test_private_memory_runs_out(mode, elements):
    body = (
        f"float a[{elements}];\n"
        f"for (int k = 0; k < {elements}; k++) a[k] = x[(i + k) % 512];\n"
        f"out[i] = a[uint(x[i]) % {elements}] + a[{elements} / 2];"
    )
    found = findings(body, mode=mode)
    assert [finding.kind for finding in found] == ["stack-overflow"], found
    assert "thread 0 needs more private memory than" in found[0].message
    still_works()


def test_private_memory_that_fits():
    body = (
        "float a[16000];\nfor (int k = 0; k < 16000; k++) a[k] = x[(i + k) % 512];\n"
        "out[i] = a[uint(x[i])];"
    )
    assert findings(body, mode="fast", grid=64, threadgroup=64, size=64) == ()


def test_no_child_is_left():
    before = children()  # other tests may have pools
    findings(ENDLESS, mode="fast", time_limit=0.1)
    findings("out[i + 512] = 1;", mode="fast")
    still_works()
    assert children() == before


def test_runs_in_two_threads():
    before, errors = children(), []

    def work(scale):
        try:
            for _ in range(10):
                _, out = simulate(f"out[i] = x[i] * {scale}; simd_sum(out[i]);")
                np.testing.assert_array_equal(out, scale * np.arange(512))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert children() == before


PROCESS = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from sim_runner import simulate
for _ in range(20):
    report, out = simulate("out[i] = simd_sum(x[i]);", grid=1024, threadgroup=1024,
                           size=1024, x=__import__("numpy").ones(1024, "float32"))
assert (out == 32).all()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def test_two_processes_at_once(tmp_path):
    """Both compile and run the same kernel; a child stays small."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROCESS, str(Path(__file__).parent)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        # MiB, the pages it shares with Python and the compiler's included.
        assert int(output) < 1000


def test_a_killed_parent_takes_its_child_along():
    code = PROCESS.split("for _")[0] + f"simulate({ENDLESS!r}, mode='fast')"
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    findings(ENDLESS, mode="fast", time_limit=0.1)  # compiles it
    parent = subprocess.Popen(command)
    listing = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    child = ""
    deadline = time.monotonic() + 60
    while not child and time.monotonic() < deadline and parent.poll() is None:
        pids = listing.read_text().split()
        names = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
        child = next((p for p, n in zip(pids, names, strict=True) if b"-c" in n), "")
        time.sleep(0.01)
    assert child
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{child}/stat").read_text().split()[2]
        except OSError:
            break  # gone meanwhile
        if state == "Z":
            break  # dead; another process has to collect it
        time.sleep(0.01)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_error_carries_the_report():
    with pytest.raises(KernelError, match="out of bounds of 'out'") as caught:
        simulate("out[i + 1] = x[i];")
    report = caught.value.report
    assert report.buffers["x"].read == 2048
    assert report.findings[0].count == 1


def test_arrays_that_cannot_be_used():
    program = Program(
        "[[kernel]] void k(device float* a [[buffer(0)]], "
        "uint i [[thread_position_in_grid]]) { a[i] = i; }"
    )

    def launch(array, outputs=(0,)):
        size = (4, 1, 1)
        run(program, {0: array}, size, size, outputs=outputs, options=Options())

    launch(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="not contiguous"):
        launch(np.zeros((4, 2), np.float32)[:, 0])
    with pytest.raises(ValueError, match="output 3 is not among the buffers"):
        launch(np.zeros(4, np.float32), [3])
    read_only = np.zeros(4, np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="cannot be written"):
        launch(read_only)


def test_structures_agree_with_the_runtime():
    sizeof = runtime().msl_sizeof
    sizeof.restype = ctypes.c_uint64
    kinds = (bindings.Launch, bindings.Region, bindings.Note)
    sizes = [*(ctypes.sizeof(kind) for kind in kinds), TRACE.itemsize]
    assert [sizeof(n) for n in range(4)] == sizes
