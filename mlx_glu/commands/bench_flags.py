"""What ``mlx-glu bench`` can be asked, and what it refuses."""

import argparse
import shlex
import textwrap
from pathlib import Path

from ..bench import shapes
from . import prompting

HELP = "measure this package against stock MLX on this machine"
_NAMES = textwrap.fill(", ".join(shapes.SHAPES), 76, break_on_hyphens=False)
DESCRIPTION = f"""\
Time a feed-forward layer with its norm and residual in every way it can be run:

  stock           as mlx-lm runs it
  concat          stock, gate and up joined into one weight
  fused           the layer by this package's kernels, as mlx_glu.fuse does it
  fused_block     norm and residual in the kernels too, as in our own models
  stock_1000_ops  stock in a process with MLX_MAX_OPS_PER_BUFFER=1000

or, with --model, a whole model with and without fusion.

  mlx-glu bench                                   about a minute
  mlx-glu bench --shape llama-3-8b 2048x8192 --q-bits 4 8 --rows 1 2 4
  mlx-glu bench --dense --dtype bfloat16 --report report.html
  mlx-glu bench --model FOLDER -p 512 -g 128
  mlx-glu bench --model ORG/MODEL --engine mlx-lm --json

Each arm is compared with float64 before it is timed; a wrong one gets no time.
Runs are interleaved and compared block by block: a verdict is "faster" or
"slower" where the 95% interval of the speed-up leaves no doubt, else "within
noise". An arm that did not run fused says why. The command exits with 1 if
something is wrong, or varied too much to be judged.

Fused times need a Mac. Elsewhere stock and concat are timed, and simulated
counts of the kernels are printed beside (pip install 'mlx-glu[sim]').

Shapes:
{_NAMES}
"""

_FORMAT = ("q_mode", "q_bits", "q_group_size", "dense", "dtype")
_LAYER = ("shape", "rows", *_FORMAT, "no_simulate")
_MODEL = ("engine", "prompt_tokens", "generation_tokens", "prefill_step_size")


def add_args(parser: argparse.ArgumentParser) -> None:
    """Flags as in mlx_lm.convert and mlx_lm.benchmark where these have them."""
    layer = parser.add_argument_group("a layer")
    add = layer.add_argument
    add(
        "--shape",
        nargs="+",
        metavar="S",
        help="a shape named above, or KxN, or KxN:variant with "
        f"{', '.join(shapes.VARIANTS)} (default: llama-3.2-1b, on a CPU "
        "smollm2-135m)",
    )
    add(
        "--rows",
        nargs="+",
        type=int,
        metavar="M",
        help="rows of x, tokens at once (default: 1 2 4 8 16 32 128 512, on a CPU "
        "up to 128)",
    )
    add("--q-bits", nargs="+", type=int, metavar="BITS", help="affine: 2 to 8, not 7")
    add(
        "--q-group-size",
        nargs="+",
        type=int,
        metavar="SIZE",
        help="weights that share a scale; affine: 32, 64 or 128",
    )
    add(
        "--q-mode",
        nargs="+",
        metavar="MODE",
        choices=("affine", "mxfp4", "mxfp8", "nvfp4"),
        help="affine, mxfp4, mxfp8 or nvfp4 (default: affine, 4 bits in groups of 64)",
    )
    add(
        "--dense", action="store_true", help="weights that are not packed, too or alone"
    )
    add(
        "--dtype",
        nargs="+",
        metavar="DTYPE",
        choices=("float16", "bfloat16", "float32"),
        help="of activations and scales: float16, bfloat16 or float32 (default: "
        "bfloat16, on a CPU float32)",
    )
    add("--no-simulate", action="store_true", help="leave the simulated counts out")
    _add_model(parser)
    _add_common(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a whole model")
    add = group.add_argument
    add("--model", metavar="PATH", help="folder, .gguf file or Hub id")
    prompting.add_engine(group, None)
    add(
        "-p",
        "--prompt-tokens",
        type=int,
        metavar="N",
        help="length of the random prompt (default: 512, on a CPU 64)",
    )
    add(
        "-g",
        "--generation-tokens",
        type=int,
        metavar="N",
        help="tokens after it (default: 128, on a CPU 16)",
    )
    add(
        "--prefill-step-size",
        type=int,
        metavar="N",
        help="read the prompt N tokens at a time (default: 2048, on a CPU 256)",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-n",
        "--num-trials",
        type=int,
        metavar="N",
        help="blocks, of two runs of each arm (default: 12, of a model 5)",
    )
    add("--delay", type=float, default=0.0, metavar="S", help="rest before each run")
    add(
        "--max-variation",
        type=float,
        default=0.10,
        metavar="X",
        help="(p80 - p20) / p50 above which an arm is too noisy (default: 0.1)",
    )
    add("--json", action="store_true", help="print a JSON object a row, not the table")
    add("--report", metavar="FILE", help="write an HTML page with tables and charts")
    add("--plot", metavar="FILE", help="write charts as PNG; needs matplotlib")


def check(args: argparse.Namespace) -> None:
    """Everything that can be known to be wrong before anything is loaded."""
    for name in _LAYER if args.model else _MODEL:
        if getattr(args, name):
            flag, without = name.replace("_", "-"), "with" if args.model else "without"
            raise ValueError(f"--{flag} has no effect {without} --model; leave it out")
    for name in ("rows", "num_trials", "generation_tokens", *_MODEL[1:]):
        value = getattr(args, name)
        values = value if isinstance(value, list) else [value]
        if any(v is not None and v < 1 for v in values):
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if not args.max_variation > 0 or not args.delay >= 0:
        raise ValueError("--max-variation must be above 0 and --delay at least 0")
    if args.report and args.report == args.plot:
        raise ValueError(f"--report and --plot both name {args.plot}; name two files")
    from ..bench import png, report

    for flag in ("report", "plot"):
        if getattr(args, flag):
            report.check_path(f"--{flag}", Path(getattr(args, flag)))
    if args.plot:
        png.check()


def command_of(args: argparse.Namespace) -> str:
    """The command line again, without where its files go."""
    words = ["mlx-glu", "bench"]
    for name, value in vars(args).items():
        if name in ("run", "report", "plot", "json") or value in (None, False):
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)
