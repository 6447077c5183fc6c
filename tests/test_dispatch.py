import ast
from pathlib import Path

import pytest

from mlx_glu import dispatch, variants
from mlx_glu.dispatch import IMPLS, OPS, select, use_impl


@pytest.mark.parametrize("op", OPS)
def test_choice_says_why(op):
    choice = select(op)
    assert choice.impl in IMPLS
    assert op in choice.why


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
def test_imports_nothing_below_it(module):
    tree = ast.parse(Path(module.__file__).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module.split(".")[0])
    assert names
    assert not names & {"mlx", "mlx_glu", "numpy"}
