import ast
from pathlib import Path

import pytest

from mlx_glu import dispatch, variants
from mlx_glu.dispatch import (
    IMPLS,
    MAX_M,
    MAX_SIZE,
    OPS,
    Case,
    Choice,
    m_range,
    record,
    use_impl,
)
from mlx_glu.variants import VARIANTS


def select(op, *, M=1, N=1, variant=None, **given) -> Choice:
    return dispatch.select(Case(op, "float16", N, variant=variant), M, **given)


@pytest.mark.parametrize("backend", [None, "metal", "simulator", "tracer", "shapeless"])
@pytest.mark.parametrize("op", OPS)
def test_every_choice_has_a_reason(op, backend):
    for M in (0, 1, MAX_M, MAX_M + 1):
        for variant in (None, VARIANTS["swiglu"], VARIANTS["gelu_topk"]):
            choice = select(op, backend=backend, M=M, variant=variant)
            assert choice.op == op
            assert choice.impl in IMPLS
            assert len(choice.why) > 10


def impl(op="glu_linear", **facts):
    return select(op, **facts).impl


def test_fused_runs_only_where_it_was_asked_for():
    assert impl(backend=None) == "stock"
    assert impl(backend="metal") == "stock"  # nothing has been measured yet
    assert impl(backend="simulator") == "fused"
    with use_impl("fused"):
        assert impl(backend="metal") == "fused"
    with use_impl("stock"):
        assert impl(backend="simulator") == "stock"


def test_fused_takes_a_few_rows_of_pointwise_variants():
    rows = {M: impl(backend="simulator", M=M) for M in range(MAX_M + 3)}
    assert [M for M, chosen in rows.items() if chosen == "fused"] == [1, 2, 3, 4, 5]
    assert impl("glu_mul", backend="simulator", M=4096) == "fused"
    assert impl("glu_mul", backend="simulator", M=1 << 16, N=1 << 15) == "stock"
    assert impl("glu_mul", backend="simulator", M=3, N=0) == "stock"
    assert impl(backend="simulator", variant=VARIANTS["gelu_topk"]) == "stock"
    with use_impl("fused"):
        choice = select("glu_linear", backend="metal", M=40)
    assert choice.impl == "stock"
    assert "40 rows" in choice.why


def test_nothing_falls_back_silently():
    refused = r"\[dispatch\] use_impl\('fused'\) needs an Apple GPU.*simulate"
    with use_impl("fused"), pytest.raises(ValueError, match=refused):
        select("glu_mul")
    with record() as outer:
        select("glu_mul", backend="metal")
        with record() as inner:
            select("down_linear", backend="tracer")
    assert [c.op for c in outer] == ["glu_mul", "down_linear"]
    assert [c.op for c in inner] == ["down_linear"]
    assert "measured" in outer[0].why
    assert "mx.compile" in inner[0].why


def test_use_impl_is_seen_and_undone():
    before = select("glu_mul")
    with use_impl("stock"):
        assert "use_impl" in select("glu_mul").why
    assert select("glu_mul") == before
    with pytest.raises(KeyError), use_impl("stock"):
        raise KeyError
    assert select("glu_mul") == before


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"\[dispatch\].*glu_mul.*but got 'gemm'"):
        select("gemm")
    with (
        pytest.raises(ValueError, match=r"\[dispatch\].*but got 'metal'"),
        use_impl("metal"),
    ):
        pass


@pytest.mark.parametrize("module", [variants, dispatch], ids=lambda m: m.__name__)
def test_can_be_read_without_arrays(module):
    tree = ast.parse(Path(module.__file__).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level or node.module == "variants"
            names.add(node.module.split(".")[0])
    assert names
    assert not names & {"mlx", "mlx_glu", "numpy"}


def test_where_a_gpu_is_the_judge_is_asked():
    asked = []

    def judge(case, M):
        asked.append((case, M))
        return "fused", "4% faster here"

    choice = select("glu_linear", backend="metal", M=2, judge=judge)
    assert (choice.impl, choice.why) == ("fused", "4% faster here")
    assert asked == [(choice.case, 2)]
    with use_impl("stock"):
        assert select("glu_linear", backend="metal", judge=judge).impl == "stock"
    for backend in (None, "simulator", "tracer", "shapeless"):
        select("glu_linear", backend=backend, judge=judge)
    for M in (0, MAX_M + 1):
        assert select("glu_linear", backend="metal", M=M, judge=judge).impl == "stock"
    assert len(asked) == 1


def test_the_environment_turns_everything_off(set_impl):
    set_impl("stock")
    for op in OPS:
        with use_impl("fused"):
            choice = select(op, backend="simulator")
        assert choice.impl == "stock"
        assert "MLX_GLU_IMPL=stock" in choice.why
    set_impl("fused")
    assert select("glu_mul", backend="metal").impl == "fused"
    assert select("glu_mul").impl == "stock"
    set_impl("0")
    with pytest.raises(ValueError, match=r"MLX_GLU_IMPL.*stock, fused but got '0'"):
        select("glu_mul")


def test_each_M_has_one_range():
    for op in OPS:
        ranges = [m_range(op, M) for M in range(1, 1025)]
        assert all(r[0] <= M <= r[1] for M, r in enumerate(ranges[:MAX_M], 1))
        assert sorted(set(ranges)) == list(dict.fromkeys(ranges))
    assert m_range("glu_mul", 4096) == (513, MAX_SIZE)
    assert m_range("glu_linear", 1) != m_range("glu_linear", 2)
