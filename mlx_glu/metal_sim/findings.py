"""Turns what the runtime noted into findings a reader can act on."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from .bindings import SENTENCES, Launch, Note, Region
from .locate import locate
from .report import Finding

_RAN_OUT = 99  # exit status of a child that got no memory
_NO_THREAD = (1 << 32) - 1
_ENDS = ("crash", "timeout", "stack-overflow")


def explain(
    launch: Launch, regions: Sequence[Region], notes: Sequence[Note], library: Path
) -> tuple[Finding, ...]:
    """List the findings of a run.

    Args:
        launch: the run, ended.
        regions: its buffers.
        notes: what the child noted.
        library: the kernel's, for places in the source.
    """
    low, high = launch.code_low, launch.code_high
    addresses = {note.pc for note in notes} | {note.other_pc for note in notes}
    inside = [pc for pc in addresses if low <= pc < high]
    # Most are return addresses: the byte before lies in the call.
    exact = {note.pc for note in notes if SENTENCES[note.code][0] in _ENDS}
    lines = locate(library, [pc - (pc not in exact) - low for pc in inside])
    places = dict(zip(inside, lines, strict=True))
    found = [_finding(note, launch, regions, places) for note in notes]
    # Where a threadgroup was given up, the rest of its output means nothing.
    if launch.strict >= 2 and launch.finished and not launch.abandoned:
        found += [_unwritten(r) for r in regions if r.unwritten and not r.initialised]
    if not launch.finished and not _is_explained(found):
        found.append(_end_of_child(launch))
    return tuple(found)


def _finding(
    note: Note, launch: Launch, regions: Sequence[Region], places: dict[int, str]
) -> Finding:
    kind, sentence = SENTENCES[note.code]
    a, b, c = note.number
    other = places.get(note.other_pc)
    text = note.text.decode(errors="replace")
    message = sentence.format(
        a=a,
        b=b,
        c=c,
        name=note.name.decode(errors="replace"),
        text=text,
        other=f", at {other}" if other else "",
        access="write" if note.is_write else "read",
        owner=f", at byte {b} of '{text}'" if text else "",
        seconds=launch.seconds_allowed,
        **_crash_words(a, b, regions),
    )
    if note.thread != _NO_THREAD:
        message += f" (thread {note.thread} of threadgroup {note.group})"
    return Finding(kind, message, places.get(note.pc, ""), note.count)


def _crash_words(
    number: int, address: int, regions: Sequence[Region]
) -> dict[str, str]:
    address %= 1 << 64
    return {
        "signal": _signal_name(number),
        "address": hex(address),
        "near": _near(address, regions),
    }


def _near(address: int, regions: Sequence[Region]) -> str:
    """Name the buffer that an address is close to."""
    for region in regions:
        gap = max(region.size, 1 << 20)
        offset = address - region.base
        if -gap <= offset < region.size + gap:
            return f", byte {offset} of '{region.name.decode()}' of {region.size} bytes"
    return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _unwritten(region: Region) -> Finding:
    return Finding(
        "unwritten",
        f"nothing wrote {region.unwritten} of {region.size // region.element} elements "
        f"of '{region.name.decode()}', the first of them {region.first_unwritten}",
    )


def _is_explained(found: Sequence[Finding]) -> bool:
    return any(finding.kind in _ENDS for finding in found)


def _end_of_child(launch: Launch) -> Finding:
    if launch.fork_error:
        reason = os.strerror(launch.fork_error)
        return Finding("crash", f"no child process could be made: {reason}")
    if launch.timed_out:
        return Finding(
            "timeout", f"the kernel did not end in {launch.seconds_allowed:g} s"
        )
    killed, status = launch.status & 127, launch.status >> 8
    if killed:
        return Finding(
            "crash", f"the child process was ended by {_signal_name(killed)}"
        )
    reason = "got no memory" if status == _RAN_OUT else f"left with status {status}"
    return Finding("crash", f"the child process {reason}")
