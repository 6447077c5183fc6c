"""Modules of a checkpoint by part and format: how many, and what they weigh."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from .checkpoints.stored import Tensor
from .fields import Config
from .parts import part_of
from .quantization import Quantization, choose

#: In the order of a table.
PARTS = (
    *("embeddings", "attention", "FFN", "experts"),
    *("router", "norms", "head", "other"),
)


class Group(NamedTuple):
    """Modules of one part and one format.

    Attributes:
        part: a member of ``PARTS``.
        format: "a4g64", "mxfp4" and so on, or a dtype.
        modules: how many.
        parameters: of the unpacked model.
        nbytes: of all their tensors.
    """

    part: str
    format: str
    modules: int
    parameters: int
    nbytes: int


def group(
    tensors: Mapping[str, Tensor], formats: Mapping[str, Quantization]
) -> list[Group]:
    """Sum tensors; ``formats`` are those of packed modules, by path."""
    modules: dict[str, list[Any]] = {}
    for name, (dtype, shape, nbytes, _) in tensors.items():
        module, _, last = name.rpartition(".")
        if last not in ("weight", "bias", *_NO_WEIGHTS):
            module = name  # a parameter of a larger module, such as stacked experts
        packed = formats.get(module)
        row = modules.setdefault(module, [part_by_name(name), dtype, 0, 0])
        if last == "weight":
            row[1] = packed.name if packed else dtype
        if packed and last == "weight":
            row[2] += nbytes * 8 // packed.bits
        elif last not in _NO_WEIGHTS:
            row[2] += math.prod(shape)
        row[3] += nbytes
    groups: dict[tuple[str, str], list[int]] = {}
    for part, form, *sizes in modules.values():
        old = groups.get((part, form), (0, 0, 0))
        groups[part, form] = [a + b for a, b in zip(old, (1, *sizes), strict=True)]
    found = [Group(*key, *sizes) for key, sizes in groups.items()]
    return sorted(found, key=lambda g: (PARTS.index(g.part), -g.nbytes))


#: Tensors of packed modules that stand beside the weights.
_NO_WEIGHTS = ("scales", "biases", "weight_scale", "weight_scale_inv")

#: Parts by the name of a tensor, where `part_of` knows none; the first that is found.
_GUESSES = {
    "router": r"\.(router|gate|shared_expert_gate|ffn_gate_inp\w*)(\.|$)",
    "experts": r"experts|_exps\.",
    "attention": r"attn|attention",
    "FFN": r"mlp|ffn|feed_forward",
    "embeddings": r"embd|wte|embed",
    "head": r"^output\.",
}


def part_by_name(name: str) -> str:
    """The part of a tensor; of architectures that we do not know it is a guess."""
    if re.search(r"norm\w*(\.\w+)?$|\.ln_\w+(\.\w+)?$", name):
        return "norms"
    part = part_of(name)
    if part != "other":
        return part
    return next((part for part, r in _GUESSES.items() if re.search(r, name)), part)


def declared(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Quantization]:
    """Formats of packed modules as config.json has them, of what cannot be loaded."""
    block = config.get("quantization") or config.get("quantization_config")
    formats: dict[str, Quantization] = {}
    if not isinstance(block, Mapping):
        return formats
    for name in tensors:
        module, _, last = name.rpartition(".")
        if last != "scales":
            continue
        own = block.get(module)
        own = own if isinstance(own, Mapping) else block
        mode = own.get("mode") or "affine"
        with suppress(ValueError, TypeError):
            formats[module] = choose(mode, own.get("group_size"), own.get("bits"))
    return formats
