"""``mlx-glu compare --sweep``: quality against size over settings."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import text_flags

if TYPE_CHECKING:
    from ..evaluation.measures import Comparison, Perplexity
    from ..evaluation.scores import Scores
    from ..evaluation.subject import Subject
    from ..evaluation.sweep import Setting
    from ..models.llama import Model

#: Columns after the first, and their widths.
_HEAD = {
    "bits/weight": 11,
    "MB": 8,
    "perplexity": 15,
    "difference": 18,
    "KL, nats": 18,
    "same top": 13,
}
_SOURCE = "as it is"


def run(args: argparse.Namespace, subject: "Subject") -> None:
    """Measure and print setting by setting, then plot."""
    from ..evaluation.measures import Comparison, Perplexity
    from ..evaluation.scores import score
    from ..evaluation.subject import check_memory
    from ..evaluation.sweep import default_settings, plan_settings

    weights = subject.weights
    settings = plan_settings(weights, args.settings or default_settings(weights))
    windows = text_flags.windows_of(
        args, subject.tokenizer.encode(text_flags.read(args))
    )
    largest = max(settings, key=lambda setting: setting.plan.nbytes)
    sizes = {subject.name: subject.read_nbytes, largest.name: largest.plan.nbytes}
    check_memory(sizes)
    source = subject.load()
    _introduce(subject, source.representation, settings)
    facts = text_flags.facts(args, len(windows)) | {"model": subject.name}
    say = _table([s.name for s in settings], facts if args.json else None)

    def scored(name: str, *models: "Model") -> "Scores":
        with text_flags.progress_bar(windows, name) as bar:
            return score(
                models, windows, batch_size=args.batch_size, progress=bar.update
            )

    alone = scored(_SOURCE, source)
    level = Perplexity.of(alone.losses[0], alone.seconds[0])
    say(_SOURCE, subject.bits_per_weight, subject.nbytes, level)
    found = []
    for setting in settings:
        own = Comparison.of(scored(setting.name, source, setting.load()))
        say(setting.name, setting.plan.bits_per_weight, setting.plan.nbytes, own)
        found.append(own)
    if args.plot:
        _plot(args, subject, settings, found, level)


def _introduce(
    subject: "Subject", representation: str, settings: Sequence["Setting"]
) -> None:
    """What a reader of the numbers must know, on stderr."""
    print(f"{subject.name}: {representation}", file=sys.stderr)
    for note in dict.fromkeys(subject.weights.notes):
        print(f"note: {note}", file=sys.stderr)
    kept: dict[str, list[str]] = {}
    for setting in settings:
        for module, reason in list(setting.plan.kept_float.items())[:1]:
            count = len(setting.plan.kept_float)
            said = f"{count} layers such as {module} stay float: {reason}"
            kept.setdefault(said, []).append(setting.name)
    for said, names in kept.items():
        print(f"note: {', '.join(names)}: {said}", file=sys.stderr)


def _table(
    names: Sequence[str], facts: dict[str, object] | None
) -> "Callable[[str, float, int, Perplexity | Comparison], None]":
    """What prints a line before the next one is known; JSON where there are facts."""
    width = max(len(name) for name in (_SOURCE, *names))

    def line(name: str, cells: Iterable[str]) -> None:
        padded = (c.rjust(w) for c, w in zip(cells, _HEAD.values(), strict=False))
        print("  ".join([name.ljust(width), *padded]), flush=True)

    def say(
        name: str, bits: float, nbytes: int, found: "Perplexity | Comparison"
    ) -> None:
        if facts is None:
            line(name, [f"{bits:.3f}", f"{nbytes / 1e6:.1f}", *_cells(found)])
            return
        size = {"setting": name, "bits_per_weight": bits, "nbytes": nbytes}
        print(json.dumps({**facts, **size, **found.as_row()}), flush=True)

    if facts is None:
        line("setting", _HEAD)
    return say


def _cells(found: "Perplexity | Comparison") -> list[str]:
    from ..evaluation.measures import Perplexity

    if isinstance(found, Perplexity):
        return [text_flags.perplexity(found)]
    return [
        text_flags.perplexity(found.b),
        f"{found.difference.value:+.3g} ± {found.difference.error:.2g}",
        f"{found.kl.value:.3g} ± {found.kl.error:.2g}",
        f"{found.same_top.value:.1%} ± {found.same_top.error:.1%}",
    ]


def _plot(
    args: argparse.Namespace,
    subject: "Subject",
    settings: Sequence["Setting"],
    found: Sequence["Comparison"],
    level: "Perplexity",
) -> None:
    from ..bench import report
    from ..evaluation.plot import Point, draw

    points = [
        Point(
            setting.name,
            setting.kind,
            setting.plan.bits_per_weight,
            (own.b.value, own.difference.error),
            (own.kl.value, own.kl.error),
        )
        for setting, own in zip(settings, found, strict=True)
    ]
    path, text = Path(args.plot), Path(args.text or "sample").name
    title = f"{Path(subject.name).name}, {level.tokens} tokens of {text}"
    image = draw(
        points,
        level.value,
        title,
        subject.weights.parameter_count,
        path.suffix.removeprefix("."),
    )
    report.write(path, image)
    print(f"wrote {path}", file=sys.stderr)
