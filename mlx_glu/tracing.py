"""Is this call part of a trace, which MLX will replay?"""

from __future__ import annotations

import io

import mlx.core as mx

_a, _b = mx.array(0.0), mx.array(0.0)


def is_shapeless() -> bool:
    """Whether ``mx.compile(shapeless=True)`` is tracing the caller.

    What it traces is replayed on other shapes, for which MLX asks each primitive; a
    kernel and a custom function have no answer, and the replay raises. MLX does not
    say that it traces so, but then broadcasts even equal shapes, which the graph of a
    broadcast shows (mlx/ops.cpp, broadcast_arrays). It takes 2 microseconds.
    """
    graph = io.StringIO()
    mx.export_to_dot(graph, mx.broadcast_arrays(_a, _b)[0])
    return "Broadcast" in graph.getvalue()
