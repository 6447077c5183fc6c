"""``mlx-glu explain``: what runs a model's feed-forwards here, and why."""

import argparse
import sys
from typing import TYPE_CHECKING

from . import prompting

if TYPE_CHECKING:
    import mlx.nn as nn

HELP = "say what runs a model's feed-forwards, and why"
DESCRIPTION = """\
Find the gated feed-forwards of a model and say what would run each of them on
this machine: which are gated linear units and which are not, the activation
that was found by probing, sizes and formats, and for each number of rows
(tokens at once) "fused", "stock" or the operations that are fused, and why.

  mlx-glu explain                       the default model
  mlx-glu explain --model FOLDER
  mlx-glu explain --model FOLDER --engine mlx-lm    any model of mlx-lm
  mlx-glu explain --tuning              what was measured on this machine
  mlx-glu explain --reset-tuning        forget that; it is measured again

Kernels are tested and measured when a model is first fused on an Apple GPU;
they run only where they win by 3% or more. MLX_GLU_IMPL=stock turns them off.
"""


def add_args(parser: argparse.ArgumentParser) -> None:
    """Which model, or what was measured."""
    add = parser.add_argument
    add("--model", metavar="PATH", help="as in mlx-glu generate")
    prompting.add_engine(parser, prompting.ENGINES[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--tuning", action="store_true", help="print the measurements")
    what.add_argument("--reset-tuning", action="store_true", help="forget them")


def run(args: argparse.Namespace) -> None:
    """Print one of the three."""
    if args.tuning or args.reset_tuning:
        if args.model is not None:
            raise ValueError("--tuning is about this machine; leave out --model")
        _tuning(args.reset_tuning)
        return
    import mlx.core as mx

    from .. import jit
    from ..fusion import explain, fuse
    from ..hub import named
    from ..loading import load_model

    model: nn.Module
    if args.engine == "mlx-lm":
        model, _ = prompting.load(args)
    else:
        model = load_model(named(args.model))
        if jit.backend():  # the call shows which norms and residuals are fused, too
            model(mx.zeros((1, 1), mx.int32))
    print(explain(fuse(model, measure=False)))


def _tuning(reset: bool) -> None:
    from .. import tuning

    if reset:
        path = tuning.reset()
        said = f"removed {path}" if path else "nothing had been measured"
        print(said, file=sys.stderr)
    else:
        print(tuning.report())
