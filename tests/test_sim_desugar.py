"""The rewrites that make preprocessed MSL C++, and the errors on what is not MSL."""

import contextlib
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_glu.metal_sim.desugar import Kernel, Param, desugar
from mlx_glu.metal_sim.scopes import declarations
from mlx_glu.metal_sim.tokens import MslError, Tokens


def squeeze(text):
    return " ".join(text.split())


def body(statements, **options):
    """The rewritten statements of a function's body."""
    text = desugar(f"void f() {{ {statements} }}", **options).text
    return squeeze(text).removeprefix("void f() {").removesuffix("}").strip()


# Tokens


@pytest.mark.parametrize(
    "text",
    [
        "x = 1e-5f + .5h - 0x1p-3f + 1'000;",
        's = "a // b"; c = \'"\';',
        "a <<= b >> c; p->x...; // end",
        "/* never closed",
        "#define A(x) \\\n  x\n  #pragma unroll\nint y;",
        "\t\f @ ` \\ é",
    ],
)
def test_tokens_join_to_the_text(text):
    assert str(Tokens(text)) == text


def test_a_number_is_one_token():
    numbers = [t.text for t in Tokens("1e-5f .5h 0x1p-3 1'000").all]
    assert numbers[::2] == ["1e-5f", ".5h", "0x1p-3", "1'000"]


def test_line_markers_place_tokens():
    tokens = Tokens('# 7 "a/b.h" 2\nint x;\n\nint y;\n# 2 "<stdin>"\nint z;\n')
    places = {t.text: t.where for t in tokens.all if t.text in "xyz"}
    assert places == {"x": "a/b.h:7", "y": "a/b.h:9", "z": "line 2"}


@pytest.mark.parametrize(
    ("text", "closes"),
    [
        ("vec<T, 4>", True),
        ("vec<vec<T, 4>, 2>", True),
        ("f<(a > b), sizeof(T) < 4>", True),
        ("a < b;", False),
    ],
)
def test_closing_angle(text, closes):
    tokens = Tokens(text)
    found = tokens.closing_angle(tokens.next(0))
    assert found == (len(tokens) - 1 if closes else -1)


# Scopes


def test_declarations_are_told_apart():
    source = """
    namespace a { struct S : B { int x = 3; S(int y) : x(y), z{y} {} int z; } s; }
    template <typename T, typename = void> inline T f(T x = {}) { return x; }
    extern "C" { void g(int); }
    enum class E : int { one }; typedef int I; constant int v[] = {1, 2};
    struct alignas(16) A { }; bool operator==(A a, A b) { return true; }
    """
    tokens = Tokens(source)
    found = [(d.kind, tokens.join(d.start, d.head)) for d in declarations(tokens)]
    assert found == [
        ("namespace", "namespace a"),
        ("class", "struct S : B"),
        ("other", "int x"),
        ("function", "S(int y)"),
        ("other", "int z"),
        ("function", "template <typename T, typename = void> inline T f(T x = {})"),
        ("namespace", 'extern "C"'),
        ("signature", "void g(int)"),
        ("enum", "enum class E : int"),
        ("other", "typedef int I"),
        ("other", "constant int v[]"),
        ("class", "struct alignas(16) A"),
        ("function", "bool operator==(A a, A b)"),
    ]


# Kernels


def test_kernel_signature():
    result = desugar("""
    template <typename T, int N = 4>
    [[kernel, max_total_threads_per_threadgroup(64)]]
    __attribute__((noinline)) void k(
        const device T* x [[buffer(3)]],
        device float* y,
        constant int& n [[buffer(1), function_constant(f)]],
        constant array<int, 3> shape[2],
        threadgroup float* scratch [[threadgroup(0)]],
        uint3 at [[thread_position_in_grid]]) {}
    """)
    assert result.kernels == {
        "k": Kernel(
            "k",
            [
                Param("const device T *", "x", "buffer", 3),
                Param("device float *", "y", "buffer", 4),
                Param("constant int &", "n", "buffer", 1),
                Param("constant array < int , 3 >", "shape", "buffer", 2),
                Param("threadgroup float *", "scratch", "threadgroup", 0),
                Param("uint3", "at", "thread_position_in_grid"),
            ],
            "typename T, int N = 4",
        )
    }
    assert "[[" not in result.text


def test_the_old_kernel_keyword_and_a_host_name():
    result = desugar('kernel [[host_name("one")]] void k(device int* x) { }')
    assert list(result.kernels) == ["k"]
    assert result.host_names == {"one": "k"}
    assert squeeze(result.text) == "void k(device int* x) { }"


@pytest.mark.parametrize(
    "instantiation",
    [
        'template [[host_name("k_" "4")]] [[kernel]] decltype(k<int, 4>) k<int, 4>;',
        'template [[host_name("k_4")]] [[kernel]] void k<int, 4>(device int* x);',
    ],
)
def test_instantiations_are_noted_and_removed(instantiation):
    kernel = "template <typename T, int N> [[kernel]] void k(device T* x) {}\n"
    result = desugar(kernel + instantiation)
    assert result.host_names == {"k_4": "k<int, 4>"}
    assert result.text.strip().endswith("{}")
    signature, function = result.instance("k_4")
    assert (signature.name, function) == ("k", "k<int, 4>")


def test_the_instance_of_a_kernel():
    result = desugar(
        "namespace a { [[kernel]] void k(device int* x) {} }"
        "template <typename T> [[kernel]] void g(device T* x) {}"
    )
    assert result.instance()[1] == "k"
    assert result.instance("a::k")[0].name == "k"
    assert result.instance("g", "float")[1] == "g<float>"
    with pytest.raises(ValueError, match="no kernel 'h'; it has k, g"):
        result.instance("h")


def test_standard_attributes_stay():
    text = "[[maybe_unused]] int x [[clang::annotate(1)]]; int y = a[b[0]];"
    assert desugar(text).text == text


@pytest.mark.parametrize(
    ("constants", "value"), [({}, "0"), ({2: True}, "true"), ({2: 1.5}, "1.5")]
)
def test_function_constants(constants, value):
    result = desugar("constant bool f [[function_constant(2)]];", constants=constants)
    assert squeeze(result.text) == f"static const bool f = {value};"
    assert result.function_constants == {2: ("bool", "f")}


# Threadgroup variables


def variable(number, type_text, name, dimensions=""):
    alias = f"__msl_tgt{number}"
    return (
        f"typedef {type_text} {alias}{dimensions}; threadgroup {alias}& {name} = "
        f'*(threadgroup {alias}*)__msl_tg_alloc({number}u, sizeof({alias}), "{name}")'
    )


@pytest.mark.parametrize(
    ("statement", "type_text", "dimensions"),
    [
        ("threadgroup float x[32];", "float", "[32]"),
        ("threadgroup vec<T, 4> x[2][N + 1];", "vec<T, 4>", "[2][N + 1]"),
        ("threadgroup alignas(16) typename L::type x;", "typename L::type", ""),
        ("alignas(16) threadgroup float x[4];", "float", "[4]"),
        ("static threadgroup int x;", "int", ""),
        ("float threadgroup x[8];", "float", "[8]"),
        ("const threadgroup float x[8];", "const float", "[8]"),
    ],
)
def test_threadgroup_variables(statement, type_text, dimensions):
    assert body(statement) == variable(0, type_text, "x", dimensions) + ";"


def test_several_threadgroup_variables():
    expected = f"{variable(0, 'float', 'a', '[4]')}; {variable(1, 'float', 'b')};"
    assert body("threadgroup float a[4], b;") == expected
    two = "{ threadgroup int a; } if (c) { threadgroup int a; }"
    assert "__msl_tgt1" in body(two)


@pytest.mark.parametrize(
    "statement",
    [
        "threadgroup float* p = x;",
        "const threadgroup T& r = x[0];",
        "g((threadgroup float*)p);",
        "for (threadgroup float* p = x; p < y; p++) {}",
        "threadgroup_barrier(mem_flags::mem_threadgroup);",
    ],
)
def test_pointers_into_threadgroup_memory_stay(statement):
    assert body(statement) == statement


def test_an_initialiser_of_threadgroup_memory_is_a_warning():
    result = desugar("void f() {\n threadgroup float x[2] = {1, 2}, y(3);\n}")
    assert [w.split(": ")[0] for w in result.warnings] == ["line 2", "line 2"]
    assert "{1, 2}" not in result.text


def test_lint_gives_threadgroup_memory_an_address():
    assert "*(threadgroup __msl_tgt0*)16ul" in body("threadgroup float x;", lint=True)


# Vectors


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("float4(a, b)", "::metal::__msl_make<::float4>(a, b)"),
        ("metal::half2(a)", "metal::__msl_make<::half2>(a)"),
        ("vec<T, 4>(x)", "::metal::__msl_make<::metal::vec<T, 4>>(x)"),
        ("metal::vec<T, N>(x)", "metal::__msl_make<::metal::vec<T, N>>(x)"),
        (
            "int2(float2(x).yx)",
            "::metal::__msl_make<::int2>(::metal::__msl_make<::float2>(x).yx)",
        ),
        ("static_cast<bfloat>(x)", "::metal::__msl_static_cast<bfloat>(x)"),
        ("(float4)x", "(float4)x"),
        ("float4{a, b, c, d}", "float4{a, b, c, d}"),
        ("sizeof(float4)", "sizeof(float4)"),
    ],
)
def test_constructors_of_vectors(before, after):
    assert body(f"y = {before};") == f"y = {after};"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("float2 v(a, b);", "float2 v = ::metal::__msl_make<float2>(a, b);"),
        (
            "vec<T, 2> v(a);",
            "vec<T, 2> v = ::metal::__msl_make<::metal::vec<T, 2>>(a);",
        ),
        ("thread float4 (&acc)[2] = x;", "thread float4 (&acc)[2] = x;"),
        ("float4 v = g();", "float4 v = g();"),
    ],
)
def test_variables_that_are_vectors(before, after):
    after = after.replace("make<float2>", "make<::float2>")
    assert body(before) == after


def test_aliases_of_vectors():
    result = desugar(
        "template <typename T> using V = metal::vec<T, 4>; using H = half2;"
        "typedef float4 F; void f() { H(a); F(b); n::H(c); }"
    )
    assert "__msl_make<H>(a)" in result.text
    assert "__msl_make<F>(b)" in result.text
    assert "n::H(c)" in result.text


def test_functions_that_return_vectors_stay():
    text = "float4 f(float4 x); struct S { operator float4() const { return x; } };"
    assert desugar(text).text == text


# Address spaces


def test_members_for_several_spaces_of_this():
    source = """struct S {
      S() thread {}
      S() threadgroup {}
      int get() const device { return a; }
      int get() const constant { return b; }
    };"""
    text = squeeze(desugar(source).text)
    assert text == "struct S { S() {} int get() const { return a; } };"
    assert desugar(source).members == {
        *(("line 2", 0), ("line 2", 3), ("line 4", 1), ("line 4", 2)),
        *(("S", 0), ("S", 3), ("S", 1), ("S", 2)),
    }


def test_overloads_on_the_space_of_an_argument():
    source = (
        "int f(device int* p) { return 1; } int f(threadgroup int* p) { return 2; }"
    )
    assert squeeze(desugar(source).text) == "int f(device int* p) { return 1; }"
    assert desugar(source, lint=True).text == source


def test_specialisations_on_an_address_space():
    source = "struct P<device T*> { }; struct P<threadgroup T*> { };"
    assert squeeze(desugar(source).text) == "struct P<device T*> { };"


def test_the_same_name_in_two_scopes_stays():
    source = """namespace a { int f(device int* p); } namespace b { int f(int* p); }
    struct A { int f(device int* p); }; struct B { int f(int* p); };"""
    assert desugar(source).text == source


def test_a_reopened_namespace_is_one_scope():
    source = "namespace a { int f(device int* p); } namespace a { int f(int* p); }"
    assert desugar(source).text.count("int f") == 1


def test_array_parameters_become_pointers():
    source = "void f(constant int shape[3], thread float x[2], int y[2]) {}"
    expected = "void f(constant int * shape , thread float * x , int y[2]) {}"
    assert squeeze(desugar(source).text).replace(" ,", ",") == expected.replace(
        " ,", ","
    )


# Lines

MANY_LINES = """
template <typename T>
[[kernel]] void k(
    device T* x [[buffer(0)]],
    uint i
    [[thread_position_in_grid]]) {
  threadgroup T
      a[2],
      b;
  float4 v(
      1, 2,
      3, 4);
  x[i] = vec<T,
             2>(
      v.xy).x;
}
constant bool
  flag [[function_constant(0)]];
struct S {
  int f() thread { return 1; }
  int f() device {
# 90 "other.h"
    return 1; }
};
int last;
"""


@pytest.mark.parametrize("lint", [False, True])
def test_lines_are_kept(lint):
    result = desugar(MANY_LINES, lint=lint)
    before, after = MANY_LINES.split("\n"), result.text.split("\n")
    assert len(before) == len(after)
    for text in ("v.xy", "int last", "# 90"):
        numbers = [[n for n, t in enumerate(x) if text in t] for x in (before, after)]
        assert numbers[0] == numbers[1]


# Errors


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("int x;\nvoid f( {\n}", r"line 3: '}' where .* line 2|line 2: '\(' is never"),
        ("void f() {\n  g(1];\n}", r"line 2: '\]' where '\)' should close"),
        ("void f() {\n", r"line 1: '{' is never closed"),
        ("int x;\n}", r"line 2: '}' closes no bracket"),
        ("int x;\ndouble y;", "line 2: Metal has no 'double'; use float"),
        ('# 9 "k.h"\ndouble y;', "k.h:9: Metal has no 'double'"),
        ("\nstruct S { int x; }", "line 2: expected ';' after the struct"),
        ("\ntemplate <int N void f();", "line 2: cannot find the end"),
        (
            "\n[[kernel]] void k(device int*) {}",
            "line 2: expected 'type name' for .*, got",
        ),
        ("\n[[kernel]] void k(int) {}", "line 2: expected 'type name'"),
        ("\n[[kernel]] struct S { };", "line 2: expected a bracket"),
        ("[[host_name(x)]] void k() {}", r"expected \[\[host_name\(\"name\"\)\]\]"),
        (
            "\nconstant int f [[function_constant(n)]];",
            "line 2: expected a number in .* of 'f', got 'n'",
        ),
    ],
)
def test_errors_name_the_line(source, message):
    with pytest.raises(MslError, match=message):
        desugar(source)


PIECES = re.findall(
    r"\S+",
    """
kernel void k template < > typename T , ; { } ( ) [ ] [[ ]] threadgroup device
constant thread float4 vec<T,4> x = : :: alignas decltype struct class enum namespace
operator static using typedef static_cast [[kernel]] [[buffer(0)]] [[host_name("h")]]
[[function_constant(1)]] extern "C" 'c' 1.5f * & -> ... // /* */ # 3 const
""",
)


def check_fuzz(source):
    for lint in (False, True):
        with contextlib.suppress(MslError):
            result = desugar(source, lint=lint)
            assert result.text.count("\n") == source.count("\n")


@given(st.lists(st.sampled_from([*PIECES, "\n", '\n# 5 "f.h"\n']), max_size=40))
@example(["template", "void", "f", "(", ")", ";"])
@example(["[[kernel]]", "alignas", "x", ";"])
@example(["void", "f()", "{", "alignas", "threadgroup", "alignas", "x", ";", "}"])
@settings(max_examples=300, deadline=None)
def test_any_order_of_tokens_is_rewritten_or_refused(pieces):
    check_fuzz(" ".join(pieces))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_to_a_kernel_is_rewritten_or_refused(data):
    tokens = re.findall(r"\s+|\w+|.", MANY_LINES)
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(tokens) - 1))
        if not tokens[index].isspace():
            tokens[index] = data.draw(st.sampled_from(["", "{", "}", "<", ">", ";"]))
    check_fuzz("".join(tokens))


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_is_rewritten_or_refused(text):
    check_fuzz(text)
