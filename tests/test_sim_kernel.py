"""metal_kernel of the simulator: MLX's calling convention, its errors, its cache."""

import multiprocessing
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from sim_programs import needs_simulator

from mlx_glu.metal_sim import (
    CompileError,
    KernelError,
    Program,
    metal_kernel,
    options,
    record,
    toolchain,
)
from mlx_glu.metal_sim.golden import mlx_source
from mlx_glu.metal_sim.program import MODES
from mlx_glu.metal_sim.signature import TYPES

pytestmark = needs_simulator

COPY = "uint i = thread_position_in_grid.x; y[i] = x[i];"
X = mx.arange(12, dtype=mx.float32).reshape(3, 4)


def copy(**changes):
    made = {"name": "copy", "input_names": ["x"], "output_names": ["y"], "source": COPY}
    return metal_kernel(**{**made, **changes})


def call(kernel, x=X, **changes):
    """Run a kernel with one input and one output alike, a thread an element."""
    size = (max(x.size, 1), 1, 1) if isinstance(x, mx.array) else (1, 1, 1)
    called = {"inputs": [x], "grid": size, "threadgroup": (32, 1, 1)}
    if isinstance(x, mx.array):
        called |= {"output_shapes": [x.shape], "output_dtypes": [x.dtype]}
    return kernel(**{**called, **changes})[0]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_the_example_of_mlx(dtype):
    source = """
        uint elem = thread_position_in_grid.x;
        T tmp = inp[elem];
        out[elem] = metal::exp(tmp);
    """
    kernel = metal_kernel("myexp", ["inp"], ["out"], source)
    a = mx.random.normal((4, 16), key=mx.random.key(0)).astype(dtype)
    b = call(kernel, a, template=[("T", dtype)], threadgroup=(256, 1, 1))
    assert b.dtype == dtype
    assert b.shape == a.shape
    eps = {mx.float32: 1e-6, mx.float16: 1e-3, mx.bfloat16: 8e-3}[dtype]
    assert mx.allclose(b, mx.exp(a.astype(mx.float32)), rtol=eps, atol=0)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_dtype_passes_through(dtype):
    x = mx.array([0, 1, 1, 0, 1, 1, 0, 1, 1]).astype(dtype)
    y = call(copy(), x)
    assert y.dtype == dtype
    assert mx.array_equal(y, x)


def test_bits_of_bfloat_are_kept():
    x = mx.arange(2**16, dtype=mx.uint32).astype(mx.uint16).view(mx.bfloat16)
    assert mx.array_equal(call(copy(), x).view(mx.uint16), x.view(mx.uint16))


STRIDED = """
    uint i = thread_position_in_grid.x;
    y[i] = x[elem_to_loc(i, x_shape, x_strides, x_ndim)];
"""
LAYOUTS = {
    "transposed": X.T,
    "sliced": X[1:, ::2],
    "broadcast": mx.broadcast_to(mx.arange(4, dtype=mx.float32), (3, 4)),
    "bfloat16": X.astype(mx.bfloat16).T,
    "one row": X[:1].T,
}


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("x", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(x, contiguous):
    kernel = copy(source=STRIDED, ensure_row_contiguous=contiguous)
    assert mx.array_equal(call(kernel, x), x)
    assert mx.array_equal(call(copy(), x), x)


def test_layout_that_lies_backwards():
    kernel = copy(source=STRIDED, ensure_row_contiguous=False)
    with pytest.raises(ValueError, match=r"\[metal_kernel\].*mx.contiguous"):
        call(kernel, X[::-1])
    assert mx.array_equal(call(copy(source=STRIDED), X[::-1]), X[::-1])


def test_an_input_in_place_is_not_written():
    x = mx.zeros((8,))
    with pytest.raises(KernelError) as caught:
        call(
            copy(source="((device float*)x)[0] = 1; y[thread_position_in_grid.x] = 0;"),
            x,
        )
    assert caught.value.report.findings[0].kind == "read-only"
    assert mx.array_equal(x, mx.zeros((8,)))


def test_scalars_and_small_inputs():
    kernel = metal_kernel(
        "add",
        ["a", "b", "c", "flag"],
        ["y"],
        "y[thread_position_in_grid.x] = a + b + c[thread_position_in_grid.x] + flag;",
    )
    c = mx.array([1.0, 2.0])
    (y,) = kernel(
        inputs=[2.5, 3, c, True],
        output_shapes=[(2,)],
        output_dtypes=[mx.float32],
        grid=(2, 1, 1),
        threadgroup=(2, 1, 1),
    )
    assert y.tolist() == [7.5, 8.5]


def test_atomic_outputs_and_init_value():
    source = """
        uint i = thread_position_in_grid.x;
        atomic_fetch_add_explicit(&y[x[i] & 15], 1.0f, memory_order_relaxed);
    """
    x = mx.random.randint(0, 100, (500,), key=mx.random.key(0)).astype(mx.uint32)
    y = call(
        copy(source=source, atomic_outputs=True),
        x,
        threadgroup=(100, 1, 1),
        output_shapes=[(16,)],
        output_dtypes=[mx.float32],
        init_value=0,
    )
    assert y.tolist() == np.bincount(np.array(x) & 15, minlength=16).tolist()


HALF = "uint i = thread_position_in_grid.x; if (i % 2) { y[i] = x[i]; }"


def test_unwritten_outputs():
    with pytest.raises(KernelError) as caught:
        call(copy(source=HALF))
    assert [f.kind for f in caught.value.report.findings] == ["unwritten"]
    y = call(copy(source=HALF), init_value=7)
    assert y.tolist() == [[7, 1, 7, 3], [7, 5, 7, 7], [7, 9, 7, 11]]
    with options(mode="fast"):
        y = call(copy(source=HALF))
    assert mx.isnan(y).tolist() == [[True, False, True, False]] * 3


def test_empty_arrays():
    kernel = copy(source="if (x_shape[0] > 0) { y[0] = x[0]; }")
    empty = mx.zeros((0, 4))
    assert call(kernel, empty).shape == (0, 4)
    y = call(kernel, empty, output_shapes=[(2,)], init_value=3)
    assert y.tolist() == [3, 3]
    with pytest.raises(KernelError) as caught:
        call(copy(), empty)
    assert caught.value.report.findings[0].kind == "out-of-bounds"


def test_several_outputs_and_attributes():
    kernel = metal_kernel(
        "where",
        [],
        ["lane", "group", "last"],
        """
        uint i = thread_position_in_grid.x;
        lane[i] = thread_index_in_simdgroup;
        group[i] = threadgroup_position_in_grid.x;
        last[i] = simdgroup_index_in_threadgroup + 1 == simdgroups_per_threadgroup;
        """,
    )
    lane, group, last = kernel(
        inputs=[],
        output_shapes=[(100,)] * 3,
        output_dtypes=[mx.uint32, mx.int16, mx.bool_],
        grid=(100, 1, 1),
        threadgroup=(64, 1, 1),
    )
    i = np.arange(100)
    assert lane.tolist() == (i % 32).tolist()
    assert group.tolist() == (i // 64).tolist()
    assert last.tolist() == ((i % 64 >= 32) | (i >= 96)).tolist()


def test_threadgroup_shrinks_to_the_grid():
    kernel = copy(source="y[thread_position_in_grid.x] = threads_per_threadgroup.x;")
    assert call(kernel, mx.zeros((9,)), threadgroup=(1024, 1024, 1)).tolist() == [9] * 9


BAD_CALLS = {
    "no input": {"inputs": []},
    "two shapes": {"output_shapes": [(1,), (1,)]},
    "no dtype": {"output_dtypes": []},
    "grid of 0": {"grid": (0, 1, 1)},
    "negative grid": {"grid": (-1, 1, 1)},
    "two numbers": {"grid": (1, 1)},
    "not integers": {"grid": (1.0, 1, 1)},
    "not a tuple": {"threadgroup": 32},
    "threadgroup of 0": {"threadgroup": (0, 1, 1)},
    "1025 threads": {"grid": (1025, 1, 1), "threadgroup": (1025, 1, 1)},
    "float64 output": {"output_dtypes": [mx.float64]},
    "float64 input": {"inputs": [mx.zeros((9,), mx.float64)]},
    "no dtype at all": {"output_dtypes": ["float32"]},
    "bad shape": {"output_shapes": [(-1,)]},
    "shape of a number": {"output_shapes": [4]},
    "template float": {"template": [("T", 1.5)]},
    "template string": {"template": [("T", "float")]},
    "large template int": {"template": [("T", 2**40)]},
}


@pytest.mark.parametrize("change", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls(change):
    with pytest.raises(ValueError, match=r"^\[metal_kernel\] .* but "):
        call(copy(), **change)


@pytest.mark.parametrize(
    "change",
    [
        {"output_names": []},
        {"compile_options": {"math_mode": "fast"}},
        {"compile_options": {"math": "safe"}},
    ],
    ids=str,
)
def test_bad_constructors(change):
    with pytest.raises(ValueError, match=r"^\[metal_kernel\] .* but got "):
        copy(**change)
    assert copy(compile_options={"math_mode": "safe"})


def test_tracers_are_refused():
    kernel = copy()
    for transform in (mx.compile, mx.vmap):
        with pytest.raises(ValueError, match=r"\[metal_kernel\] .*needs values"):
            mx.eval(transform(lambda x: call(kernel, x))(X))


def test_derivatives_are_refused_rather_than_zero():
    kernel = copy()
    with pytest.raises(ValueError, match=r"\[metal_kernel\] .*no derivative"):
        mx.eval(mx.grad(lambda x: call(kernel, x).sum())(X))
    with pytest.raises(ValueError, match=r"\[metal_kernel\] .*no derivative"):
        mx.eval(mx.jvp(lambda x: call(kernel, x), [X], [X]))


def test_a_custom_function_brings_the_derivative():
    kernel = copy()

    @mx.custom_function
    def double(x):
        return 2 * call(kernel, x)

    @double.vjp
    def double_vjp(primal, cotangent, output):
        return 2 * call(kernel, cotangent)

    assert mx.array_equal(mx.grad(lambda x: double(x).sum())(X), mx.full(X.shape, 2.0))
    gradient = mx.grad(lambda x: mx.checkpoint(double)(x).sum())(X)
    assert mx.array_equal(gradient, mx.full(X.shape, 2.0))


def test_record():
    kernel = copy()
    with record() as outer:
        call(kernel)
        with record() as inner:
            call(kernel, X.astype(mx.float16))
    call(kernel)
    assert len(outer) == 2
    assert inner == outer[1:]
    run = outer[0]
    assert run.name == "copy"
    assert run.text.startswith("[[kernel]] void custom_kernel_copy_float_float(")
    assert run.program.mode == "checked"
    assert run.report.buffers["x"].read == run.report.buffers["y"].written == 48
    assert run.report.threadgroups == 1


def test_the_text_that_runs_is_mlx_s():
    made = {"name": "copy", "input_names": ["x"], "output_names": ["y"], "source": COPY}
    called = {"inputs": [X], "template": [("T", mx.float16)], "grid": (12, 1, 1)}
    called |= {"output_shapes": [X.shape], "output_dtypes": [X.dtype]}
    called |= {"threadgroup": (32, 1, 1)}
    with record() as runs:
        metal_kernel(**made)(**called)
    assert runs[0].text == mlx_source(made, called)


def test_verbose_prints_what_mlx_prints(capsys):
    with record() as runs:
        call(copy(), verbose=True)
    text = runs[0].text
    printed = capsys.readouterr().out
    assert printed == f"Generated source code for `copy`:\n```\n{text}\n```\n"


@pytest.mark.parametrize("mode", MODES)
def test_options_hold_for_a_call(mode):
    with record() as runs, options(mode=mode):
        assert mx.array_equal(call(copy()), X)
    assert runs[0].program.mode == mode


def test_lint():
    kernel = copy()
    given = {"inputs": [X], "output_dtypes": [mx.float32]}
    assert kernel.lint(**given) == []
    crossed = copy(source="device float* p = y; threadgroup float* q = p; *q = x[0];")
    (complaint,) = crossed.lint(**given)
    assert "copy.metal:" in complaint
    implicit = copy(source="y[thread_position_in_grid.x] = float(x[0]);")
    assert implicit.lint(**given) == []
    assert implicit.lint(inputs=[X], output_dtypes=[mx.bfloat16]) != []


def test_compile_errors_name_the_line_of_the_text():
    source = "\n  y[0] = nothing;\n"
    with pytest.raises(CompileError, match=r"copy\.metal:5:.*nothing") as caught:
        call(copy(source=source))
    assert "nothing" in caught.value.output


def test_findings_name_the_line_of_the_text():
    with pytest.raises(KernelError) as caught:
        call(copy(source="\n  y[thread_position_in_grid.x] = x[12];\n"))
    assert caught.value.report.findings[0].where == "copy.metal:6"


SOURCE = """
#include <metal_stdlib>
using namespace metal;
kernel void one(device float* y, uint i [[thread_position_in_grid]]) { y[i] = 1; }
template <typename T>
kernel void two(device T* y, constant T& x, uint i [[thread_position_in_grid]]) {
  y[i] = x;
}
template [[host_name("two_half")]] kernel void two<half>(
    device half* y, constant half& x, uint i [[thread_position_in_grid]]);
"""


def test_program_finds_a_kernel():
    assert Program(SOURCE).buffer_names == {0: "y"}
    assert Program(SOURCE, "two", "int").buffer_names == {0: "y", 1: "x"}
    with pytest.raises(ValueError, match=r"no kernel 'three'; it has one, two"):
        Program(SOURCE, "three")
    with pytest.raises(ValueError, match="fast, checked, arithmetic, but got 'slow'"):
        Program(SOURCE, mode="slow")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_cache_by_content(cache):
    first = Program(SOURCE, "one")
    made = first.library.stat().st_mtime_ns
    assert first.library.is_relative_to(cache)
    again = Program(SOURCE, "one")
    assert again.library == first.library
    assert again.library.stat().st_mtime_ns == made
    others = [
        Program(SOURCE, "two", "float"),
        Program(SOURCE.replace("= 1", "= 2"), "one"),
        Program(SOURCE, "one", mode="fast"),
        Program(SOURCE, "one", contract="off"),
    ]
    assert len({p.library for p in [first, *others]}) == 5
    assert not list(cache.rglob("build-*"))


def test_tallies_are_kept_in_the_cache(cache):
    first = Program(SOURCE, "one", mode="arithmetic")
    assert first.block_tallies
    assert Program(SOURCE, "one", mode="arithmetic").block_tallies == (
        first.block_tallies
    )
    assert Program(SOURCE, "one").block_tallies == ()


@pytest.mark.parametrize("suffix", [".so", ".json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "other", "gone"])
def test_a_damaged_entry_is_made_anew(cache, suffix, damage):
    first = Program(SOURCE, "one")
    file = first.library.with_suffix(suffix)
    whole = file.read_bytes()
    # Under another name: the library is mapped into this process.
    file.unlink()
    if damage != "gone":
        content = {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"[1, 2]"}
        file.write_bytes(content[damage])
    again = Program(SOURCE, "one")
    assert again.buffer_names == first.buffer_names
    assert toolchain.is_whole(again.library)


def test_two_processes_compile_at_once(cache):
    start = multiprocessing.get_context("spawn")
    code = f"from mlx_glu.metal_sim import Program; Program({SOURCE!r}, 'one')"
    with start.Pool(2) as pool:
        done = [
            pool.apply_async(
                subprocess.run, ([sys.executable, "-c", code],), {"check": True}
            )
            for _ in range(2)
        ]
        assert [d.get().returncode for d in done] == [0, 0]
    assert len(list(cache.rglob("*.json"))) == 1


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(ValueError, match="XDG_CACHE_HOME"):
        Program(SOURCE, "one")


@pytest.fixture
def fresh_toolchain():
    def clear():
        toolchain.zig.cache_clear()
        toolchain.machine.cache_clear()

    clear()
    yield
    clear()


@pytest.mark.usefixtures("fresh_toolchain")
def test_without_ziglang(monkeypatch):
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(ValueError, match=r"pip install ziglang==.* pyelftools"):
        toolchain.clang(["--version"])


@pytest.mark.usefixtures("fresh_toolchain")
@pytest.mark.parametrize(
    ("system", "machine"), [("darwin", "arm64"), ("linux", "riscv64")]
)
def test_other_computers(monkeypatch, system, machine):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("sys.platform", system)
    with pytest.raises(ValueError, match="x86_64 or aarch64"):
        toolchain.machine()


def test_import_loads_no_compiler():
    code = "import sys, mlx_glu.metal_sim; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"ziglang", "elftools"} & set(done.stdout.split())
