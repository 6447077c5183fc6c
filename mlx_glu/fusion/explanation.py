"""Which feed-forwards a model has, what runs them, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .. import dispatch
from ..choosing import decide, mul_case
from ..dispatch import MAX_M, MUL_RANGES, PRODUCT_RANGES, Case, Choice
from ..feed_forward import Cases
from ..linear_layers import inner
from ..quantization import DENSE, FLOATS, Quantization
from ..tables import aligned
from . import anatomy
from .patches import block_of, experts_of, is_ours
from .survey import Site, survey

_HEAD = ("feed-forward", "unit", "K x N", "format", "calls in this process")
_UNTOUCHED = "stock", "not fused yet: mlx_glu.fuse(model)"


@dataclass
class Row:
    """Feed-forwards of a model that are alike.

    Attributes:
        kind: class of the modules.
        unit: variant between their projections; "" where it is unknown.
        size: "K x N".
        formats: of gate, up and down, once where they are one.
        runs: for ranges of M, "rows", what runs them, and why.
        paths: of the modules.
        calls: how often their cases ran stock and fused in this process.
    """

    kind: str
    unit: str
    size: str
    formats: str
    runs: list[tuple[str, str, str]]
    paths: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)


@dataclass
class Explanation:
    """Rows of a model's feed-forwards; ``str`` of it is a table."""

    rows: list[Row]

    def __str__(self) -> str:
        if not self.rows:
            return "no feed-forward found that is a module of its own"
        lines: list[Sequence[str]] = [_HEAD]
        for row in self.rows:
            calls = ", ".join(f"{n} {impl}" for impl, n in sorted(row.calls.items()))
            first = f"{folded(row.paths) or 'the model'} ({row.kind})"
            lines.append((first, row.unit or "?", row.size, row.formats, calls))
        if not any(row.calls for row in self.rows):
            lines = [line[:-1] for line in lines]
        table = aligned(lines)
        for at, row in reversed(list(enumerate(self.rows, 1))):
            runs = aligned([(f"  rows {rows}", *run) for rows, *run in row.runs])
            table[at + 1 : at + 1] = runs
        return "\n".join(table)


def explain(model: nn.Module) -> Explanation:
    """Say for each distinct feed-forward of a model what runs it, and why.

    Args:
        model: any tree of modules, fused or not.

    Returns:
        A row for each kind of feed-forward: its modules, variant, sizes and formats,
        and the choice for each range of M, the rows of x. ``str`` makes a table of it.
    """
    sites = survey(model)
    default = dtype_of(model)
    rows: dict[tuple[Any, ...], Row] = {}
    for site in sites:
        row, cases = _describe(site, dtype_of(site.module) or default or mx.bfloat16)
        key = row.kind, row.unit, row.size, row.formats, tuple(row.runs)
        rows.setdefault(key, row).paths.append(site.path)
        for (case, impl), n in dispatch.counts().items():
            if case in cases and len(rows[key].paths) == 1:
                rows[key].calls[impl] = rows[key].calls.get(impl, 0) + n
    return Explanation(list(rows.values()))


def _describe(site: Site, dtype: mx.Dtype) -> tuple[Row, set[Case]]:
    kind = type(site.module).__name__.removeprefix("Fused")
    if site.experts is not None:
        return _describe_experts(site, dtype, kind)
    if site.block is None:
        return Row(
            kind, "", *_shape(site.module), [("all", "stock", site.fault)]
        ), set()
    block = site.block
    cases = block.cases(site.module, dtype)
    if is_ours(site.module):
        cases = _as_called(cases)
    names = [name for name in (block.gate, block.up, block.down) if name]
    layers = [getattr(site.module, name) for name in names]
    K = anatomy.size_of(layers[0])
    row = Row(kind, str(block.variant), f"{K[1] if K else '?'} x {cases.mul.N}", "", [])
    row.formats = _formats(layers)
    if is_ours(site.module) or block_of(site.module) is not None:
        starts = [first for first, _ in PRODUCT_RANGES] + [MAX_M + 1]
        row.runs = _merged((M, cases.choices(M)) for M in starts)
    else:
        row.runs = [("all", *_UNTOUCHED)]
    return row, {case for case in cases if case is not None}


def _describe_experts(site: Site, dtype: mx.Dtype, kind: str) -> tuple[Row, set[Case]]:
    assert site.experts is not None
    variant = site.experts[0]
    size, formats = _shape(site.module)
    case = mul_case(dtype, int(size.split()[-1]), variant)
    row = Row(kind, str(variant), size, formats, [("all", *_UNTOUCHED)])
    if is_ours(site.module) or experts_of(site.module) is not None:
        row.runs = _merged((first, [decide(case, first)]) for first, _ in MUL_RANGES)
    return row, {case}


def _as_called(cases: Cases) -> Cases:
    """The cases of our own models: with the norm and residual of the last call."""
    seen = {case for case, _ in dispatch.counts()}

    def same(case: Case | None) -> Case | None:
        if case is None or case in seen:
            return case
        plain = [c._replace(norm=case.norm, residual=case.residual) for c in seen]
        return next((c for c, p in zip(seen, plain, strict=True) if p == case), case)

    return Cases(same(cases.linear), cases.mul, same(cases.down))


def _merged(choices: Iterator[tuple[int, list[Choice]]]) -> list[tuple[str, str, str]]:
    """Ranges of M with what runs them, neighbours that agree as one."""
    runs: list[tuple[int, str, str]] = []
    for M, own in choices:
        fused = [choice for choice in own if choice.impl == "fused"]
        impl = "+".join(choice.op for choice in fused) or "stock"
        if len(fused) == len(own):
            impl = "fused"
        # Where some are fused, the question is why the others are not.
        asked = own if len(fused) in (0, len(own)) else set(own) - set(fused)
        why = "; ".join(sorted({choice.why for choice in asked}))
        if not runs or runs[-1][1:] != (impl, why):
            runs.append((M, impl, why))
    ends = [start - 1 for start, *_ in runs[1:]] + [None]
    return [
        (f"{M}+" if end is None else f"{M}" if end == M else f"{M}-{end}", impl, why)
        for (M, impl, why), end in zip(runs, ends, strict=True)
    ]


def _formats(layers: Sequence[Any]) -> str:
    names = [_format(layer) for layer in layers]
    return names[0] if len(set(names)) == 1 else "/".join(names)


def _format(layer: Any) -> str:
    base = inner(layer)
    if "scales" in base:
        name = Quantization(base.group_size, base.bits, base.mode).name
    else:
        name = DENSE if "weight" in base else "?"
    simple = base is layer and name != "?"
    return name if simple else f"{type(layer).__name__}({name})"


def _shape(module: nn.Module) -> tuple[str, str]:
    """Sizes and formats of a module that is no dense block."""
    children = module.children()
    layers = [
        children[n] for n in ("gate_proj", "up_proj", "down_proj") if n in children
    ]
    if len(layers) < 3:
        layers = [children[name] for name in anatomy.projections(module)]
    sizes = [anatomy.stack_size(layer) for layer in layers]
    N, K = max(sizes) if len(layers) < 3 else sizes[0]
    return f"{K} x {N}", _formats(layers)


def dtype_of(module: nn.Module) -> mx.Dtype | None:
    """The first float dtype among a module's weights and scales."""
    arrays: Any = tree_flatten(module.parameters())
    return next((a.dtype for _, a in arrays if a.dtype in FLOATS), None)


def folded(paths: Sequence[str]) -> str:
    """Paths that differ in one number as one: "model.layers.0-29.mlp"."""
    patterns: dict[tuple[str, str], list[int]] = {}
    plain = []
    for path in paths:
        found = re.search(r"(?<![^.])\d+(?![^.])", path)
        if found:
            around = path[: found.start()], path[found.end() :]
            patterns.setdefault(around, []).append(int(found[0]))
        else:
            plain.append(path)
    for (before, after), numbers in patterns.items():
        plain.append(f"{before}{_ranges(sorted(set(numbers)))}{after}")
    return ", ".join(plain)


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
