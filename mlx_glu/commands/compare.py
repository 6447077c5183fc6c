"""``mlx-glu compare``: what a quantization costs, before it is kept."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import sweeping, text_flags

if TYPE_CHECKING:
    from ..evaluation.subject import Subject

HELP = "say what a quantization costs"
DESCRIPTION = f"""\
Compare what two models of one vocabulary predict, or one model with itself in
many formats.

  mlx-glu compare FOLDER FOLDER-4bit
  mlx-glu compare ORG/MODEL model.gguf --text FILE --json
  mlx-glu compare FOLDER --sweep                      about thirteen settings
  mlx-glu compare FOLDER --sweep --settings 4:64 4:32 mixed_4_6 mxfp4
  mlx-glu compare FOLDER --sweep --settings 4:64,ffn=3 4:64,lm_head=float
  mlx-glu compare FOLDER --sweep --text FILE --plot sweep.png

perplexity  of both; their difference has an error paired token by token
KL          nats by which B's distribution differs from A's; 0 if they are equal
same top    how often both find the same token likeliest

With --sweep the model is packed in memory, with the bits that convert would
write, setting by setting, and compared with itself as it is; no folder is made.
A setting is BITS:GROUP_SIZE, MODE or a recipe, as convert's flags
--q-bits, --q-group-size, --q-mode and --quant-predicate; after commas stand
PATTERN=FORMAT as in --q-override, of which ffn=3 is --q-ffn-bits 3.

{text_flags.METHOD}"""


def add_args(parser: argparse.ArgumentParser) -> None:
    """Which models, and the text."""
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="MODEL",
        help="two folders, .gguf files or Hub ids; with --sweep one (default: the "
        "default model)",
    )
    add("--sweep", action="store_true", help="compare settings for one model")
    add(
        "--settings",
        nargs="+",
        metavar="SETTING",
        help="of --sweep (default: affine 8, 6, 5, 4, 3, 2 bits, all recipes, mxfp8, "
        "nvfp4, mxfp4)",
    )
    add(
        "--plot",
        metavar="FILE",
        help="of --sweep: quality against size as .png or .svg; needs matplotlib",
    )
    text_flags.add_args(parser)


def run(args: argparse.Namespace) -> None:
    """Compare two models, or sweep over one."""
    text_flags.check(args)
    _check(args)
    from ..evaluation.subject import Subject
    from ..hub import named

    if args.sweep:
        sweeping.run(args, Subject.open(named(*(args.models or [None]))))
    else:
        _compare(args, *map(Subject.open, args.models))


def _check(args: argparse.Namespace) -> None:
    if args.sweep and len(args.models) > 1:
        raise ValueError(f"--sweep is of one model; {len(args.models)} were given")
    if not args.sweep and len(args.models) != 2:
        raise ValueError(
            f"two models can be compared, {len(args.models)} were given; "
            "give --sweep to compare one with itself in many formats"
        )
    for name in () if args.sweep else ("settings", "plot"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} has no effect without --sweep; add it")
    if args.plot is not None:
        if Path(args.plot).suffix not in (".png", ".svg"):
            raise ValueError(f"--plot {args.plot} must end in .png or .svg")
        from ..bench import png, report

        png.check()
        report.check_path("--plot", Path(args.plot))


def _compare(args: argparse.Namespace, a: "Subject", b: "Subject") -> None:
    from ..evaluation.measures import Comparison
    from ..evaluation.scores import score
    from ..evaluation.subject import check_memory, check_vocabulary
    from ..tables import aligned

    ids = check_vocabulary(a, b, text_flags.read(args))
    windows = text_flags.windows_of(args, ids)
    check_memory({a.name: a.read_nbytes, b.name: b.read_nbytes})
    models = [a.load(), b.load()]
    for subject, model in zip((a, b), models, strict=True):
        print(f"{subject.name}: {model.representation}", file=sys.stderr)
        for note in subject.weights.notes:
            print(f"note: {note}", file=sys.stderr)
    with text_flags.progress_bar(windows, "compare") as bar:
        scores = score(models, windows, batch_size=args.batch_size, progress=bar.update)
    found = Comparison.of(scores)
    if args.json:
        facts = text_flags.facts(args, len(windows))
        print(json.dumps(facts | a.facts() | found.a.as_row()))
        print(json.dumps(facts | b.facts() | found.as_row()))
        return
    table = [["", "model", "bits per weight", "MB", "perplexity"]]
    for letter, own, result in (("A", a, found.a), ("B", b, found.b)):
        size = f"{own.bits_per_weight:.3f}", f"{own.nbytes / 1e6:.1f}"
        table.append([letter, own.name, *size, text_flags.perplexity(result)])
    print(*aligned(table, right={2, 3, 4}), sep="\n")
    lost = found.difference
    print(
        f"\nB against A, {found.b.tokens} tokens, windows of "
        f"{args.sequence_length}:\n"
        f"perplexity  {lost.value:+.4f} ± {lost.error:.4f}"
        f" ({lost.value / found.a.value:+.2%})\n"
        f"KL(A || B)  mean {found.kl.value:.3g} ± {found.kl.error:.1g}, median "
        f"{found.kl_median:.3g}, p99 {found.kl_p99:.3g}, max {found.kl_max:.3g} nats\n"
        f"same top    {found.same_top.value:.1%} ± {found.same_top.error:.1%} of tokens"
    )
