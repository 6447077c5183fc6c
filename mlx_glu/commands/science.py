"""``mlx-glu science``: the claims about gating, as experiments."""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

HELP = "run the experiments about gating"
DESCRIPTION = """\
Put a claim about gated units to the test. Results are JSON lines, a row as soon
as it is known: an interrupted run goes on where it was, and a finished one only
draws its figure anew. docs/science.md tells what came out.

  mlx-glu science list
  mlx-glu science run ntk            # seconds: does it run here?
  mlx-glu science run ntk --full     # the published numbers
  mlx-glu science run all --full --out results
"""


def add_args(parser: argparse.ArgumentParser) -> None:
    """The actions and their flags."""
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", required=True, help="what to do"
    )
    listing = actions.add_parser("list", help="what can be run, and what it asks")
    listing.set_defaults(run=_list)
    running = actions.add_parser("run", help="run some of it")
    running.set_defaults(run=_run)
    add = running.add_argument
    add("names", nargs="+", metavar="NAME", help="of the list; all for everything")
    effort = running.add_mutually_exclusive_group()
    effort.add_argument(
        "--quick",
        action="store_true",
        help="smallest sizes, which prove nothing (default)",
    )
    effort.add_argument("--full", action="store_true", help="the published settings")
    add(
        "--out",
        default="science",
        metavar="FOLDER",
        help="for NAME.jsonl, NAME.svg and NAME-dark.svg (default: science); those of "
        "--quick are called NAME-quick",
    )
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one a core; one on a GPU, and with --quick)",
    )
    add("--text", metavar="FILE", help="of the experiments that read one")
    add("--model", metavar="PATH", help="of the experiments that load one")


def run(args: argparse.Namespace) -> None:
    """Replaced by an action's."""


def _list(args: argparse.Namespace) -> None:
    from ..science.experiment import EXPERIMENTS
    from ..tables import aligned

    rows = [("name", "the claim", "--full, 2 cores")]
    rows += [(name, e.claim, e.cost) for name, e in EXPERIMENTS.items()]
    print(*aligned(rows), sep="\n")


def _run(args: argparse.Namespace) -> None:
    from ..bench import png
    from ..science.experiment import EXPERIMENTS, find

    names = list(EXPERIMENTS) if "all" in args.names else args.names
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers must be at least 1 but is {args.workers}")
    chosen = {}
    for name in dict.fromkeys(names):
        experiment = find(name).load()
        try:
            chosen[name] = _settings(args, name, experiment)
        except FileNotFoundError as error:
            if "all" not in args.names or args.model is not None:
                raise
            print(f"note: without {name}: {error}", file=sys.stderr)
    # Whatever can fail does so before hours are spent.
    png.check("science run")
    files = {name: _open(args, name, settings) for name, settings in chosen.items()}
    for name, settings in chosen.items():
        _run_one(args, name, settings, files[name])


def _settings(args: argparse.Namespace, name: str, experiment: Any) -> Any:
    """Those of the effort, with the files that were named."""
    settings = experiment.full if args.full else experiment.quick
    known = {field.name for field in fields(settings)}
    named = {"text": args.text, "model": args.model}
    given = {key: value for key, value in named.items() if value is not None}
    if "all" in args.names:
        given = {key: value for key, value in given.items() if key in known}
    for key in given.keys() - known:
        raise ValueError(f"--{key} does not go with {name}, which reads none")
    paths = {key: Path(value) for key, value in given.items()}
    if "text" in paths and not paths["text"].is_file():
        raise ValueError(f"--text {args.text} is no file; give one")
    return experiment.prepare(replace(settings, **paths))


def _open(args: argparse.Namespace, name: str, settings: Any) -> Any:
    """The file of rows, which can be written."""
    from ..bench.report import check_path
    from ..science.running import open_rows

    path = Path(args.out) / (f"{name}.jsonl" if args.full else f"{name}-quick.jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out {args.out} cannot be a folder: {error.strerror}; name another"
        ) from error
    check_path("--out", path)
    return open_rows(path, name, settings)


def _run_one(args: argparse.Namespace, name: str, settings: Any, file: Any) -> None:
    from tqdm import tqdm

    from ..science import figures
    from ..science.experiment import find
    from ..science.running import default_workers, run
    from ..tables import aligned

    workers = args.workers or (default_workers() if args.full else 1)
    with tqdm(desc=name, file=sys.stderr, disable=None, leave=False) as bar:
        for done, total in run(name, settings, file, workers=workers):
            bar.total, bar.n = total, done
            bar.refresh()
    entry = find(name)
    experiment = entry.load()
    print(f"{name}: {entry.claim}")
    table = experiment.summary(file.rows)
    print(*aligned(table, right=range(1, len(table[0]))), sep="\n")
    if not args.full:
        print("--quick shows that it runs; only --full answers", file=sys.stderr)
    stem = file.path.with_suffix("")
    for path in [file.path, *figures.save(experiment, file.rows, stem)]:
        print(f"wrote {path}", file=sys.stderr)
