"""The GLU family: every variant is ``phi(gate) * psi(up)``, one row of one table.

References, Metal functors, layers, tests and documentation all read
:data:`VARIANTS`. To add a variant, add a row here and its functor in
``metal/act.h``; a new ``phi`` or ``psi`` also needs its formula in
``reference.py``.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Variant:
    """One gated linear unit, ``phi(gate) * psi(up)``.

    Frozen and hashable, so that it can key a cache of kernels.

    Attributes:
        name: key of the row in :data:`VARIANTS`.
        phi: activation of the gate, a key of ``reference.PHI``.
        source: where the definition comes from.
        functor: struct or alias in ``metal/act.h``; None when no pointwise
            functor can exist.
        psi: map of the value, a key of ``reference.PSI``.
        params: pairs (parameter, value) in the order of the functor's template.
        hf_acts: Hugging Face ``hidden_act`` strings that mean this variant.
    """

    name: str
    phi: str
    source: str
    functor: str | None
    psi: str = "identity"
    params: tuple[tuple[str, float], ...] = ()
    hf_acts: tuple[str, ...] = ()

    def __str__(self) -> str:
        own = VARIANTS.get(self.name, self).params
        changed = [f"{k}={v!r}" for k, v in self.params if (k, v) not in own]
        return self.name + (f"({', '.join(changed)})" if changed else "")

    @property
    def pointwise(self) -> bool:
        """True if each output element needs one gate and one up element only."""
        return self.functor is not None

    def with_params(self, **params: float) -> Variant:
        """Return this variant with some parameters replaced.

        Args:
            **params: new values, for instance ``beta=1.5``.

        Returns:
            The specialised variant; its name stays that of the row.

        Raises:
            ValueError: the variant has no such parameter, or a value is not
                finite or out of range.
        """
        known = dict(self.params)
        for key, value in params.items():
            if key not in known:
                raise ValueError(
                    f"[variants] {self.name} has parameters {list(known)} but got "
                    f"{key!r}; remove it or choose another variant"
                )
            _check_param(self.name, key, value)
        merged = {**known, **{k: float(v) for k, v in params.items()}}
        return replace(self, params=tuple(merged.items()))

    @property
    def msl(self) -> str:
        """The functor as MSL text, for instance ``mlx_glu::Swiglu<0x3f800000u>``.

        Parameters travel as the bits of a float, exact in text; so their values
        live in this table alone.

        Raises:
            ValueError: the variant is not pointwise and has no functor.
        """
        if self.functor is None:
            raise ValueError(
                f"[variants] a Metal functor is pointwise but {self.name} is not; "
                "use the stock operations of reference.py"
            )
        bits = ", ".join(float_bits(value) for _, value in self.params)
        return f"mlx_glu::{self.functor}" + (f"<{bits}>" if bits else "")


def _check_param(name: str, key: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(
            f"[variants] {name} needs a finite {key} but got {value}; "
            "use the variant without this parameter"
        )
    if (key == "limit" and value <= 0) or (key == "sparsity" and not 0 < value < 1):
        raise ValueError(
            f"[variants] {name} needs limit > 0 and 0 < sparsity < 1 but got "
            f"{key} = {value}; use swiglu or geglu_tanh when nothing is cut"
        )


def float_bits(value: float) -> str:
    """The bits of a float32 as MSL text: a template argument that is exact."""
    return f"0x{struct.unpack('<I', struct.pack('<f', value))[0]:08x}u"


_SHAZEER = "Shazeer 2020, arXiv:2002.05202"

# transformers computes all five with the tanh form, gelu_fast included.
_TANH_FORM = (
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "gelu_new",
    "gelu_fast",
    "gelu_accurate",
)

_ROWS = (
    Variant(
        "glu",
        phi="sigmoid",
        source="Dauphin et al. 2017, arXiv:1612.08083",
        functor="Glu",
        hf_acts=("sigmoid",),
    ),
    Variant(
        "bilinear",
        phi="identity",
        source=f"Mnih and Hinton 2007; {_SHAZEER}",
        functor="Bilinear",
        hf_acts=("linear",),
    ),
    Variant("reglu", "relu", _SHAZEER, "Reglu", hf_acts=("relu",)),
    Variant("geglu", "gelu", _SHAZEER, "Geglu", hf_acts=("gelu", "gelu_python")),
    Variant(
        "geglu_tanh",
        phi="gelu_tanh",
        source=f"{_SHAZEER}; Gemma, arXiv:2403.08295",
        functor="GegluTanh",
        hf_acts=_TANH_FORM,
    ),
    Variant(
        "swiglu",
        phi="silu",
        source=_SHAZEER,
        functor="Swiglu",
        params=(("beta", 1.0),),
        hf_acts=("silu", "swish"),
    ),
    Variant(
        "quick_geglu",
        phi="silu",
        source="Hendrycks and Gimpel 2016, arXiv:1606.08415",
        functor="Swiglu",
        params=(("beta", 1.702),),
        hf_acts=("quick_gelu",),
    ),
    Variant(
        "swiglu_clamped",
        phi="silu_clamped",
        source="OpenAI 2025, gpt-oss, arXiv:2508.10925",
        functor="SwigluClamped",
        psi="clip",
        params=(("alpha", 1.702), ("limit", 7.0), ("offset", 1.0)),
    ),
    Variant(
        "swiglu_clamp_post",
        phi="silu_clamp_post",
        source="StepFun 2026, Step-3.5, swiglu_limits",
        functor="SwigluClampPost",
        psi="clip",
        params=(("limit", 7.0),),
    ),
    Variant(
        "gtu",
        phi="sigmoid",
        source="van den Oord et al. 2016, arXiv:1606.05328",
        functor="Gtu",
        psi="tanh",
    ),
    Variant(
        "drelu",
        phi="relu",
        source="Song et al. 2024, Turbo Sparse, arXiv:2406.05955",
        functor="Drelu",
        psi="relu",
    ),
    Variant(
        "relu2_glu",
        phi="relu2",
        source="So et al. 2021, Primer, arXiv:2109.08668",
        functor="Relu2Glu",
        hf_acts=("relu2",),
    ),
    Variant(
        "gelu_topk",
        phi="gelu_topk",
        source="Google 2025, Gemma 3n, activation_sparsity",
        functor=None,
        params=(("sparsity", 0.95),),
    ),
)

VARIANTS: dict[str, Variant] = {row.name: row for row in _ROWS}


def get(variant: str | Variant, **params: float) -> Variant:
    """Return the variant of a name, with parameters replaced if any are given.

    Args:
        variant: a key of :data:`VARIANTS`, or a variant, which passes through.
        **params: as in :meth:`Variant.with_params`.

    Returns:
        The variant.

    Raises:
        ValueError: the name or a parameter is unknown.
    """
    if isinstance(variant, str):
        if variant not in VARIANTS:
            raise ValueError(
                f"[variants] expected one of {', '.join(VARIANTS)} but got "
                f"{variant!r}; Hugging Face strings go through resolve()"
            )
        variant = VARIANTS[variant]
    if not isinstance(variant, Variant):
        raise ValueError(
            f"[variants] a variant is a name or a Variant but got {variant!r}; "
            f"choose from {', '.join(VARIANTS)}"
        )
    return variant.with_params(**params) if params else variant


def resolve(hidden_act: str) -> Variant:
    """Return the variant that a Hugging Face activation string means.

    Args:
        hidden_act: the value of ``hidden_act`` or ``hidden_activation``.

    Returns:
        The variant whose gate has this activation.

    Raises:
        ValueError: no variant has this string.
    """
    known = {act: row for row in _ROWS for act in row.hf_acts}
    if hidden_act not in known:
        raise ValueError(
            f"[variants] expected a hidden_act among {', '.join(known)} but got "
            f"{hidden_act[:100]!r}; add it to hf_acts of its row in variants.py"
        )
    return known[hidden_act]
