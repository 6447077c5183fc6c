"""Simulated counts of one small FFN, to stand beside times of a machine without Metal.

They say what the text of the kernels does for one token, not how long it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from ..metal_sim import toolchain
from .arms import Setup
from .paths import BITS, GROUP, Comparison, Counts, Shape, count

#: Weights of an FFN that is simulated in some seconds.
MAX_WEIGHTS = 8_000_000
#: Activations of what is counted.
DTYPE = mx.bfloat16
HEAD = ("path", "dispatches", "stages", "threadgroups", "MB moved", "loads")


class Simulated(NamedTuple):
    """Counts of stock and of this package's two kernels, for one row of x."""

    shape: Shape
    bits: int
    stock: Counts
    fused_block: Counts

    @property
    def title(self) -> str:
        """What was counted."""
        return (
            f"SIMULATED counts, not times: {self.shape.model}, M 1, {self.bits}-bit "
            f"affine, group size {GROUP}, bfloat16, norm to residual"
        )

    def table(self) -> list[list[str]]:
        """Cells under HEAD."""
        lines = [list(HEAD)]
        for name in ("stock", "fused_block"):
            c: Counts = getattr(self, name)
            numbers = c.dispatches, c.stages, c.threadgroups
            moved = f"{c.bytes_once / 1e6:.4f}"
            lines.append([name, *map(str, numbers), moved, str(c.loads)])
        return lines

    def as_rows(self) -> Iterator[dict[str, object]]:
        """One for each path, as JSON has them."""
        for name in ("stock", "fused_block"):
            yield {
                "op": "ffn_simulated",
                "arm": name,
                "model": self.shape.model,
                "variant": self.shape.variant,
                "dtype": "bfloat16",
                "bits": self.bits,
                "group_size": GROUP,
                "mode": "affine",
                "M": 1,
                "K": self.shape.K,
                "N": self.shape.N,
                **vars(getattr(self, name)),
            }


def simulate(setups: Sequence[Setup]) -> Simulated | str:
    """Count the first setup that can be, or say why none was."""
    found = next(filter(_can, setups), None)
    if found is None:
        bits = " or ".join(map(str, BITS))
        return (
            f"no simulated counts: they need swiglu or geglu_tanh, affine weights of "
            f"{bits} bits in groups of {GROUP}, and at most {MAX_WEIGHTS // 10**6} "
            "million of them"
        )
    try:
        toolchain.zig()
        toolchain.runtime_library()
    except ValueError as error:
        return f"no simulated counts: {error}"
    shape, packed, _ = found
    assert packed is not None
    gemma = shape.variant == "geglu_tanh"
    path = Shape(shape.name, shape.K, shape.N, shape.variant, gemma=gemma)
    done = Comparison.of(path, packed.bits, DTYPE)
    return Simulated(path, packed.bits, count(done.stock), count(done.ours))


def _can(setup: Setup) -> bool:
    shape, packed, _ = setup
    return (
        packed is not None
        and (packed.mode, packed.group_size) == ("affine", GROUP)
        and packed.bits in BITS
        and shape.variant in ("swiglu", "geglu_tanh")
        and shape.K % GROUP == shape.N % GROUP == 0
        and 3 * shape.K * shape.N <= MAX_WEIGHTS
    )
