"""What the tests share: the tolerance and the oracle of the proof, as assertions."""

import pytest

from mlx_glu import dispatch
from mlx_glu.proof.oracle import (
    PHI64,
    PSI64,
    derivative64,
    gelu_tanh64,
    gelu_topk64,
    oracle_mul,
    sigmoid64,
)
from mlx_glu.proof.oracle import erf64 as _erf
from mlx_glu.proof.tolerance import EPS, MAX, TINY, f64, worst

__all__ = [
    "EPS",
    "MAX",
    "PHI64",
    "PSI64",
    "TINY",
    "_erf",
    "assert_no_worse",
    "derivative64",
    "f64",
    "gelu_tanh64",
    "gelu_topk64",
    "oracle_mul",
    "sigmoid64",
]


def assert_no_worse(y, stock, oracle, *, terms=0):
    """The rule of ``proof.tolerance.worst``, which says what it is."""
    fault = worst(y, stock, oracle, terms=terms).fault
    if fault:
        raise AssertionError(fault)


@pytest.fixture
def set_impl(monkeypatch):
    """Sets MLX_GLU_IMPL as if it had been set before the process began."""

    def set_to(value):
        monkeypatch.setenv("MLX_GLU_IMPL", value)
        dispatch._environment.cache_clear()

    yield set_to
    dispatch._environment.cache_clear()


def pytest_addoption(parser):
    help = "a checkout of MLX, for its kernels that no header of its wheel has"
    parser.addoption("--mlx-source", metavar="FOLDER", help=help)
