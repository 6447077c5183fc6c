"""What a training step keeps and computes, measured."""

import io
from contextlib import contextmanager
from unittest import mock

import mlx.core as mx
import mlx.nn as nn

from mlx_glu import projection


class Stack(nn.Module):
    """Blocks on a residual stream, each run by ``run``."""

    def __init__(self, blocks, run):
        super().__init__()
        self.blocks, self.run = blocks, run

    def __call__(self, x):
        for block in self.blocks:
            x = x + self.run(block, x)
        return x


def call(mlp, x):
    return mlp(x)


def llama(mlp, x):
    """The composition of LLaMA and of mlx-lm."""
    return mlp.down_proj(nn.silu(mlp.gate_proj(x)) * mlp.up_proj(x))


@contextmanager
def simple_products():
    """As on a GPU: weights are not divided among cores, nor copied for a slow BLAS."""
    with mock.patch.object(projection, "_on_cpu", projection._product):
        yield


@contextmanager
def nothing_ahead():
    """Inside, MLX does not queue work of which it would hold the memory already.

    Its CPU queue takes up to a hundred operations, more than a stack of a few blocks
    has; above a limit of memory it waits for each ten.
    """
    limit = mx.set_memory_limit(1)
    try:
        yield
    finally:
        mx.set_memory_limit(limit)


def measure(stack, x, wrap=lambda f: f):
    """Bytes that a step keeps for its gradient beside x, and the most that it needs."""
    cotangent = mx.ones_like(x)
    step = wrap(nn.value_and_grad(stack, lambda x: (stack(x) * cotangent).sum()))
    mx.eval(stack.parameters(), x, cotangent, step(x))
    with nothing_ahead():
        mx.synchronize()
        before = mx.get_active_memory()
        loss, grads = step(x)
        mx.eval(loss)  # the gradients wait, and hold what they are made of
        mx.synchronize()
        saved = mx.get_active_memory() - before
        mx.eval(grads)
        del loss, grads
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        found = step(x)
        mx.eval(found)
        return saved, mx.get_peak_memory() - before


def count_products(*arrays):
    """Matrix products in their graph, before any is computed."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    return sum(graph.getvalue().count(f'"{name}"') for name in ("Matmul", "AddMM"))
