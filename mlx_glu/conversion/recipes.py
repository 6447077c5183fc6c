"""Which format each module gets, and who has the last word.

From the first word to the last:

1. ``-q`` with bits, group size and mode: every module;
2. ``--quant-predicate``: a recipe gives each module its bits;
3. the model itself, where a format would harm it: routers have 8 bits;
4. ``--q-ffn-bits``: the projections of the feed-forwards, experts too;
5. ``--q-override``: modules by pattern, or a word for a part; the last that matches;
6. ``--q-skip``: patterns of what stays float.

A callable in place of a recipe, as mlx-lm takes it, speaks for 1 to 3. A recipe of
mlx-lm's silences the model as well; here it does not, as 2 bits break a router.
Whatever was said, a module whose inputs the group size does not divide stays float.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from ..parts import part_of
from ..quantization import FLOAT, Quantization, choose, parse
from ..weights import Weights

#: mlx-lm's recipes: bits of most weights, and of the value and down projections of
#: the first and last eighth of the layers and every third between, and of the head.
RECIPES = {
    "mixed_2_6": (2, 6),
    "mixed_3_4": (3, 4),
    "mixed_3_6": (3, 6),
    "mixed_4_6": (4, 6),
}

#: mlx-lm's: from a path and the module, whose weights are placeholders, to whether
#: it is packed, or to its ``group_size``, ``bits`` and ``mode``.
Predicate = Callable[[str, nn.Module], bool | dict[str, Any]]

#: Words that stand for all modules of some parts.
PARTS = {
    "attention": ("attention",),
    "ffn": ("FFN", "experts"),
    "experts": ("experts",),
    "embeddings": ("embeddings",),
    "head": ("head",),
}

Formats = dict[str, Quantization | None]


@dataclass(frozen=True)
class Request:
    """What a user asked for; the head of this module says what wins.

    Attributes:
        base: of modules that nothing else speaks for.
        predicate: a key of ``RECIPES``, or a callable, or None.
        overrides: patterns of module paths, or words of ``PARTS``, and what they
            get; None stays float. The last one that matches wins.
    """

    base: Quantization
    predicate: str | Predicate | None = None
    overrides: Sequence[tuple[str, Quantization | None]] = ()

    @classmethod
    def of(
        cls,
        mode: str = "affine",
        group_size: int | None = None,
        bits: int | None = None,
        *,
        predicate: str | Predicate | None = None,
        ffn_bits: int | None = None,
        overrides: Mapping[str, str] | None = None,
        skip: Iterable[str] = (),
    ) -> "Request":
        """Read the arguments of ``convert``.

        Raises:
            ValueError: no such recipe or format, or two that exclude each other.
        """
        if isinstance(predicate, str):
            if predicate not in RECIPES:
                raise ValueError(
                    f"[quantize] there is no recipe {predicate!r}; choose from "
                    + ", ".join(RECIPES)
                )
            if mode != "affine" or bits is not None:
                raise ValueError(
                    f"[quantize] {predicate} sets the bits of affine formats; leave "
                    "out --q-bits and --q-mode"
                )
            bits = RECIPES[predicate][0]
        base = choose(mode, group_size, bits)
        said = [] if ffn_bits is None else [("ffn", str(ffn_bits))]
        said += (overrides or {}).items()
        said += [(pattern, FLOAT) for pattern in skip]
        return cls(base, predicate, [(k, parse(text, base)) for k, text in said])

    @classmethod
    def parse(cls, text: str) -> "Request":
        """Read ``FORMAT[,PATTERN=FORMAT ...]`` or ``RECIPE[:GROUP_SIZE][,...]``.

        Raises:
            ValueError: it is neither.
        """
        first, *rest = text.split(",")
        name, _, size = first.partition(":")
        is_recipe = name in RECIPES
        base = parse(f"4:{size}" if is_recipe and size else "4" if is_recipe else first)
        if base is None:
            raise ValueError(f"[quantize] {text!r} packs nothing; give a format")
        return cls.of(
            base.mode,
            base.group_size,
            None if is_recipe else base.bits,
            predicate=name if is_recipe else None,
            overrides=split_overrides(rest),
        )

    def formats(self, weights: Weights) -> tuple[Formats, dict[str, str]]:
        """What each module of a checkpoint gets.

        Returns:
            Module path to format, None for float; and of the modules that the format
            asked for does not fit, the reason.

        Raises:
            ValueError: a pattern that matches no module; a predicate that answers
                with something else than mlx-lm's would.
        """
        modules = list(weights.modules())
        ask = self._predicate(weights, modules)
        wanted = {module: ask(module) for module in modules}
        for pattern, own in self.overrides:
            wanted |= dict.fromkeys(_matching(pattern, modules, weights), own)
        kept_float = {}
        for module, own in wanted.items():
            K = weights.shapes[f"{module}.weight"][-1]
            if own is not None and K % own.group_size:
                kept_float[module] = (
                    f"{K} inputs are not a multiple of group size {own.group_size}"
                )
        return wanted | dict.fromkeys(kept_float), kept_float

    def _predicate(
        self, weights: Weights, modules: Sequence[str]
    ) -> Callable[[str], Quantization | None]:
        """What steps 1 to 3 say of a module."""
        given = self.predicate
        if callable(given):
            tree: Any = weights.model.leaf_modules()
            leaves = dict(tree_flatten(tree, is_leaf=nn.Module.is_module))
            return lambda path: _answer(path, given(path, leaves[path]), self.base)
        recipe = None
        if given is not None:
            layers = weights.config.num_hidden_layers
            recipe = _mixed(RECIPES[given], modules, layers, self.base.group_size)

        def ask(path: str) -> Quantization | None:
            usual = recipe(path) if recipe else self.base
            return _answer(path, weights.model.quant_predicate(path), usual)

        return ask


def split_overrides(items: Iterable[str]) -> dict[str, str]:
    """Patterns and formats of several ``PATTERN=FORMAT``, in order.

    Raises:
        ValueError: one is not of this form.
    """
    found: dict[str, str] = {}
    for item in items:
        pattern, _, own = item.rpartition("=")
        if not pattern or not own:
            raise ValueError(
                f"[quantize] {item!r} must be PATTERN=FORMAT, such as 'lm_head=8', "
                f"'*.down_proj=6:32' or 'embeddings={FLOAT}'"
            )
        found.pop(pattern, None)  # said again, it is the last word
        found[pattern] = own
    return found


def _answer(path: str, answer: object, usual: Quantization) -> Quantization | None:
    """What a predicate of mlx-lm's form said of a module."""
    if isinstance(answer, bool):
        return usual if answer else None
    if isinstance(answer, Mapping) and answer.keys() <= {"group_size", "bits", "mode"}:
        mode = answer.get("mode") or "affine"
        return choose(mode, answer.get("group_size"), answer.get("bits"))
    raise ValueError(
        f"[quantize] the predicate must answer true, false, or group_size, bits and "
        f"mode; of {path} it said {answer!r}"
    )


def _mixed(
    bits: tuple[int, int], modules: Sequence[str], layers: int, group_size: int
) -> Callable[[str], Quantization]:
    """A recipe of mlx-lm, which follows llama.cpp's Q4_K_M.

    Source: mlx_lm/convert.py, mixed_quant_predicate_builder.
    """
    low, high = (Quantization(group_size, b) for b in bits)
    down = next((m.split(".") for m in modules if "down_proj" in m), None)
    if down is None:
        raise ValueError("[quantize] a recipe needs layers with a down_proj")
    at = next((i for i, name in enumerate(down) if name.isdecimal()), len(down))

    def of(path: str) -> Quantization:
        names = path.split(".")
        index = int(names[at]) if at < len(names) and names[at].isdecimal() else 0
        eighth = layers // 8
        matters = (
            index < eighth or index >= 7 * layers // 8 or (index - eighth) % 3 == 2
        )
        more = any(n in path for n in ("v_proj", "v_a_proj", "v_b_proj", "down_proj"))
        return high if "lm_head" in path or (more and matters) else low

    return of


def _matching(pattern: str, modules: Sequence[str], weights: Weights) -> list[str]:
    """The modules that a pattern or a word of ``PARTS`` means, at least one."""
    parts = PARTS.get(pattern)
    found = [
        path
        for path in modules
        if (part_of(path) in parts if parts else fnmatchcase(path, pattern))
    ]
    if found:
        return found
    every = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", path) for path in modules))
    close = difflib.get_close_matches(pattern, every, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else ""
    if "head" in pattern and weights.config.tie_word_embeddings:
        hint = "the head is tied to model.embed_tokens"
    raise ValueError(
        f"[quantize] {pattern!r} matches no module that can be packed; "
        + (hint or f"there are {', '.join(every[:12])}")
    )
