"""Lint: every rule has a planted breach, reported, and a twin without it, clean."""

import re
from pathlib import Path

import mlx
import pytest

pytest.importorskip("ziglang", reason="lint needs the compiler of mlx-glu[sim]")

from mlx_glu.metal_sim.lint import lint

INCLUDE = next(iter(mlx.__path__)) + "/include"
MLX_KERNELS = Path(INCLUDE) / "mlx/backend/metal/kernels"
PROLOGUE = "#include <metal_stdlib>\nusing namespace metal;\n"
KERNEL = """
[[kernel]] void k(
    const device float* x [[buffer(0)]],
    device float* out [[buffer(1)]],
    const constant int& n [[buffer(2)]],
    uint i [[thread_position_in_grid]]) {
%s
}
"""
READERS = """
inline float rd(const device float* p) { return p[0]; }
inline float rt(const threadgroup float* p) { return p[0]; }
template <typename T> inline T gen(const device T* p) { return p[1]; }
inline void wr(thread float& r) { r = 1; }
struct S { float a, b; float get() const { return a; } };
struct D {
  float a;
  float get() const thread { return a; }
  float get() const device { return a; }
  float get() const constant { return a; }
};
"""


def check(body, header="", **options):
    return lint(PROLOGUE + header + KERNEL % body, **options)


# Address spaces: the planted breach, what is said of it, and the clean twin.
SPACES = {
    "threadgroup-pointer-for-device": (
        "threadgroup float t[32]; out[i] = rd(t);",
        "no matching function for call to 'rd'",
        "out[i] = rd(x);",
    ),
    "device-pointer-for-threadgroup": (
        "out[i] = rt(x);",
        "no matching function for call to 'rt'",
        "threadgroup float t[32]; out[i] = rt(t);",
    ),
    "threadgroup-pointer-into-template": (
        "threadgroup float t[32]; out[i] = gen(t);",
        "no matching function for call to 'gen'",
        "out[i] = gen(x);",
    ),
    "unqualified-pointer": (
        "const float* p = x; out[i] = p[0];",
        "cannot initialize a variable of type .* with an lvalue of type 'device",
        "const device float* p = x; out[i] = p[0];",
    ),
    "device-lvalue-to-thread-reference": (
        "wr(out[i]);",
        "no matching function for call to 'wr'",
        "float r; wr(r); out[i] = r;",
    ),
    "thread-array-for-device": (
        "float r[4] = {}; out[i] = rd(r);",
        "no matching function for call to 'rd'",
        "float r[4] = {}; thread float* p = r; out[i] = p[0];",
    ),
    "threadgroup-pointer-from-device": (
        "threadgroup float* p = out; p[0] = 1;",
        "cannot initialize a variable of type 'threadgroup float \\*'",
        "threadgroup float t[32]; threadgroup float* p = t; p[i] = 1; out[i] = p[i];",
    ),
    "write-to-constant": ("n = 3;", "const", "int m = n; m = 3; out[i] = m;"),
    "write-to-const-device": ("x[i] = 3;", "read-only variable", "out[i] = 3;"),
    "member-without-device-overload": (
        "const device S* s = (const device S*)x; out[i] = s->get();",
        "'this' argument",
        "const device D* s = (const device D*)x; out[i] = s->get();",
    ),
    "member-without-constant-overload": (
        "const constant S& s = *(const constant S*)&n; out[i] = s.get();",
        "cannot initialize object parameter",
        "const constant D& d = *(const constant D*)&n; out[i] = d.get();",
    ),
    "reinterpret-cast": (
        "const float* p = reinterpret_cast<const float*>(x); out[i] = p[0];",
        "reinterpret_cast",
        "const device uint* p = reinterpret_cast<const device uint*>(x);out[i] = p[0];",
    ),
    "c-cast": (
        "const float* p = (const float*)x; out[i] = p[0];",
        "a cast drops or changes the address space",
        "const device float4* v = (const device float4*)x; out[i] = v[i].x;",
    ),
    "c-cast-beside-a-copied-struct": (
        "S t = *(const device S*)x; const float* p = (const float*)x;"
        "out[i] = p[0] + t.a;",
        "a cast to 'const float \\*' drops or changes the address space",
        "const device S* s = (const device S*)x; S t = s[i]; out[i] = t.a;",
    ),
    "float-to-bfloat": (
        "bfloat b = x[i]; out[i] = b;",
        "implicit conversion.*float' to 'bfloat'",
        "bfloat b = bfloat(x[i]); out[i] = b;",
    ),
    "simdgroup-load-of-thread-memory": (
        "float t[64]; simdgroup_float8x8 a; simdgroup_load(a, t, 8);",
        "no matching function for call to 'simdgroup_load'",
        "threadgroup float t[64]; simdgroup_float8x8 a, b; simdgroup_load(a, x, 8);"
        "simdgroup_load(b, t, 8); simdgroup_multiply(a, a, b);"
        "simdgroup_store(a, out, 8);",
    ),
}

# Rules of the language, the same way.
LANGUAGE = {
    "double": ("double d = 1; out[i] = d;", "Metal has no 'double'", "out[i] = 1.0;"),
    "goto": ("goto end; end: out[i] = 1;", "'goto'", "int goto_ = 1; out[i] = goto_;"),
    "try": ("try { out[i] = 1; } catch (...) {}", "exceptions", "int retry = 1;"),
    "throw": ("if (n) throw 1;", "Metal has no exceptions", "if (n) return;"),
    "new": ("out[i] = *new float(1);", "dynamic memory", "int renew = n;"),
    "delete": ("delete x;", "'delete': Metal has no dynamic", "int deleted = n;"),
    "wchar": ("wchar_t w = 1; out[i] = w;", "wide characters", "char w = 1;"),
    "thread-local": (
        "thread_local int v = 1;",
        "Metal has no thread_local",
        "thread int v = 1;",
    ),
    "dynamic-cast": ("(void)dynamic_cast<S*>(0);", "run-time type", "out[i] = n;"),
    "typeid": ("(void)typeid(n);", "run-time type information", "out[i] = n;"),
    "asm": ('asm("nop");', "inline assembly", "out[i] = n;"),
    "std": ("out[i] = std::sqrt(x[i]);", "namespace metal", "out[i] = sqrt(x[i]);"),
    "erf": ("out[i] = erf(x[i]);", "Metal has no 'erf': write it out", "out[i] = 1;"),
    "printf": ('printf("x");', "Metal has no 'printf': .* buffer", "out[i] = n;"),
    "expf": ("out[i] = expf(x[i]);", "use exp", "out[i] = exp(x[i]);"),
    "cuda": ("out[i] = __shfl_sync(n, 1);", "simd_shuffle", "out[i] = n;"),
    "static-local": (
        "static int s = 0; out[i] = s;",
        "static variable 's' must be in the constant address space",
        "static constexpr constant int s = 1; out[i] = s;",
    ),
    "lambda": (
        "auto f = [](float v) { return v; }; out[i] = f(x[i]);",
        "lambda expressions: C\\+\\+17, so not before Metal 4",
        "float v[2] = {1, 2}; out[i] = v[i & 1];",
    ),
    "structured-binding": (
        "float p[2] = {1, 2}; auto [a, b] = p; out[i] = a + b;",
        "structured binding declarations: C\\+\\+17",
        "if constexpr (sizeof(float) == 4) { out[i] = 1; } static_assert(true);",
    ),
    "array-of-unknown-length": (
        "float v[n]; v[0] = 1; out[i] = v[0];",
        "variable length array",
        "float v[4]; v[0] = 1; out[i] = v[0];",
    ),
    "uninitialised": (
        "float v; out[i] = v;",
        "variable 'v' is uninitialized",
        "float v; v = n; out[i] = v;",
    ),
    "initialised-threadgroup-memory": (
        "threadgroup float t[2] = {1, 2}; out[i] = t[i & 1];",
        "initializer of threadgroup variable 't' ignored",
        "threadgroup float t[2]; t[i & 1] = 1; out[i] = t[i & 1];",
    ),
    "function-pointer": (
        "float (*f)(const device float*) = rd; out[i] = f(x);",
        "Metal has no function pointers$",
        "float (&r)[4] = *(thread float (*)[4])(thread void*)0; out[i] = r[0] * (n);",
    ),
    "call-through-pointer": (
        "auto f = &rd; out[i] = f(x);",
        "no function pointers to call through",
        "out[i] = rd(x);",
    ),
}

# The same for what stands before a kernel that calls f(n).
HEADERS = {
    "c-cast-in-a-template": (
        "template <typename T> T cast(const device T* p) { return *(const T*)p; }\n"
        "#define f(n) cast(x)",
        "line 3: a cast drops or changes the address space",
        "template <typename T>\n"
        "T cast(const device T* p) { return *(const device T*)p; }\n"
        "#define f(n) cast(x)",
    ),
    "fold": (
        "template <typename... T> int sum(T... t) { return (t + ...); }\n"
        "int f(int n) { return sum(n, n); }",
        "pack fold expression: C\\+\\+17",
        "template <typename T> T sum(T a) { return a; }\n"
        "template <typename T, typename... R>\n"
        "T sum(T a, R... r) { return a + sum(r...); }\n"
        "int f(int n) { return sum(n, n); }",
    ),
    "virtual": (
        "struct V { virtual int g() { return 1; } };\nint f(int n) { return n; }",
        "'virtual': Metal has no virtual functions",
        "struct V { int g() = delete; };\nint f(int n) { return n; }",
    ),
    "recursion": (
        "inline int f(int n) { return n > 0 ? f(n - 1) : 0; }",
        "'f' calls itself; Metal has no recursion",
        "template <int N> int f(int n) { return N + f<N - 1>(n); }\n"
        "template <> int f<0>(int n) { return n; }\n#define f f<4>",
    ),
    "mutual-recursion": (
        "int g(int n);\ninline int f(int n) { return g(n); }\n"
        "int g(int n) { return n > 0 ? f(n - 1) : 0; }",
        "'g' calls itself",
        "int g(int n) { return n; }\ninline int f(int n) { return g(n); }",
    ),
    "global": (
        "const float table[2] = {1, 2};\nint f(int n) { return table[n]; }",
        "line 3: 'table' stands at program scope.*write 'constant'",
        "constant float table[2] = {1, 2};\nint f(int n) { return table[n]; }",
    ),
    "global-in-a-namespace": (
        "namespace a { static constexpr int m = 3; }\nint f(int n) { return a::m; }",
        "'m' stands at program scope",
        "namespace a { static constexpr constant int m = 3; typedef int I; }\n"
        "using a::I; struct T; template <typename T> struct U {};\n"
        "enum E { one }; I f(int n) { return a::m + one; }",
    ),
    "static-member": (
        "struct C { static constexpr int m = 3; };\nint f(int n) { return C::m; }",
        "static member such as 'm' must be in the constant",
        "struct C { static constexpr constant int m = 3; int v; };\n"
        "int f(int n) { return C::m; }",
    ),
    "non-ascii": (
        "// 3 \N{MULTIPLICATION SIGN} 4\nint f(int n) { return n; }",
        "line 3: '\N{MULTIPLICATION SIGN}' is not ASCII",
        "// 3 x 4\nint f(int n) { return n; }",
    ),
}


@pytest.mark.parametrize("name", [*SPACES, *LANGUAGE])
def test_a_breach_in_the_body_is_reported(name):
    planted, message, _ = {**SPACES, **LANGUAGE}[name]
    found = check(planted, READERS)
    assert any(re.search(message, line) for line in found), found


@pytest.mark.parametrize("table", [SPACES, LANGUAGE], ids=["spaces", "language"])
def test_the_twins_of_breaches_are_clean(table):
    body = "\n".join(f"{{ {clean} }}" for _, _, clean in table.values())
    assert check(body, READERS) == []


@pytest.mark.parametrize("name", HEADERS)
def test_a_breach_before_the_kernel_is_reported(name):
    planted, message, clean = HEADERS[name]
    found = check("out[i] = f(n);", planted)
    assert any(re.search(message, line) for line in found), found
    assert check("out[i] = f(n);", clean) == []


def test_private_memory():
    body = "float a[250]; S s[%s]; a[i] = 1; s[i].a = a[n]; out[i] = s[n].a;"
    assert check(body % 3, READERS) == []
    (found,) = check(body % 4, READERS)
    assert "take 1032 private bytes per thread, more than 1024" in found
    assert found.endswith("'a' 1000 at line 21, 's' 32 at line 21")


def buffers(last):
    return (
        PROLOGUE
        + "[[kernel]] void k("
        + ", ".join(f"device int* b{n} [[buffer({n})]]" for n in (0, last))
        + ") { b0[0] = 1; }"
    )


def test_buffers():
    assert lint(buffers(30)) == []
    assert lint(buffers(31)) == [
        "kernel 'k': 'b31' is buffer 31, but Metal binds 31 (0 to 30)"
    ]


def test_lambdas_in_metal_4():
    body = "auto f = [](float v) { return v; }; out[i] = f(x[i]);"
    assert check(body)
    assert check(body, defines=["__METAL_VERSION__=400"]) == []


def test_a_report_names_the_line_once():
    header = "template <typename T> T f(T v) { return erf(v); }\n"
    body = "out[i] = f(x[i]) + f(1.0h) + missing;"
    found = check(body, header)
    assert sorted(line.split(": ")[0] for line in found) == ["line 10", "line 3"]


def test_all_kernels_of_a_text_can_be_named():
    source = """#include <metal_stdlib>
    template <typename T> [[kernel]] void f(device T* x) { x[0] = T(erf(x[1])); }
    template [[host_name("f_half")]] [[kernel]] decltype(f<half>) f<half>;
    [[kernel]] void g(device int* x) { x[0] = 1; }
    """
    assert lint(source, "g") == []
    assert len(lint(source, "f_half")) == len(lint(source, "f", "float")) == 1
    wrong = lint(source, "f", "3")
    assert "'f<3>' names no kernel; check its template arguments" in wrong
    with pytest.raises(ValueError, match="has no kernel 'h'; it has f, g, f_half"):
        lint(source, "h")


def test_a_text_that_cannot_be_read_is_reported():
    assert "line 1: '{' is never closed" in lint("void f() {")[0]
    assert "'missing.h' file not found" in lint('\n#include "missing.h"')[0]


def test_function_constants_and_includes(tmp_path):
    (tmp_path / "mine.h").write_text("#pragma once\n\nconst int broken = N;\n")
    source = """#include "mine.h"
    constant bool wide [[function_constant(0)]];
    [[kernel]] void k(device int* x) { x[0] = wide ? broken : 0; }
    """
    found = lint(source, includes=[str(tmp_path)], defines=["N=3"], constants={0: True})
    assert len(found) == 1
    assert found[0].startswith(f"{tmp_path}/mine.h:3: 'broken' stands at program")


MLX = {
    "qmv_fast": (
        ["steel/gemm/gemm.h", "quantized_utils.h", "quantized.h"],
        "affine_qmv_fast",
        "half, 64, 4, false",
    ),
    "qmm_t": (
        ["steel/gemm/gemm.h", "quantized_utils.h", "quantized.h"],
        "affine_qmm_t",
        "bfloat16_t, 64, 4, true, false",
    ),
    "fp_qmv_fast": (
        ["steel/gemm/gemm.h", "quantized_utils.h", "fp_quantized.h"],
        "fp_qmv_fast",
        "half, 32, 4, false",
    ),
    "softmax": (["softmax.h"], "softmax_single_row", "bfloat16_t, float"),
    "unary": (["unary_ops.h", "unary.h"], "unary_v", "half, half, Sigmoid"),
    "binary": (["binary_ops.h", "binary.h"], "binary_vv", "float, float, Maximum"),
    "sdpa": (["sdpa_vector.h"], "sdpa_vector", "half, 64, 64"),
    "attention": (
        ["steel/attn/kernels/steel_attention.h"],
        "attention",
        "half, 32, 32, 64, 64, 4, 1, float, float",
    ),
    "masked_gemv": (
        ["gemv_masked.h"],
        "gemv_masked",
        "float, nomask_t, nomask_t, 1, 8, 1, 32, 4, 4, false",
    ),
}


@pytest.mark.skipif(not MLX_KERNELS.is_dir(), reason="this MLX ships no Metal headers")
@pytest.mark.parametrize("name", MLX)
def test_kernels_of_mlx_are_clean(name):
    headers, kernel, template = MLX[name]
    source = "".join(
        f'#include "mlx/backend/metal/kernels/{header}"\n'
        for header in ["utils.h", *headers]
    )
    options = {"includes": [INCLUDE], "defines": ["MLX_METAL_JIT"]}
    assert lint(source, kernel, template, **options) == []
