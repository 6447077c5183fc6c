"""``mlx-glu perplexity``: how well a model predicts a text."""

import argparse
import json
import sys

from . import text_flags

HELP = "measure how well a model predicts a text"
DESCRIPTION = f"""\
Print the perplexity of a model on a text, with its standard error.

  mlx-glu perplexity --text FILE                     of the default model
  mlx-glu perplexity --model FOLDER --text FILE --sequence-length 2048
  mlx-glu perplexity --model model.gguf --text FILE --num-samples -1 --json
  head -c 20000 FILE | mlx-glu perplexity --text -

{text_flags.METHOD}
Perplexities of one text, cut alike, can be compared, of models with one
vocabulary; mlx-glu compare does, with a smaller error.
"""


def add_args(parser: argparse.ArgumentParser) -> None:
    """Which model, and the text."""
    parser.add_argument("--model", metavar="PATH", help="as in mlx-glu generate")
    text_flags.add_args(parser)


def run(args: argparse.Namespace) -> None:
    """Print one line, or one JSON object."""
    text_flags.check(args)
    from ..evaluation.measures import Perplexity
    from ..evaluation.scores import score
    from ..evaluation.subject import Subject
    from ..hub import named

    subject = Subject.open(named(args.model))
    ids = subject.tokenizer.encode(text_flags.read(args))
    windows = text_flags.windows_of(args, ids)
    model = subject.load()
    print(f"{subject.name}: {model.representation}", file=sys.stderr)
    with text_flags.progress_bar(windows, "perplexity") as bar:
        scores = score(
            [model], windows, batch_size=args.batch_size, progress=bar.update
        )
    found = Perplexity.of(scores.losses[0], scores.seconds[0])
    if args.json:
        facts = text_flags.facts(args, len(windows)) | subject.facts()
        print(json.dumps(facts | found.as_row()))
        return
    print(
        f"perplexity {found.value:.3f} ± {found.error:.3f}, {found.tokens} tokens, "
        f"windows of {args.sequence_length}, {found.tps:.0f} tokens/s"
    )
