"""A model that two processes share, each with half of every projection."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from sim_programs import needs_simulator

pytestmark = [
    needs_simulator,
    pytest.mark.skipif(
        not mx.distributed.is_available("ring"), reason="MLX was built without it"
    ),
]

WORKER = """
import mlx.core as mx
import mlx_lm_zoo as zoo
from mlx_glu import dispatch, fuse, simulate

group = mx.distributed.init(strict=True, backend="ring")
model, tokens = zoo.build("llama"), mx.array([[3, 1, 4]])
whole = zoo.logits(model, tokens)
model.shard(group)
fuse(model)
shared = zoo.logits(model, tokens)
with simulate(mode="fast"), dispatch.record() as choices:
    fused = zoo.logits(model, tokens)
largest = mx.max(mx.abs(whole))
assert mx.max(mx.abs(shared - whole)) < 2e-6 * largest
assert mx.max(mx.abs(fused - whole)) < 2e-6 * largest
assert {(c.op, c.impl, c.case.N) for c in choices} == {("glu_linear", "fused", 64)}
assert type(model.layers[0].mlp.gate_proj).__name__ == "AllToShardedLinear"
print("rank", group.rank(), "of", group.size())
"""


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def test_two_processes(tmp_path):
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    paths = os.pathsep.join(
        map(str, (Path(__file__).parent, Path(__file__).parents[1]))
    )
    environment = {**os.environ, "MLX_HOSTFILE": str(hosts), "PYTHONPATH": paths}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={**environment, "MLX_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, worker in enumerate(workers):
        out, err = worker.communicate(timeout=120)
        assert f"rank {rank} of 2" in out, err
