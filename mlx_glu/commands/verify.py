"""``mlx-glu verify``: every kernel against float64, on this machine."""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..proof.cases import Case
    from ..proof.run import Result

HELP = "check the Metal kernels on this machine"
DESCRIPTION = """\
Run every Metal kernel of this package against float64 arithmetic and say how
far off it is. On a Mac the kernels run on the GPU. Elsewhere they run in a
simulator, which also checks each access to memory and counts the bytes moved;
it needs Linux and pip install ziglang==0.17.1 pyelftools.

  mlx-glu verify                   about a hundred cases, a minute or two
  mlx-glu verify --cases full      each variant, dtype and format; in the
                                   simulator half an hour
  mlx-glu verify --only down_qmv   cases with this in their id
  mlx-glu verify --only bfloat16 --json

The table has a row for each kernel. "worst error" is the largest error over
what is allowed, which is twice that of MLX's own operations or two roundings:
up to 1 is right. "traffic" is bytes moved over bytes there are: at 1, each
byte of weights, biases and results moved once.

The authors have no Mac. From one, please send back all that this prints,
whether cases failed or not, at least of the first two commands above.
The command exits with 1 if a case failed.
"""


def add_args(parser: argparse.ArgumentParser) -> None:
    """Which cases, and how to print them."""
    add = parser.add_argument
    add(
        "--cases",
        choices=("quick", "full", "exhaustive"),
        default="quick",
        help="how many (default: quick); exhaustive is about a million, days",
    )
    add("--only", metavar="TEXT", help="run the cases that have TEXT in their id")
    add(
        "--json",
        action="store_true",
        help="print a JSON object for each case, one a line, instead of the table",
    )


def run(args: argparse.Namespace) -> None:
    """Run the cases, print what came of them, exit with 1 if one failed."""
    from ..proof import plans
    from ..proof.run import where_it_runs

    cases: Iterable[Case] = getattr(plans, args.cases)()
    if args.only is not None:
        cases = _having(cases, args.only)
    place = where_it_runs()
    results: list[Result] = []
    try:
        print(place, file=sys.stderr if args.json else sys.stdout, flush=True)
        for result in _results(cases):
            results.append(result)
            if args.json:
                print(_as_json(result, place), flush=True)
    finally:
        # On Ctrl-C too: what was done so far.
        if not args.json:
            _print(results)
    if any(result.faults for result in results):
        sys.exit(1)


def _having(cases: "Iterable[Case]", text: str) -> "Iterable[Case]":
    found = iter(case for case in cases if text in case.id)
    first = next(found, None)
    if first is None:
        example = "glu_qmv-swiglu-float16-1x31x64-a4g64-mxfp4"
        raise ValueError(f"--only {text!r} is in no id; an id looks like {example}")
    return [first, *found]


def _results(cases: "Iterable[Case]") -> "Iterator[Result]":
    from tqdm import tqdm

    from ..proof.run import run

    failed = 0
    with tqdm(cases, unit="case", file=sys.stderr, disable=None) as bar:
        for case in bar:
            state = f"{failed} failed, {case.id[:40]}" if failed else case.id[:40]
            bar.set_postfix_str(state, refresh=False)
            result = run(case)
            failed += bool(result.faults)
            yield result


def _print(results: "list[Result]") -> None:
    from ..tables import aligned

    by_kernel: dict[str, list[Result]] = {}
    for result in results:
        by_kernel.setdefault(result.case.kernel, []).append(result)
    rows = [("kernel", "cases", "failed", "worst error", "traffic", "seconds")]
    for kernel, own in by_kernel.items():
        moved = [r.traffic for r in own if r.traffic is not None]
        rows.append(
            (
                kernel,
                str(len(own)),
                str(sum(bool(r.faults) for r in own)),
                f"{max(r.ratio for r in own):.3f}",
                f"{max(moved, key=lambda x: abs(x - 1)):.3f}" if moved else "-",
                f"{sum(r.seconds for r in own):.1f}",
            )
        )
    print(*aligned(rows, right=range(1, len(rows[0]))), sep="\n")
    wrong = [result for result in results if result.faults]
    for result in wrong:
        print(f"\nFAILED {result.case.id}")
        for fault in result.faults:
            print("  " + fault.replace("\n", "\n  "))
    if wrong:
        print(
            "\nPlease report all of this with what the failed cases print alone:\n"
            f"  mlx-glu verify --json --only {wrong[0].case.id}"
        )


def _as_json(result: "Result", place: str) -> str:
    ratio = result.ratio if math.isfinite(result.ratio) else None
    fields = {
        "case": result.case.id,
        "kernel": result.case.kernel,
        "passed": not result.faults,
        "worst_error": ratio,
        "worst_at": result.where,
        "traffic": result.traffic,
        "seconds": round(result.seconds, 3),
        "faults": result.faults,
        "ran_on": place,
    }
    return json.dumps(fields)
