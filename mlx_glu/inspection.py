"""What a checkpoint is, from its config and headers: no weight is read.

Of one that cannot be loaded, what can be read of it, and what is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from . import jit
from .checkpoints.checkpoint import locate, open_checkpoint, read_json
from .checkpoints.stored import Stored, Tensor, read_stored
from .config import ModelConfig
from .conversion import provenance
from .description import describe, gguf_settings
from .families import text_part
from .fusion import Row, explain
from .fusion.explanation import folded
from .grouping import Group, declared, group
from .hub import resolve
from .loading import pack, representation
from .weights import Weights, examine

Found = TypeVar("Found")


@dataclass
class Inspection:
    """What `inspect` found.

    Attributes:
        path: the folder or file.
        stored: its files and their tensors.
        about: architecture, sizes and so on, as `description.describe` has them.
        groups: what the modules of each part and format weigh.
        left_out: bytes of tensors that the model has no use for, such as a vision
            tower.
        runs: for each form of feed-forward, what runs it here, and why.
        memory: bytes of the weights once they are loaded here; None if they cannot be.
        held: how they are held then.
        notes: decisions a user should hear of.
        faults: why it cannot be loaded; none if it can.
        record: of the conversion that made it, or None.
        verified: whether all files are those that it wrote; None if nobody asked.
    """

    path: Path
    stored: Stored
    about: dict[str, Any] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    left_out: int = 0
    runs: list[Row] = field(default_factory=list)
    memory: int | None = None
    held: str = ""
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    record: dict[str, Any] | None = None
    verified: bool | None = None

    @property
    def parameters(self) -> int:
        """Of the unpacked model."""
        return sum(group.parameters for group in self.groups)

    @property
    def active_parameters(self) -> int | None:
        """Those that a token goes through; None where that is not known."""
        experts = sum(g.parameters for g in self.groups if g.part == "experts")
        count: int | None = self.about["num_experts"]
        chosen: int | None = self.about["num_experts_per_tok"]
        if not experts:
            return self.parameters
        if not count or not chosen:
            return None
        return self.parameters - experts * (count - chosen) // count

    @property
    def gate_up(self) -> str | None:
        """Whether gate and up are "packed" in one tensor or "separate", as stored."""
        for how, names in _GATE_UP.items():
            if any(name in tensor for tensor in self.stored.tensors for name in names):
                return how
        return None

    def as_dict(self, *, tensors: bool = False) -> dict[str, Any]:
        """All of it for JSON; the keys are always the same."""
        stored = self.stored
        return {
            "path": str(self.path),
            "format": stored.format or None,
            "files": [{"name": k, "bytes": n} for k, n in stored.files.items()],
            "architecture": self.about,
            "gate_up": self.gate_up,
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "dtypes": dict(Counter(t.dtype for t in stored.tensors.values())),
            "groups": [dict(zip(_GROUP, g, strict=True)) for g in self.groups],
            "left_out_bytes": self.left_out,
            "memory": {"bytes": self.memory, "form": self.held or None},
            "feed_forwards": [
                {
                    "modules": folded(row.paths),
                    "variant": row.unit or None,
                    "size": row.size,
                    "format": row.formats,
                    "runs": [dict(zip(_RUN, run, strict=True)) for run in row.runs],
                }
                for row in self.runs
            ],
            "notes": self.notes,
            "faults": self.faults,
            "provenance": self.record,
            "verified": self.verified,
            "tensors": [
                dict(zip(_TENSOR, (name, *tensor), strict=True))
                for name, tensor in stored.tensors.items()
            ]
            if tensors
            else None,
        }


_RUN = ("rows", "impl", "why")
_TENSOR = ("name", "dtype", "shape", "bytes", "file")
_GROUP = ("part", "format", "modules", "parameters", "bytes")
#: In the names of tensors.
_GATE_UP = {
    "packed": ("gate_up_proj",),
    "separate": ("gate_proj", "ffn_gate.", "ffn_gate_exps.", ".w3."),
}


def inspect(path: str | Path, *, verify: bool = False) -> Inspection:
    """Say what a checkpoint is.

    Args:
        path: a Hugging Face or MLX folder, a GGUF file, or a hub id.
        verify: read all files that a conversion wrote, and compare their hashes.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: neither its config nor the header of any file can be read.
    """
    path = locate(resolve(path))
    stored = read_stored(path)
    found = Inspection(path, stored)
    config, read = _config(found)
    found.faults += stored.faults
    if not config and not stored.tensors:
        raise ValueError(found.faults[0])
    weights = None
    if not found.faults:
        weights = _attempt(found, lambda: examine(open_checkpoint(path)))
    if weights is None:
        found.about = describe(config, read)
        found.groups = group(stored.tensors, declared(stored.tensors, config))
    else:
        _describe_model(found, config, weights)
        _plan(found, weights)
    _read_record(found, verify)
    return found


def _read_record(found: Inspection, verify: bool) -> None:
    """What a conversion wrote of itself; damaged, it stops nobody from loading."""
    path, differ = found.path, None
    try:
        found.record = provenance.read(path) if path.is_dir() else None
        if verify and found.record is None:
            raise ValueError(
                f"[provenance] {path} has no provenance.json to verify it by; "
                "mlx-glu convert writes one into each folder"
            )
        differ = provenance.verify(path) if verify else None
    except (ValueError, OSError) as error:
        (found.faults if verify else found.notes).append(str(error))
    found.faults += [f"[provenance] {line}" for line in differ or ()]
    found.verified = differ == [] if verify else None


def _attempt(found: Inspection, read: Callable[[], Found]) -> Found | None:
    """What ``read`` returns, or None and one more fault."""
    try:
        return read()
    except (ValueError, OSError) as error:
        found.faults.append(str(error))
        return None


def _config(found: Inspection) -> tuple[dict[str, Any], ModelConfig | None]:
    """config.json and its normal form; or what a GGUF file says of itself."""
    path, metadata = found.path, found.stored.metadata
    if path.is_file():
        return gguf_settings(metadata), None
    config = _attempt(found, lambda: read_json(path / "config.json"))
    if config is None:
        return {}, None
    try:
        return config, ModelConfig.from_dict(text_part(config))
    except ValueError as error:
        found.faults.append(f"{error} (in {path})")
        return config, None


def _describe_model(
    found: Inspection, config: dict[str, Any], weights: Weights
) -> None:
    used = {
        name: Tensor.of(info)
        for name, info in weights.checkpoint.tensors.items()
        if name in weights.shapes or name.rpartition(".")[0] in weights.quantization
    }
    if found.path.is_file():
        config = weights.checkpoint.config  # there is no config.json
    else:
        total = sum(tensor.nbytes for tensor in found.stored.tensors.values())
        found.left_out = max(0, total - sum(tensor.nbytes for tensor in used.values()))
    found.about = describe(config, weights.config)
    if found.path.is_file():
        found.about["config_generation"] = None
    found.groups = group(used, weights.quantization)
    found.notes = list(weights.notes)
    if found.path.is_file():
        found.notes.append("the table is of weights as they are read, not as packed")


def _plan(found: Inspection, weights: Weights) -> None:
    """Ask what would be held and what would run, with zeros that nobody computes."""
    form, model = representation(weights), weights.model
    if not form.unpack:
        pack(model, weights)
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for name, array in arrays.items():
        dtype = weights.checkpoint.tensors[name].dtype
        if form.dtype is not None and mx.issubdtype(array.dtype, mx.floating):
            dtype = form.dtype
        arrays[name] = mx.zeros(array.shape, dtype)
    model.update(tree_unflatten(list(arrays.items())))
    found.memory = sum(array.nbytes for array in arrays.values())
    found.held = form.why
    if jit.backend():
        model(mx.zeros((1, 1), mx.int32))  # shows which norms and residuals are fused
    found.runs = explain(model).rows
    for row in found.runs:
        row.calls = {}
    units = dict.fromkeys(row.unit for row in found.runs if row.unit)
    found.about["variants"] = list(units) or found.about["variants"]
