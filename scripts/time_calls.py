"""Time the Python of one feed-forward call: what a decode step pays for each layer.

    .venv/bin/python scripts/time_calls.py

No kernel runs. Where stock would, MLX only builds its graph, which is not evaluated;
a fused kernel is replaced by one that returns empty arrays, as if on an Apple GPU. So
these are microseconds of this CPU, and say nothing about a GPU. Calls are the calls of
Python functions and of C functions that Python's profiler sees.
"""

import argparse
import sys
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from unittest import mock

import mlx.core as mx
import mlx.nn as nn

from mlx_glu import jit, use_impl
from mlx_glu.feed_forward import Block
from mlx_glu.fusion import patches
from mlx_glu.variants import VARIANTS

FORMATS = ("dense", "4-bit")
ARMS = ("stock", "patched, all stock", "fused")


@mx.compile
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """The activation as mlx-lm has it."""
    return nn.silu(gate) * up


class MLP(nn.Module):
    """The feed-forward of a stock model."""

    def __init__(self, K: int, N: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(K, N, bias=False)
        self.up_proj = nn.Linear(K, N, bias=False)
        self.down_proj = nn.Linear(N, K, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """Three layers and the product."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


@contextmanager
def no_kernels() -> Iterator[None]:
    """Inside, a GPU seems to be there, and kernels return empty arrays."""

    def build(*_: object) -> jit.Kernel:
        def kernel(**given: object) -> list[mx.array]:
            outputs = zip(given["output_shapes"], given["output_dtypes"], strict=True)
            return [mx.zeros(shape, dtype) for shape, dtype in outputs]

        return kernel

    def backend(inputs: object = None) -> str:
        return "metal"

    fakes = {"_build": lru_cache(build), "backend": backend}
    with mock.patch.multiple(jit, **fakes):
        yield


@contextmanager
def calls(format: str, arm: str) -> Iterator[Callable[[], mx.array]]:
    """A call of one token, warm; inside, it may be made."""
    K, N = 576, 1536
    mlp = MLP(K, N)
    mlp.set_dtype(mx.float16)
    if format == "4-bit":
        nn.quantize(mlp)
    if arm != "stock":
        patches.patch_block(mlp, Block(VARIANTS["swiglu"]))
    x = mx.zeros((1, 1, K), mx.float16)
    with no_kernels(), use_impl("fused" if arm == "fused" else "stock"):
        for _ in range(3):
            mlp(x)
        yield lambda: mlp(x)


def count_calls(run: Callable[[], object]) -> int:
    """Function calls that one run makes, without its own."""
    events: list[str] = []
    sys.setprofile(lambda frame, event, arg: events.append(event))
    try:
        run()
    finally:
        sys.setprofile(None)
    # The last is the C call that ends the profile.
    return sum(event in ("call", "c_call") for event in events) - 2


def main() -> None:
    """Print a line for each format and arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=3000, help="calls a round")
    number = parser.parse_args().number
    print(f"{'':6} {'':20} {'us':>6} {'calls':>6}   CPU, Python only, no kernel runs")
    for format in FORMATS:
        for arm in ARMS:
            with calls(format, arm) as run:
                seconds = min(timeit.repeat(run, number=number, repeat=15)) / number
                print(f"{format:6} {arm:20} {seconds * 1e6:6.1f} {count_calls(run):6}")


if __name__ == "__main__":
    main()
