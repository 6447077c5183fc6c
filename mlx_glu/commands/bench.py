"""``mlx-glu bench``: is it right, and is it faster, on this machine?"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from .bench_flags import DESCRIPTION, HELP, add_args, check, command_of

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..bench.arms import Setup
    from ..bench.counts import Simulated
    from ..bench.machine import Machine
    from ..bench.rows import Row
    from ..paired import Run, Timer

__all__ = ["DESCRIPTION", "HELP", "add_args", "run"]


def run(args: argparse.Namespace) -> None:
    """Check everything that was asked for, measure, print, say what is wrong."""
    check(args)
    from ..bench import plan, rows
    from ..bench.machine import this_machine

    setups = [] if args.model else _setups(args)
    notes = list(plan.notes(setups, args.rows))
    if args.model:
        source = _model(args, notes)
    machine = this_machine()
    if not args.model:
        source = _layers(args, setups, machine)
    facts = {**machine._asdict(), "cmd": command_of(args)}
    _introduce(machine, notes, sys.stderr if args.json else sys.stdout)
    done: list[Row] = []
    for own in source:
        done += own
        if args.json:
            print(*(rows.as_json(row, facts) for row in own), sep="\n", flush=True)
        else:
            print(f"\n{rows.as_text(own)}", flush=True)
    simulated = None
    if setups and not args.no_simulate:
        simulated = _simulate(args, setups, facts)
    failures = list(_failures(done, args.max_variation))
    _write(args, done, machine, notes, failures, simulated)
    for failure in failures:
        print(f"mlx-glu: bench: {failure}", file=sys.stderr)
    if failures:
        sys.exit(1)


def _setups(args: argparse.Namespace) -> "list[Setup]":
    from ..bench import plan

    return plan.setups(
        args.shape,
        modes=args.q_mode,
        bits=args.q_bits,
        group_sizes=args.q_group_size,
        dense=args.dense,
        dtypes=args.dtype,
    )


def _introduce(machine: "Machine", notes: Sequence[str], file: TextIO) -> None:
    copied = f"a copy moves {machine.copy_gbps:.3g} GB/s"
    print(f"{machine.chip}, {machine.os}, MLX {machine.mlx}; {copied}", file=file)
    for note in notes:
        print(f"note: {note}", file=file)


def _layers(
    args: argparse.Namespace, setups: "Sequence[Setup]", machine: "Machine"
) -> "Iterator[list[Row]]":
    """The rows of each setup, as they are done."""
    from ..bench import arms, layer, plan
    from ..bench.machine import runs_kernels

    Ms = args.rows or plan.rows_of_x()
    effort = layer.Effort(args.num_trials or 12, max_variation=args.max_variation)
    each = sum(not arm.fused or runs_kernels() for arm in arms.ARMS.values())
    for setup in setups:
        total = 2 * each * effort.blocks * len(Ms)
        with _bar(total, str(setup.shape.name)) as bar:
            timer = _timer(bar, args.delay)
            found = layer.measure(setup, Ms, effort, machine.copy_gbps, timer=timer)
            own = [row for some in found for row in some]
        yield own


def _model(args: argparse.Namespace, notes: list[str]) -> "Iterator[list[Row]]":
    """Load, then the rows."""
    from ..bench import machine, model

    gpu = machine.on_gpu()
    effort = model.Effort(
        args.prompt_tokens or (512 if gpu else 64),
        args.generation_tokens or (128 if gpu else 16),
        args.prefill_step_size or (2048 if gpu else 256),
        args.num_trials or 5,
        args.max_variation,
    )
    engine = model.load(args.model, args.engine or "mlx-glu")
    notes += engine.notes

    def measured() -> "Iterator[list[Row]]":
        arms = len(model.ARMS) if machine.runs_kernels() else 1
        with _bar(4 * arms * effort.trials, engine.name) as bar:
            own = model.measure(engine, effort, timer=_timer(bar, args.delay))
        yield own

    return measured()


def _bar(total: int, name: str) -> "tqdm[NoReturn]":
    from tqdm import tqdm

    return tqdm(
        total=total, desc=name, unit="run", file=sys.stderr, disable=None, leave=False
    )


def _timer(bar: "tqdm[NoReturn]", delay: float) -> "Timer":
    """The wall clock, with a rest before each run and a bar that moves after it."""
    from .. import paired

    def timer(arm: str, run: "Run") -> float:
        time.sleep(delay)
        seconds = paired.wall_clock(arm, run)
        bar.update()
        return seconds

    return timer


def _simulate(
    args: argparse.Namespace, setups: "Sequence[Setup]", facts: dict[str, object]
) -> "Simulated | None":
    """Count and print, where there is no GPU to time."""
    from .. import jit
    from ..bench import counts, rows

    if jit.backend() == "metal":
        return None
    found = counts.simulate(setups)
    if isinstance(found, str):
        print(f"note: {found}", file=sys.stderr if args.json else sys.stdout)
        return None
    if args.json:
        for row in found.as_rows():
            print(json.dumps({**facts, **row}))
    else:
        print("", found.title, *rows.aligned(found.table()), sep="\n")
    return found


def _failures(rows: "Sequence[Row]", max_variation: float) -> Iterator[str]:
    """Why the command fails."""
    from ..bench.rows import NOISY, WRONG

    wrong = sum(row.verdict == WRONG for row in rows)
    if wrong:
        yield (
            f"{wrong} results are WRONG and have no speed-up; please report the lines "
            "above and what `mlx-glu verify` says"
        )
    noisy = sum(row.verdict == NOISY for row in rows)
    timed = sum(row.us_p50 is not None for row in rows)
    if noisy:
        yield (
            f"{noisy} of {timed} timed rows varied by more than {max_variation:.0%}: "
            "no verdict on them; end other programs, plug in the power, let the "
            "machine cool (--delay 0.5), or allow more "
            "(--max-variation)"
        )


def _write(
    args: argparse.Namespace,
    rows: "Sequence[Row]",
    machine: "Machine",
    notes: Sequence[str],
    failures: Sequence[str],
    simulated: "Simulated | None",
) -> None:
    """The files that were asked for."""
    from ..bench import charts, png, report

    command = command_of(args)
    if args.report:
        page = report.html(rows, machine, command, notes, failures, simulated)
        report.write(Path(args.report), page.encode())
    if args.plot:
        foot = f"{machine.chip}, {machine.os}, MLX {machine.mlx}, {machine.date}"
        drawn = list(charts.charts(rows))
        if drawn:
            report.write(Path(args.plot), png.draw(drawn, foot))
        else:
            print("note: nothing was timed, so there is no plot", file=sys.stderr)
