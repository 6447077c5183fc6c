"""Planted faults: each is found, named and placed; its correct twin is clean."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from sim_programs import needs_simulator
from sim_runner import findings, marked_line, simulate

from mlx_glu.metal_sim.options import Options, current, options

pytestmark = needs_simulator

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
SIMD_BARRIER = "simdgroup_barrier(mem_flags::mem_threadgroup);"
SHARED = "threadgroup float s[128];\n"
MATRICES = """
simdgroup_float8x8 a, b, c;
simdgroup_load(a, x, 8);
simdgroup_load(b, x + 64, 8);
c = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
simdgroup_multiply_accumulate(c, a, b, c);
"""


@dataclass
class Case:
    kind: str
    body: str  # the faulty line is marked
    twin: str
    says: str = ""  # words of the message
    run: dict = field(default_factory=dict)
    twin_run: dict | None = None


ONE_SIMDGROUP = {"grid": 32, "threadgroup": 32, "size": 64}

CASES = {
    "input read past its end": Case(
        "out-of-bounds",
        "out[i] = x[i + 1];  // here",
        "out[i] = x[i + 1 < 512 ? i + 1 : 0];",
        "read out of bounds of 'x': 4 bytes at byte 2048, but it has 2048",
    ),
    "output written past its end": Case(
        "out-of-bounds",
        "out[i + 1] = x[i];  // here",
        "out[i] = x[i];",
        "write out of bounds of 'out'",
    ),
    "index below zero": Case(
        "out-of-bounds",
        "out[i] = x[int(i) - 1];  // here",
        "out[i] = x[max(int(i) - 1, 0)];",
        "'x': 4 bytes at byte -4",
    ),
    "grid rounded up": Case(
        "out-of-bounds",
        "out[i] = x[i];  // here",
        "if (i < 512) out[i] = x[i];",
        "'x'",
        {"grid": 640},
    ),
    "index far away": Case(
        "out-of-bounds",
        "out[i] = x[i + 100000];  // here",
        "out[i] = x[(i + 100000) % 512];",
        "'x': 4 bytes at byte 400000",
    ),
    "threadgroup index": Case(
        "array-bounds",
        SHARED + "s[l + 1] = 1;  // here\n" + BARRIER + "out[i] = s[l];",
        SHARED + "s[l] = 1;\n" + BARRIER + "out[i] = s[127 - l];",
        "index 128 is out of bounds of",
    ),
    "threadgroup pointer": Case(
        "out-of-bounds",
        SHARED + "threadgroup float* p = s;\np[l + 1] = 1;  // here\n"
        f"{BARRIER} out[i] = p[l];",
        SHARED + f"threadgroup float* p = s;\np[l] = 1;\n{BARRIER} out[i] = p[l];",
        "write out of bounds of threadgroup 's': 4 bytes at byte 512, but it has 512",
    ),
    "private index": Case(
        "array-bounds",
        "float r[4];\nfor (int j = 0; j <= 4; j++) {\n"
        "  r[j] = x[i] + j;  // here\n}\nout[i] = r[i & 3];",
        "float r[4];\nfor (int j = 0; j < 4; j++) {\n"
        "  r[j] = x[i] + j;\n}\nout[i] = r[i & 3];",
        "index 4 is out of bounds of",
    ),
    "struct copied past the end": Case(
        "out-of-bounds",
        "threadgroup V s[128];\ns[l] = ((const device V*)x)[i];  // here\n"
        f"{BARRIER} out[i] = s[127 - l].v[3];",
        "threadgroup V s[128];\ns[l] = ((const device V*)x)[i / 8];\n"
        f"{BARRIER} out[i] = s[127 - l].v[3];",
        "read out of bounds of 'x': 32 bytes",
        {"head": "struct V { float v[8]; };\n"},
    ),
    "matrix loaded past the end": Case(
        "out-of-bounds",
        MATRICES.replace(
            "simdgroup_load(b, x + 64, 8);", "simdgroup_load(b, x + 500, 8);  // here"
        )
        + "simdgroup_store(c, out, 8);",
        MATRICES + "simdgroup_store(c, out, 8);",
        "'x'",
        ONE_SIMDGROUP,
    ),
    "matrix stored with a wrong stride": Case(
        "out-of-bounds",
        MATRICES + "simdgroup_store(c, out, 16);  // here",
        MATRICES + "simdgroup_store(c, out, 8);",
        "'out'",
        ONE_SIMDGROUP,
    ),
    "write to an input": Case(
        "read-only",
        "out[i] = 1;\n((device float*)x)[i] = 0;  // here",
        "out[i] = x[i];",
        "write to 'x'",
    ),
    "missing barrier": Case(
        "race",
        SHARED + f"s[l] = x[i]; {BARRIER}\nfloat v = s[127 - l];\n"
        f"s[l] = v;  // here\n{BARRIER} out[i] = s[l];",
        SHARED + f"s[l] = x[i]; {BARRIER}\nfloat v = s[127 - l]; {BARRIER}\n"
        f"s[l] = v;\n{BARRIER} out[i] = s[l];",
        "write of 's' at byte",
    ),
    "missing second barrier in a loop": Case(
        "race",
        SHARED + "float a = 0;\nfor (int k = 0; k < 3; k++) {\n"
        f"  s[l] = x[i] + k;  // here\n  {BARRIER}\n  a += s[127 - l];\n}}\n"
        "out[i] = a;",
        SHARED + "float a = 0;\nfor (int k = 0; k < 3; k++) {\n"
        f"  s[l] = x[i] + k;\n  {BARRIER}\n  a += s[127 - l]; {BARRIER}\n}}\n"
        "out[i] = a;",
        "write of 's'",
    ),
    "barrier that orders nothing": Case(
        "race",
        SHARED + f"s[l] = x[i]; {BARRIER}\nfloat v = s[127 - l];\n"
        f"threadgroup_barrier(mem_flags::mem_none); s[l] = v;  // here\n"
        f"{BARRIER} out[i] = s[l];",
        SHARED + f"s[l] = x[i]; {BARRIER}\nfloat v = s[127 - l];\n"
        f"{BARRIER} s[l] = v;\n{BARRIER} out[i] = s[l];",
        "write of 's'",
    ),
    "barrier for the other memory": Case(
        "race",
        "out[l] = x[i]; threadgroup_barrier(mem_flags::mem_threadgroup);\n"
        "out[l ^ 64] = -2;  // here",
        "out[l] = x[i]; threadgroup_barrier(mem_flags::mem_device);\nout[l ^ 64] = -2;",
        "write of 'out' at byte",
        {"grid": 128, "size": 128},
    ),
    "missing simdgroup barrier": Case(
        "race",
        SHARED + f"s[l] = x[i]; {SIMD_BARRIER}\nfloat v = s[l ^ 1];\n"
        f"s[l] = v;  // here\n{SIMD_BARRIER} out[i] = s[l ^ 2];",
        SHARED + f"s[l] = x[i]; {SIMD_BARRIER}\nfloat v = s[l ^ 1]; {SIMD_BARRIER}\n"
        f"s[l] = v;\n{SIMD_BARRIER} out[i] = s[l ^ 2];",
        "write of 's'",
    ),
    "simdgroup barrier across simdgroups": Case(
        "race",
        SHARED + f"s[l] = x[i]; {BARRIER}\nfloat v = s[127 - l]; {SIMD_BARRIER}\n"
        f"s[l] = v;  // here\n{BARRIER} out[i] = s[l];",
        SHARED + f"s[l] = x[i]; {BARRIER}\nfloat v = s[l ^ 1]; {SIMD_BARRIER}\n"
        f"s[l] = v;\n{BARRIER} out[i] = s[l];",
        "write of 's'",
    ),
    "matrix stored and read, no barrier": Case(
        "race",
        "threadgroup float s[64];\ns[l] = s[l + 32] = 0;"
        + SIMD_BARRIER
        + MATRICES
        + "float v = s[63 - l];\nsimdgroup_store(c, s, 8);  // here\n"
        + SIMD_BARRIER
        + "out[l] = s[l] + v; out[l + 32] = s[l + 32];",
        "threadgroup float s[64];\ns[l] = s[l + 32] = 0;"
        + SIMD_BARRIER
        + MATRICES
        + "float v = s[63 - l];"
        + SIMD_BARRIER
        + "simdgroup_store(c, s, 8);\n"
        + SIMD_BARRIER
        + "out[l] = s[l] + v; out[l + 32] = s[l + 32];",
        "write of 's'",
        ONE_SIMDGROUP,
    ),
    "two threadgroups, one element": Case(
        "race",
        "out[l] = x[i];  // here",
        "out[i] = x[i];",
        "write of 'out' at byte 0, which thread 0 of threadgroup 0 wrote",
        {"size": 128},
        {},
    ),
    "readers of another simdgroup": Case(
        "race",
        SHARED + f"s[l] = x[i]; {BARRIER}\nfloat v = s[0]; {SIMD_BARRIER}\n"
        f"if (l == 96) s[0] = v + 1;  // here\n{BARRIER} out[i] = v;",
        SHARED + f"s[l] = x[i]; {BARRIER}\nfloat v = s[0]; {BARRIER}\n"
        f"if (l == 96) s[0] = v + 1;\n{BARRIER} out[i] = v;",
        "write of 's' at byte 0, which thread 95 of threadgroup 0 read",
    ),
    "readers of another threadgroup": Case(
        "race",
        "float v = group < 3 || l == 127 ? out[512] : 0;\nout[i] = v;\n"
        "if (i == 511) out[512] = v + 1;  // here",
        "float v = out[512];\nout[i] = v;",
        "write of 'out' at byte 2048, which thread 127 of threadgroup 2 read",
        {"size": 513, "initialised": True},
    ),
    "atomic write, plain read": Case(
        "race",
        "if (i == 0) atomic_store_explicit((device atomic_float*)out + 512, 1.0f, "
        "memory_order_relaxed);\nout[i] = out[512];  // here",
        "if (i == 0) atomic_store_explicit((device atomic_float*)out + 512, 1.0f, "
        "memory_order_relaxed);\nout[i] = atomic_load_explicit("
        "(device atomic_float*)out + 512, memory_order_relaxed);",
        "read of 'out' at byte 2048, which thread 0 of threadgroup 0 wrote",
        {"size": 513, "initialised": True},
    ),
    "sum without atomics": Case(
        "race",
        "out[0] += x[i];  // here",
        "atomic_fetch_add_explicit((device atomic_float*)out, x[i], "
        "memory_order_relaxed);",
        "of 'out' at byte 0",
        {"size": 1, "initialised": True},
    ),
    "same value from two threads": Case(
        "same-value-race",
        "out[i / 2] = 7;  // here",
        "if (i % 2 == 0) out[i / 2] = 7;",
        "'out' at byte 0, where thread 0 of threadgroup 0 wrote the same value",
        {"size": 256},
    ),
    "threadgroup memory not set": Case(
        "uninitialised",
        SHARED + f"if (l < 64) s[l] = 1;\n{BARRIER}\nout[i] = s[l];  // here",
        SHARED + f"s[l] = 1;\n{BARRIER}\nout[i] = s[l];",
        "read of threadgroup 's' at byte 256",
    ),
    "output read before it is written": Case(
        "uninitialised",
        "out[i] = out[i] + x[i];  // here",
        "out[i] = x[i]; out[i] = out[i] + x[i];",
        "read of output 'out' at byte 0",
    ),
    "elements nobody writes": Case(
        "unwritten",
        "if (i % 5 != 4) out[i] = x[i];",
        "out[i] = i % 5 != 4 ? x[i] : 0;",
        "nothing wrote 102 of 512 elements of 'out', the first of them 4",
    ),
    "barrier in a branch": Case(
        "barrier-exited",
        f"out[i] = 1;\nif (l < 96) {BARRIER}  // here",
        f"out[i] = 1;\n{BARRIER}",
        "96 threads wait at a threadgroup_barrier, but 32 of the threadgroup have",
    ),
    "return before a barrier": Case(
        "barrier-exited",
        f"if (i >= 500) return;\n{BARRIER}  // here\nout[i] = x[i];",
        f"{BARRIER}\nif (i >= 500) return;\nout[i] = x[i];",
        "116 threads wait",
        {"size": 500},
    ),
    "barriers in both branches": Case(
        "barrier-divergent",
        "out[i] = 1;\nif (l < 64) {\n"
        + BARRIER
        + "  // here\nout[i] = 2; } else {\n"
        + BARRIER
        + "\nout[i] = 3; }",
        "out[i] = 1;\n"
        + BARRIER
        + "\nif (l < 64) { out[i] = 2; } else { out[i] = 3; }",
        "threads 0 and 64 wait at different threadgroup_barrier calls, at ",
    ),
    "two simdgroup operations at once": Case(
        "divergent-simd",
        "float v = x[i];\nif (lane < 16)\nv = simd_sum(v);  // here\n"
        "else v = simd_max(v);\nout[i] = v;",
        "float v = x[i];\nif (simdgroup < 2) v = simd_sum(v);\nelse v = simd_max(v);\n"
        "out[i] = v;",
        "lane 0 at simd_sum, lane 16 at simd_max",
    ),
    "sum by half a simdgroup": Case(
        "simd-inactive-lanes",
        "float v = x[i];\nif (lane < 16)\nv = simd_sum(v);  // here\nout[i] = v;",
        "float v = x[i];\nv = simd_sum(lane < 16 ? v : 0);\nout[i] = v;",
        "simd_sum is reached by part of the simdgroup: 16 lanes are at it",
    ),
    "shuffle from an inactive lane": Case(
        "simd-inactive-lanes",
        "float v = x[i];\nif (lane < 16)\nv = simd_shuffle(v, 20);  // here\n"
        "out[i] = v;",
        "float v = x[i];\nv = simd_shuffle(v, 20);\nout[i] = v;",
        "simd_shuffle",
    ),
    "misaligned vector": Case(
        "misaligned",
        "float4 v = *(const device float4*)(x + 4 * i + 1);  // here\nout[i] = v.x;",
        "float4 v = *(const device float4*)(x + 4 * i);\nout[i] = v.x;",
        "of 'x'",
        {"grid": 100, "threadgroup": 100, "size": 100},
    ),
    "more than 32 KiB": Case(
        "threadgroup-memory",
        "threadgroup float s[8193];  // here\ns[l] = 1; out[i] = s[l];",
        "threadgroup float s[8192];\ns[l] = 1; out[i] = s[l];",
        "'s' brings the total to 32772 bytes; the limit is 32768",
    ),
    "division by zero": Case(
        "undefined",
        "out[i] = 7 / (int(i) - 3);  // here",
        "out[i] = 7 / (int(i) + 3);",
        "integer division by zero",
    ),
    "shift too far": Case(
        "undefined",
        "out[i] = 1 << i;  // here",
        "out[i] = 1 << (i % 31);",
        "by 32 bits",
    ),
    "private memory of another thread": Case(
        "foreign-stack",
        "threadgroup ulong at[1]; float mine = i;\n"
        f"if (l == 0) at[0] = (ulong)&mine;\n{BARRIER}\n"
        f"float theirs = *(thread float*)at[0];  // here\n{BARRIER}\nout[i] = theirs;",
        "threadgroup float at[1]; float mine = i;\n"
        f"if (l == 0) at[0] = mine;\n{BARRIER}\n"
        f"float theirs = at[0];\n{BARRIER}\nout[i] = theirs;",
        "read of the private memory of thread 0",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_planted_fault(name):
    case = CASES[name]
    found = findings(case.body, **case.run)
    assert {finding.kind for finding in found} == {case.kind}, found
    assert any(case.says in finding.message for finding in found), found
    if "// here" in case.body:
        line = marked_line(case.body, head=case.run.get("head", ""))
        assert any(f.where.endswith(f":{line}") for f in found), (line, found)


@pytest.mark.parametrize("name", CASES)
def test_correct_twin(name):
    case = CASES[name]
    changes = case.run if case.twin_run is None else case.twin_run
    assert findings(case.twin, **changes) == ()


def test_milder_levels():
    half = "float v = x[i]; if (lane < 16) v = simd_sum(v); out[i] = v;"
    assert findings(half, strict=1) == ()
    waiting = (
        f"float v = x[i]; if (lane < 16) v = simd_sum(v); {BARRIER} "
        "if (lane >= 16) v = 0; out[i] = v;"
    )
    early = waiting.replace("simd_sum(v);", "simd_sum(v); else " + BARRIER)
    assert "simd-inactive-lanes" in {f.kind for f in findings(early, strict=1)}
    report, _ = simulate("out[i / 2] = 7;", size=256, strict=1)
    assert [f.kind for f in report.findings] == ["same-value-race"]
    report, _ = simulate("if (i > 0) out[i] = x[i];", strict=1)
    assert report.buffers["out"].unwritten == 1


def test_control_flow_is_checked_in_fast_mode():
    body = f"out[i] = 1; if (l < 96) {BARRIER}"
    assert [f.kind for f in findings(body, mode="fast")] == ["barrier-exited"]


def test_sizes_that_metal_refuses():
    with pytest.raises(ValueError, match="1025 threads; Metal allows 1024"):
        simulate("out[i] = 0;", grid=1025, threadgroup=1025, size=1025)
    assert findings("out[i] = 0;", grid=1024, threadgroup=1024, size=1024) == ()
    with pytest.raises(ValueError, match="positive"):
        simulate("out[i] = 0;", grid=0)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="strict=3; choose from 0, 1, 2"):
        Options(strict=3)
    with pytest.raises(ValueError, match="no option 'level'"), options(level=2):
        pass
    with pytest.raises(ValueError, match="time_limit=0"):
        Options(time_limit=0)
    with options(strict=1) as outer, options(lane_order="reverse") as inner:
        assert (outer.strict, inner.strict, inner.lane_order) == (1, 1, "reverse")
    assert current() == Options()


def test_edge_threadgroups_are_smaller():
    body = "out[i] = simd_sum(1.0f);"
    report, out = simulate(body, grid=200, size=200, threadgroup=96, strict=1)
    assert report.threadgroups == 3
    np.testing.assert_array_equal(out[:192], 32)
    np.testing.assert_array_equal(out[192:], 8)
