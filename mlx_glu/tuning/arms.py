"""What is timed: a chain of one case's operation, as stock and as fused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import mlx.core as mx

from .. import ops
from ..dispatch import Case, use_impl
from ..quantization import DENSE, QuantizedWeight, Weight
from ..reference import Norm
from .machine import Machine

Operation = Callable[[mx.array], mx.array]

#: Bytes of weights that are read before one is read again: five times the 47 MB that
#: still fit into the cache of an M3 Max (ml-explore/mlx#3852).
COLD_BYTES = 256 << 20
#: The share of memory that they may take, and how many copies of a small weight.
MEMORY_SHARE, MOST_COPIES = 1 / 8, 512
#: Calls that are built before the GPU gets them: mlx-lm builds a token's while the
#: GPU runs those of the last, so that Python counts where it is the slower.
AHEAD = 8

#: Rows of random numbers; a weight repeats them.
_BLOCK = 64


@dataclass
class Arm:
    """Runs a chain of calls and waits for the last.

    Attributes:
        impl: the implementation.
        case: what is called.
        M: rows of x.
        x: of the first call; the next one's depends on the result.
        operations: the case with the next weight each; all arms share it.
        calls: of the chain.
    """

    impl: str
    case: Case
    M: int
    x: mx.array
    operations: Iterator[Operation]
    calls: int = 1

    def __call__(self) -> None:
        """Run the chain once."""
        x = self.x
        with use_impl(self.impl):
            for i in range(1, self.calls + 1):
                y = next(self.operations)(x)
                # x again, or nearly, but not before y is there. It costs both arms
                # the same, so that a gain is understated.
                x = mx.maximum(x, y[..., :1])
                if i % AHEAD == 0:
                    mx.async_eval(x)
        mx.eval(x)


def make_arms(case: Case, M: int, machine: Machine) -> dict[str, Arm]:
    """Both arms of a case, on the same arrays.

    Args:
        case: what a kernel exists for.
        M: rows of x.
        machine: its memory bounds the copies of weights; there are two or more.

    Returns:
        Arms by implementation; their arrays are evaluated.
    """
    draw = _Draw(case)
    packed = 2 if case.layout else 1
    x = draw.positive(1, M, case.K or case.N * packed)
    first, arrays = _operation(case, M, draw)
    operations = [first]
    for _ in range(_copies(sum(a.nbytes for a in arrays), machine) - 1):
        operation, more = _operation(case, M, draw)
        operations.append(operation)
        arrays += more
    mx.eval(x, arrays)
    turns = cycle(operations)
    return {impl: Arm(impl, case, M, x, turns) for impl in ("stock", "fused")}


def _copies(nbytes: int, machine: Machine) -> int:
    allowed = int(machine.memory * MEMORY_SHARE) // max(1, nbytes)
    wanted = -(-COLD_BYTES // max(1, nbytes))
    return max(2, min(wanted, allowed, MOST_COPIES))


def _operation(case: Case, M: int, draw: _Draw) -> tuple[Operation, list[mx.array]]:
    """The case as a function of x, with arrays of its own: those too."""
    if case.op == "glu_mul":
        return _product(case, M, draw)
    names = {"gate_bias", "up_bias"} if case.biases == "biases" else {case.biases}
    biases = {
        name: mx.zeros(case.N, draw.parameters) if name in names else None
        for name in ("gate_bias", "up_bias")
    }
    gate, arrays = draw.weight(case.weight)
    if case.op == "down_linear":
        residual = mx.zeros((1, M, case.N), draw.dtype) if case.residual else None
        bias = biases["gate_bias"]
        down = partial(ops.down_linear, weight=gate, bias=bias, residual=residual)
        return down, arrays
    assert case.variant is not None
    up, more = draw.weight(case.up)
    norm = None
    if case.norm:
        ones = mx.ones(case.K, draw.parameters)
        norm = Norm(ones, 1e-6, int(case.norm == "gemma"))
    gated = partial(
        ops.glu_linear,
        gate=gate,
        up=up,
        variant=case.variant,
        gate_bias=biases["gate_bias"],
        up_bias=biases["up_bias"],
        norm=norm,
    )
    return gated, arrays + more


def _product(case: Case, M: int, draw: _Draw) -> tuple[Operation, list[mx.array]]:
    from ..proof.cases import LAYOUTS

    assert case.variant is not None
    packing = LAYOUTS[case.layout or "separate"]
    if packing is None:
        up = draw.positive(1, M, case.N)
        return partial(ops.glu_mul, up=up, variant=case.variant), [up]
    order, layout = packing
    packed = partial(ops.glu_mul_packed, variant=case.variant, order=order)
    return partial(packed, layout=layout), []


class _Draw:
    """Arrays of a case, without the user's random state."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._key = mx.random.key(0)
        self.dtype: mx.Dtype = getattr(mx, case.dtype)
        self.parameters: mx.Dtype = getattr(mx, case.parameters or case.dtype)

    def positive(self, *shape: int) -> mx.array:
        """Activations that stay in bounds however often a unit combines them."""
        return mx.random.uniform(0.25, 0.5, shape, key=self._key).astype(self.dtype)

    def weight(self, name: str) -> tuple[Weight, list[mx.array]]:
        """A weight [N, K] in memory of its own, and its arrays; its row 0 is 0."""
        from ..proof.cases import FORMATS

        K = self._case.K
        block = mx.random.normal((_BLOCK, K), scale=K**-0.5, key=self._key)
        block = mx.where(mx.arange(_BLOCK)[:, None] > 0, block, 0)
        rows = mx.arange(self._case.N) % _BLOCK
        if name == DENSE:
            dense = block.astype(self.dtype)[rows]
            return dense, [dense]
        q = FORMATS[name]
        block = block.astype(self.parameters)
        parts = mx.quantize(block, q.group_size, q.bits, mode=q.mode)
        arrays = [part[rows] for part in parts]
        packed, scales, *biases = arrays
        bias = biases[0] if biases else None
        weight = QuantizedWeight(packed, scales, bias, q.group_size, q.bits, q.mode)
        return weight, arrays
