"""Which cases are run: a covering few, a thorough thousand, or a literal product.

Lists of cases are made, not written: some fields are given, the others are chosen so
that each pair of values of two fields occurs as early as it can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations, product
from typing import Any

from ..quantization import DENSE
from .cases import (
    BIASES,
    DENSE_KS,
    DTYPES,
    FORMATS,
    KS,
    LAYOUTS,
    MS,
    MUL_MS,
    NORMS,
    NS,
    NVFP4_KS,
    POINTWISE,
    VARIATIONS,
    Case,
)

Fields = Mapping[str, Sequence[Any]]

_ON_OFF = (False, True)
_KINDS = {"variant": POINTWISE, "dtype": DTYPES}
_SIZES = {"N": NS, "M": MS}
_KS = {"K": (*KS, *NVFP4_KS)}
_PARTS = {"strided": _ON_OFF, "parameters": ("", *DTYPES)}
_GLU = {**_KINDS, "norm": NORMS, "biases": BIASES, **_PARTS}
_DOWN = {"dtype": DTYPES, "residual": _ON_OFF, "biases": BIASES[:2], **_PARTS}
_MUL = {"layout": tuple(LAYOUTS), **_KINDS, "N": NS, "M": MUL_MS, "strided": _ON_OFF}
_PACKED = tuple(FORMATS)
_ANY = (*FORMATS, DENSE)
_FLOATS = (DENSE,)

#: By kernel: the fields that its cases differ in, and the values of each. What comes
#: first is paired first.
FIELDS: dict[str, Fields] = {
    "glu_qmv": {"weight": _ANY, "up": _ANY, **_KS, **_SIZES, **_GLU},
    "glu_gemv": {"weight": _FLOATS, "up": _FLOATS, **_SIZES, **_GLU, "K": DENSE_KS},
    "down_qmv": {"weight": _PACKED, **_SIZES, **_DOWN, **_KS},
    "down_gemv": {"weight": _FLOATS, **_SIZES, **_DOWN, "K": DENSE_KS},
    "glu_mul": _MUL,
    "glu_mul_vjp": _MUL,
}

#: Run once more for each of VARIATIONS; the first in CI too.
_VARIED = (
    Case("glu_qmv", "geglu", "float16", 3, 31, 576, "a4g64", "a3g32", "biases", "norm"),
    Case("glu_gemv", "swiglu", "bfloat16", 2, 64, 640, DENSE, DENSE, norm="gemma"),
    Case("down_qmv", "", "float16", 5, 31, 1152, "nvfp4", residual=True),
    Case("down_gemv", "", "float32", 1, 515, 100, DENSE, biases="gate_bias"),
    Case("glu_mul", "gtu", "float16", 5, 515, layout="separate"),
    Case("glu_mul_vjp", "geglu_tanh", "float32", 5, 515, layout="concat"),
)

#: What no pair of fields brings about.
_CORNERS = (
    # A chunk of 32 columns has two groups of nvfp4.
    Case("glu_qmv", "swiglu", "float32", 1, 31, 512, "nvfp4", "a3g128"),
    # A limit shows in many elements only.
    Case("glu_mul", "swiglu_clamp_post", "float32", 5, 515, layout="separate"),
    Case("glu_mul_vjp", "swiglu_clamp_post", "float32", 5, 515, layout="separate"),
)


@lru_cache(1)
def quick() -> tuple[Case, ...]:
    """About a hundred cases: every value of every field, each format in both tiles."""
    glu_qmv, glu_gemv = _Plan("glu_qmv"), _Plan("glu_gemv")
    for rows in (MS[:1], MS[1:]):  # a single row of x has a tile of its own
        glu_qmv.add({"weight": _ANY}, M=rows)
    glu_gemv.add({"dtype": DTYPES}, M=MS[:1]).add({"M": MS[1:]})
    return (
        *glu_qmv.cases,
        *glu_gemv.cases,
        *_Plan("down_qmv").add({"weight": _PACKED}).cases,
        *_Plan("down_gemv").add({"M": MS}).cases,
        *_Plan("glu_mul").add({"variant": POINTWISE}).cases,
        *_Plan("glu_mul_vjp").add({"variant": POINTWISE}).cases,
        *_varied(_VARIED[:1]),
        *_CORNERS,
    )


@lru_cache(1)
def full() -> tuple[Case, ...]:
    """Every variant, dtype and format together, and every pair of all else."""
    glu_gemv = _Plan("glu_gemv").add(_KINDS, M=MS[:1]).add(_KINDS, M=MS[1:])
    return (
        *_Plan("glu_qmv").add({**_KINDS, "weight": _ANY}).cases,
        *glu_gemv.cases,
        *_Plan("down_qmv").add({"weight": _PACKED, "M": MS}).cases,
        *_Plan("down_gemv").add({"K": DENSE_KS, "dtype": DTYPES}).cases,
        *_Plan("glu_mul").add({**_KINDS, "layout": tuple(LAYOUTS)}).cases,
        *_Plan("glu_mul_vjp").add({**_KINDS, "layout": tuple(LAYOUTS)}).cases,
        *_varied(_VARIED),
    )


def exhaustive() -> Iterator[Case]:
    """The product of variants, dtypes, formats, sizes and biases: about a million.

    Formats of gate and up are the same, or neighbours in the table: :func:`full`
    has all pairs, and norms.
    """
    follows = dict(zip(_ANY, (*_ANY[1:], *_ANY[:1]), strict=True))
    for kernel, fields in FIELDS.items():
        skipped = {"up", "norm", *_PARTS}
        crossed = {k: v for k, v in fields.items() if k not in skipped}
        if "biases" in crossed:
            crossed["biases"] = (BIASES[0], crossed["biases"][-1])
        for values in product(*crossed.values()):
            case = Case(kernel, **dict(zip(crossed, values, strict=True)))
            pairs = [case]
            if "up" in fields:
                ups = case.weight, follows[case.weight]
                pairs = [replace(case, up=up) for up in ups if up in fields["up"]]
            yield from (pair for pair in pairs if pair.possible)


def _varied(cases: Sequence[Case]) -> Iterator[Case]:
    return (replace(case, option=option) for case in cases for option in VARIATIONS)


class _Plan:
    """Cases of one kernel that are being chosen."""

    def __init__(self, kernel: str) -> None:
        self.cases: list[Case] = []
        self._kernel = kernel
        self._seen: Counter[frozenset[Any]] = Counter()
        self._used: Counter[Any] = Counter()

    def add(self, each: Fields, **only: Sequence[Any]) -> _Plan:
        """Add a case for each combination of some fields; ``only`` narrows others."""
        fields = {**FIELDS[self._kernel], **only}
        for values in product(*each.values()):
            known = dict(zip(each, values, strict=True))
            for name in fields:
                if name not in known:
                    known[name] = self._choose(known, name, fields[name])
            self._used.update(known.items())
            self._seen.update(map(frozenset, combinations(known.items(), 2)))
            self.cases.append(Case(self._kernel, **known))
        return self

    def _choose(
        self, known: Mapping[str, Any], name: str, choices: Sequence[Any]
    ) -> Any:
        """The value that makes the most new pairs; of several, the rarest."""

        def cost(value: Any) -> tuple[int, int]:
            mine = (name, value)
            pairs = (frozenset((other, mine)) for other in known.items())
            return sum(self._seen[pair] > 0 for pair in pairs), self._used[mine]

        partly = Case(self._kernel, **known)
        fits = [v for v in choices if replace(partly, **{name: v}).possible]
        return min(fits, key=cost)
