"""Stock in a process of its own, whose Metal device reads another environment.

MLX reads ``MLX_MAX_OPS_PER_BUFFER`` once, when its Metal device starts. Fewer
dispatches also move the ends of command buffers, so that part of a gain can be had
by this variable alone; this arm tells how much.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import mlx.core as mx

from .. import paired
from ..quantization import Quantization, dtype_name
from .arms import ARMS, Setup
from .shapes import Shape

#: As in ml-explore/mlx issue 4521.
ENVIRONMENT = {"MLX_MAX_OPS_PER_BUFFER": "1000", "MLX_MAX_MB_PER_BUFFER": "400"}


class Child:
    """The process; a context manager, as it has to end."""

    def __init__(self, setup: Setup, rotated: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the parent's to answer
        )
        packed = setup.quantization
        self._ask(
            shape=setup.shape,
            packed=packed and [packed.group_size, packed.bits, packed.mode],
            dtype=dtype_name(setup.dtype),
            rotated=rotated,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def prepare(self, M: int, calls: int) -> None:
        """What :meth:`run` is to do."""
        self._ask(M=M, calls=calls)

    def run(self) -> float:
        """Run once; seconds by the child's own clock."""
        return self._ask(run=True)

    def _ask(self, **message: Any) -> float:
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        try:
            print(json.dumps(message), file=to, flush=True)
            answer = back.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ValueError(
                "[bench] the process with MLX_MAX_OPS_PER_BUFFER ended early; what it "
                "said is above"
            )
        return float(answer)


def main() -> None:
    """Answer each line with seconds."""
    from .layer import Chain

    stock = next(iter(ARMS.values()))
    given = json.loads(sys.stdin.readline())
    packed = Quantization(*given["packed"]) if given["packed"] else None
    setup = Setup(Shape(*given["shape"]), packed, getattr(mx, given["dtype"]))
    chain = Chain(setup, given["rotated"], joined=False)
    print(0.0, flush=True)
    run: paired.Run = str
    for line in sys.stdin:
        asked, seconds = json.loads(line), 0.0
        if "M" in asked:
            run = partial(chain.run, stock, chain.input(asked["M"]), asked["calls"])
        else:
            seconds = paired.wall_clock("", run)
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
