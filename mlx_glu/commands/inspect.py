"""``mlx-glu inspect``: what a checkpoint is."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..inspection import Inspection

HELP = "say what a checkpoint is, without reading its weights"
DESCRIPTION = """\
Print what a checkpoint is: architecture and sizes, the feed-forward's unit,
which parts have which format and what they weigh, the memory it takes on this
machine and what would run its feed-forwards. Only headers and config.json are
read, so that a folder of 100 GB takes no longer than one of 100 MB.

  mlx-glu inspect                       the default model
  mlx-glu inspect FOLDER
  mlx-glu inspect model.gguf --tensors
  mlx-glu inspect FOLDER --json | jq .parameters
  mlx-glu inspect FOLDER --verify       are the files those that were written?

What cannot be loaded is shown as far as it can be read, and then what is wrong
with it. Exit code 0: it can be loaded here; 1: it cannot, or --verify found
another file; 2: there is nothing to show.
"""

#: Lines of the table of names, which is for checkpoints that cannot be loaded.
_MOST_NAMES = 40
_MOST_FAULTS = 5


def add_args(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint, and how much of it."""
    add = parser.add_argument
    add(
        "path",
        nargs="?",
        metavar="PATH",
        help="folder, .gguf file, or Hub id, which is fetched",
    )
    add("--json", action="store_true", help="one JSON object; all sizes in bytes")
    add("--tensors", action="store_true", help="list every tensor as stored")
    add(
        "--verify",
        action="store_true",
        help="read all files and compare them with the hashes in provenance.json",
    )


def run(args: argparse.Namespace) -> None:
    """Print it; exit with 1 if something is wrong with it."""
    from ..hub import named
    from ..inspection import inspect

    found = inspect(named(args.path), verify=args.verify)
    if args.json:
        print(json.dumps(found.as_dict(tensors=args.tensors), indent=2))
    else:
        for line in _lines(found, args):
            print(line if line.isprintable() else ascii(line)[1:-1])
    if found.faults:
        sys.exit(1)


def _lines(found: Inspection, args: argparse.Namespace) -> Iterator[str]:
    from ..fusion import Explanation
    from ..tables import aligned

    yield from aligned([row for row in _facts(found) if row[1]])
    if found.groups:
        yield ""
        yield from aligned(_table(found), right=range(2, 7))
    if found.runs:
        yield ""
        yield from str(Explanation(found.runs)).splitlines()
    if args.tensors or (found.faults and found.stored.tensors):
        yield ""
        yield from _names(found) if not args.tensors else _tensors(found)
    said = [f"note: {note}" for note in found.notes]
    said += [f"broken: {fault}" for fault in found.faults[:_MOST_FAULTS]]
    more = len(found.faults) - _MOST_FAULTS
    said += [f"broken: and {more} more of this kind; --json has them all"] * (more > 0)
    if found.verified:
        said.append("verified: every file is the one that was written")
    if said:
        yield ""
    yield from ("; ".join(line.splitlines()) for line in said)


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    about, stored = found.about, found.stored
    size = sum(stored.files.values())
    shards = f"{len(stored.files)} file" + "s" * (len(stored.files) != 1)
    generation = about["config_generation"]
    written = f"; config of transformers {generation}" if generation else ""
    yield "path", str(found.path)
    yield "format", f"{stored.format or 'none'}, {shards}, {_bytes(size)}{written}"
    inside = about["inside"] and f", the text part of {about['inside']}"
    yield "model type", f"{about['model_type'] or '?'}{inside or ''}"
    yield "sizes", _joined(about, _SIZES)
    yield "context", _context(about)
    yield "rotation", "; ".join(map(_rotation, about["rope"]))
    yield "feed-forward", _feed_forward(found)
    yield "experts", _joined(about, _EXPERTS)
    tied = about["tie_word_embeddings"]
    yield (
        "head",
        "" if tied is None else "tied to the embeddings" if tied else "its own",
    )
    yield "parameters", _parameters(found)
    dtypes = Counter(tensor.dtype for tensor in stored.tensors.values())
    yield "tensors", ", ".join(f"{n} {dtype}" for dtype, n in dtypes.most_common())
    if found.memory is not None:
        yield "memory here", f"{_bytes(found.memory)}, {found.held}"
    if found.record:
        yield from _made(found.record)


_SIZES = {
    "layers": "num_hidden_layers",
    "hidden size": "hidden_size",
    "heads": "num_attention_heads",
    "key-value heads": "num_key_value_heads",
    "head size": "head_dim",
    "vocabulary": "vocab_size",
}
_EXPERTS = {
    "in a layer": "num_experts",
    "for each token": "num_experts_per_tok",
    "N": "moe_intermediate_size",
}


def _joined(about: dict[str, Any], words: dict[str, str]) -> str:
    return ", ".join(
        f"{word} {about[key]}" for word, key in words.items() if about[key]
    )


def _context(about: dict[str, Any]) -> str:
    longest, window = about["max_position_embeddings"], about["sliding_window"]
    said = [f"{longest} tokens"] if longest else []
    kinds = about["layer_types"] or {}
    if len(kinds) > 1 or window:
        said += [f"{n} x {kind.replace('_', ' ')}" for kind, n in kinds.items()]
        said += [f"window {window}"] if window else []
    return ", ".join(said)


def _rotation(rope: dict[str, Any]) -> str:
    layers = f"{rope['layers'].replace('_', ' ')}: " if rope["layers"] else ""
    return f"{layers}{rope['rope_type']}, theta {rope['theta']:,.15g}"


def _feed_forward(found: Inspection) -> str:
    from ..description import formula

    said = [f"{v}, {formula(v)}" for v in found.about["variants"]]
    size = found.about["intermediate_size"]
    said += [f"N {size}"] if size else []
    said += [f"gate and up {found.gate_up}"] if found.gate_up else []
    return "; ".join(said)


def _parameters(found: Inspection) -> str:
    total, active = found.parameters, found.active_parameters
    part = f", {active:,} for each token" if active not in (None, total) else ""
    return f"{total:,}{part}" if total else ""


def _made(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Source, revision and date; settings. Nothing in a record need be right."""
    source, versions = record.get("source"), record.get("versions")
    source = source if isinstance(source, dict) else {}
    versions = versions if isinstance(versions, dict) else {}
    revision = f" at {source['revision']}" if "revision" in source else ""
    yield (
        "made from",
        f"{source.get('name')}{revision}, {record.get('date')}, by mlx_glu "
        f"{versions.get('mlx_glu')}",
    )
    settings = record.get("settings")
    if isinstance(settings, dict):
        asked = {k: v for k, v in settings.items() if v not in (None, False, {}, [])}
        yield "with", ", ".join(f"{k} {v}" for k, v in asked.items())


def _table(found: Inspection) -> list[list[str]]:
    total = sum(g.nbytes for g in found.groups) + found.left_out
    rows = [["part", "format", "modules", "parameters", "bytes", "share", "bits each"]]
    for g in found.groups:
        bits = f"{8 * g.nbytes / g.parameters:.2f}" if g.parameters else "-"
        share = f"{g.nbytes / (total or 1):.1%}"
        sizes = [f"{g.modules:,}", f"{g.parameters:,}", _bytes(g.nbytes), share, bits]
        rows.append([g.part, g.format, *sizes])
    if found.left_out:
        share = f"{found.left_out / total:.1%}"
        rows.append(["left out", "", "", "", _bytes(found.left_out), share, ""])
    return rows


def _names(found: Inspection) -> list[str]:
    """Names with a star for each number, the largest first."""
    from ..tables import aligned

    groups: dict[tuple[str, str, str], list[int]] = {}
    for name, tensor in found.stored.tensors.items():
        key = re.sub(r"(?<=\.)\d+(?=\.)", "*", name), tensor.dtype, str([*tensor.shape])
        groups.setdefault(key, []).append(tensor.nbytes)
    largest = sorted(groups.items(), key=lambda item: -sum(item[1]))
    rows = [["tensors", "dtype", "shape", "number", "bytes"]]
    for key, sizes in largest[:_MOST_NAMES]:
        rows.append([*key, f"{len(sizes):,}", _bytes(sum(sizes))])
    more = len(largest) - _MOST_NAMES
    lines = aligned(rows, right=(3, 4))
    return lines + [f"... and {more} more; --tensors lists all"] * (more > 0)


def _tensors(found: Inspection) -> list[str]:
    from ..tables import aligned

    rows = [["tensor", "dtype", "shape", "bytes", "file"]]
    for name, (dtype, shape, nbytes, file) in found.stored.tensors.items():
        rows.append([name, dtype, str([*shape]), f"{nbytes:,}", file])
    return aligned(rows, right=(3,))


def _bytes(n: int) -> str:
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if n >= 10**power:
            return f"{n / 10**power:.2f} {unit}"
    return f"{n} B"
