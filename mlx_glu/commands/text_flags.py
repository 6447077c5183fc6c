"""What ``perplexity`` and ``compare`` share: the text, and how it is read."""

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..evaluation.measures import Perplexity

#: For the ends of DESCRIPTION.
METHOD = """\
The text is encoded in one go, with BOS in front if the model's tokenizer puts
one there, and cut into windows of --sequence-length tokens that do not overlap.
In each, every token but the first is predicted from those before it. Losses are
summed in float64. Standard errors take tokens for independent.
"""


def add_args(parser: argparse.ArgumentParser) -> None:
    """Flags as in mlx_lm.perplexity where it has them."""
    add = parser.add_argument
    add(
        "--text",
        metavar="FILE",
        help="UTF-8 text, - is stdin (default: 10 kB of Mary Shelley's Frankenstein, "
        "which shows what a setting costs, and ranks no models)",
    )
    add(
        "--sequence-length",
        type=int,
        default=512,
        metavar="N",
        help="tokens of a window (default: 512)",
    )
    add(
        "--num-samples",
        type=int,
        default=256,
        metavar="N",
        help="windows, -1 for all (default: the first 256)",
    )
    add("--seed", type=int, metavar="N", help="draw the windows instead, repeatably")
    add(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="windows at once (default: 8)",
    )
    add("--json", action="store_true", help="print JSON, an object a line")


def check(args: argparse.Namespace) -> None:
    """Everything that can be known to be wrong before anything is loaded."""
    if args.sequence_length < 2:
        raise ValueError("--sequence-length must be at least 2")
    if args.num_samples == 0 or args.num_samples < -1:
        raise ValueError("--num-samples must be at least 1, or -1 for all")
    if args.batch_size < 1:
        raise ValueError("--batch-size must be at least 1")
    if args.text == "":
        raise ValueError("--text is empty; give a file, or - for stdin")
    if args.seed is not None and args.seed < 0:
        raise ValueError("--seed must be at least 0")


def read(args: argparse.Namespace) -> str:
    """The text that was asked for."""
    from ..evaluation.windows import SAMPLE, read_text

    return read_text(SAMPLE if args.text is None else args.text)


def windows_of(args: argparse.Namespace, ids: list[int]) -> list[list[int]]:
    """The windows that were asked for; says on stderr what is left out."""
    from ..evaluation.windows import split

    windows = split(ids, args.sequence_length, args.num_samples, args.seed)
    every = -(-len(ids) // args.sequence_length)
    if len(windows) < every - 1:
        print(f"note: {len(windows)} of {every} windows", file=sys.stderr)
    return windows


def facts(args: argparse.Namespace, windows: int) -> dict[str, object]:
    """What a line of JSON says of the text."""
    return {
        "text": args.text or "sample",
        "sequence_length": args.sequence_length,
        "windows": windows,
    }


def progress_bar(windows: list[list[int]], name: str) -> "tqdm[NoReturn]":
    """A bar over the predictions, on stderr."""
    from tqdm import tqdm

    total = sum(len(window) - 1 for window in windows)
    return tqdm(
        total=total, desc=name, unit="tok", file=sys.stderr, disable=None, leave=False
    )


def perplexity(found: "Perplexity") -> str:
    """Value and error of a perplexity."""
    return f"{found.value:.4g} ± {found.error:.2g}"
