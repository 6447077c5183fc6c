"""How ``convert`` is told what to pack."""

import argparse
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..conversion.convert import Report

#: Flags that say how to pack, which ``-q`` alone makes happen.
_HOW = (
    "q_bits",
    "q_group_size",
    "q_mode",
    "quant_predicate",
    "q_ffn_bits",
    "q_override",
    "q_skip",
)


def add_args(parser: argparse.ArgumentParser) -> None:
    """Flags as in mlx_lm.convert, and ``--q-ffn-bits``, ``--q-override``, ``--q-skip``.

    They are explained in the order in which they speak; the last word wins.
    """
    title = "quantization (a later flag outranks an earlier one)"
    add = parser.add_argument_group(title).add_argument
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
    add(
        "--quant-predicate",
        metavar="RECIPE",
        help="mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6: bits of most weights, and "
        "of those that matter more",
    )
    add("--q-ffn-bits", type=int, metavar="BITS", help="of the feed-forwards alone")
    add(
        "--q-override",
        nargs="+",
        action="extend",
        metavar="PATTERN=FORMAT",
        help="modules that get another format: their path with * for any text, or "
        "attention, ffn, experts, embeddings or head; the format is BITS, BITS:SIZE, "
        "MODE or float; the last that matches wins",
    )
    add(
        "--q-skip",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        help="modules that stay float, whatever else is said",
    )


def check(args: argparse.Namespace) -> None:
    """Refuse flags that say how to pack where nothing is to be packed.

    Raises:
        ValueError: names the flag.
    """
    for name in () if args.quantize else _HOW:
        if getattr(args, name) is not None:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} has no effect without -q; add -q")


def arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What ``conversion.convert`` is called with."""
    from ..conversion.recipes import split_overrides

    return {
        "quantize": args.quantize,
        "q_group_size": args.q_group_size,
        "q_bits": args.q_bits,
        "q_mode": args.q_mode or "affine",
        "quant_predicate": args.quant_predicate,
        "q_ffn_bits": args.q_ffn_bits,
        "q_overrides": split_overrides(args.q_override or ()),
        "q_skip": args.q_skip or (),
    }


def print_report(report: "Report") -> None:
    """What stayed float and why, and what each part of the model got, on stderr."""
    from ..tables import aligned

    by_reason = defaultdict(list)
    for module, reason in report.kept_float.items():
        by_reason[reason].append(module)
    for reason, modules in by_reason.items():
        print(
            f"not packed: {len(modules)} layers such as {modules[0]}: {reason}",
            file=sys.stderr,
        )
    total = sum(group.nbytes for group in report.groups)
    table = [("part", "format", "modules", "MB", "share")]
    for part, own, count, _, nbytes in report.groups:
        share = f"{nbytes / total:.1%}"
        table.append((part, own, str(count), f"{nbytes / 1e6:.1f}", share))
    print(*aligned(table, right={2, 3, 4}), sep="\n", file=sys.stderr)
    print(f"{report.bits_per_weight:.3f} bits per weight", file=sys.stderr)
