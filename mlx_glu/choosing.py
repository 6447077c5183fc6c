"""What an operation on arrays is: checked, asked of dispatch, and made ready once.

All but the values of the arrays and the rows of x is the same for every token, and so
is what follows from it: a plan. Dtypes and shapes may change at any call, and are read
at each one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache, partial
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from . import dispatch, fused, jit, variants
from .checks import check_bias, check_norm, check_weight
from .dispatch import Case, Choice
from .elementwise import Packing
from .quantization import QuantizedWeight, Weight, dtype_name, format_name, size
from .reference import Norm
from .variants import Variant

Made = TypeVar("Made")

#: By whether gate and up have one.
_BIASES = {
    (False, False): "",
    (True, False): "gate_bias",
    (False, True): "up_bias",
    (True, True): "biases",
}


class Plan(NamedTuple):
    """What is fixed for arguments that were checked, but for the rows of x.

    Attributes:
        case: what dispatch is asked.
        run: the operation, fused; of x and of the arrays of the arguments.
    """

    case: Case
    run: fused.Run


def plan_gated(
    x: mx.array,
    variant: str | Variant,
    norm: Norm | None,
    gate: Weight,
    up: Weight,
    gate_bias: mx.array | None,
    up_bias: mx.array | None,
) -> Plan:
    """Check the arguments of ``ops.glu_linear``."""
    rows = (
        check_weight("glu_linear", "gate", gate, x),
        check_weight("glu_linear", "up", up, x),
    )
    if rows[0] != rows[1]:
        raise ValueError(
            f"[glu_linear] gate and up have the same N but gate has {rows[0]} rows "
            f"and up {rows[1]}; are the weights of one layer?"
        )
    check_bias("glu_linear", "gate_bias", gate_bias, rows[0])
    check_bias("glu_linear", "up_bias", up_bias, rows[1])
    check_norm("glu_linear", norm, x)
    variant = variants.get(variant)
    _, forms = fused.flatten((norm, gate, up, gate_bias, up_bias))
    case = linear_case(x.dtype, gate, up, variant, gate_bias, up_bias, norm)
    return Plan(case, fused.glu_linear(variant, forms))


def plan_down(
    x: mx.array, weight: Weight, bias: mx.array | None, residual: bool
) -> Plan:
    """Check the arguments of ``ops.down_linear``, but for the residual."""
    rows = check_weight("down_linear", "weight", weight, x)
    check_bias("down_linear", "bias", bias, rows)
    _, forms = fused.flatten((weight, bias))
    case = down_case(x.dtype, weight, bias is not None, residual)
    return Plan(case, fused.down_linear(forms))


class Cases(NamedTuple):
    """What a block asks dispatch; None where a layer has to be called.

    ``mul`` is asked where ``linear`` is not fused.
    """

    linear: Case | None
    mul: Case
    down: Case | None

    def choices(self, M: int, inputs: object = None) -> list[Choice]:
        """What would run for ``M`` rows, here and now."""
        decide = decider(inputs)
        found = [decide(self.linear, M)] if self.linear else []
        if not found or found[0].impl == "stock":
            found.append(decide(self.mul, M))
        return [*found, decide(self.down, M)] if self.down else found


class BlockPlan(NamedTuple):
    """What is fixed for a module and an x, but for the rows of x and the weights.

    Attributes:
        cases: what dispatch is asked.
        refusal: why no part may be fused, or "".
        gated: from x to what goes into the last layer; None where it has no case.
        down: the last layer after ``gated``.
    """

    cases: Cases
    refusal: str = ""
    gated: Plan | None = None
    down: Plan | None = None

    def choices(self, M: int, inputs: object) -> list[Choice]:
        """What runs for ``M`` rows, here and now."""
        found = self.cases.choices(M, inputs)
        if self.refusal:
            return [c._replace(impl="stock", why=self.refusal) for c in found]
        return found


_PLANS = 4096
_plans: dict[Any, Any] = {}


def planned(make: Callable[..., Made], key: tuple[Any, ...], *given: Any) -> Made:
    """``make(*given)``, once for each key.

    Args:
        make: checks arguments, and keeps none of their arrays.
        key: all that it depends on, such as :func:`row_form` and ``fused.flatten``.
        *given: the arguments.
    """
    try:
        found: Made | None = _plans.get((make, key))
    except TypeError:  # what has no hash is refused by make
        found = None
    if found is None:
        found = make(*given)
        if len(_plans) >= _PLANS:
            _plans.clear()
        _plans[make, key] = found
    return found


def row_form(x: mx.array) -> tuple[Any, ...]:
    """What of an x [..., K] a plan depends on: all but the rows."""
    return (x.dtype, x.shape[-1:]) if isinstance(x, mx.array) else (type(x),)


def count_rows(x: mx.array) -> int:
    """M of an x [..., K]."""
    return math.prod(x.shape[:-1])


@lru_cache(maxsize=1024)
def mul_case(
    dtype: mx.Dtype, N: int, variant: Variant, packing: Packing = None
) -> Case:
    """What dispatch is asked for ``ops.glu_mul`` and ``ops.glu_mul_packed``."""
    layout = ""
    if packing is not None:
        order, layout = packing
        layout += "" if order == "gate_first" else f"_{order}"
    return Case("glu_mul", dtype_name(dtype), N, variant=variant, layout=layout)


def linear_case(
    dtype: mx.Dtype,
    gate: Weight,
    up: Weight,
    variant: Variant,
    gate_bias: mx.array | None = None,
    up_bias: mx.array | None = None,
    norm: Norm | None = None,
) -> Case:
    """What dispatch is asked for ``ops.glu_linear``, of an x of this dtype."""
    return Case(
        "glu_linear",
        dtype_name(dtype),
        *size(gate),
        variant,
        format_name(gate),
        format_name(up),
        _BIASES[gate_bias is not None, up_bias is not None],
        "" if norm is None else "gemma" if norm.offset else "norm",
        parameters=_parameters(dtype, gate, up, None if norm is None else norm.weight),
    )


def down_case(
    dtype: mx.Dtype, weight: Weight, bias: bool = False, residual: bool = False
) -> Case:
    """What dispatch is asked for ``ops.down_linear``, of an x of this dtype."""
    return Case(
        "down_linear",
        dtype_name(dtype),
        *size(weight),
        weight=format_name(weight),
        biases=_BIASES[bias, False],
        residual=residual,
        parameters=_parameters(dtype, weight),
    )


def decide(case: Case, M: int, inputs: object = None) -> Choice:
    """What would run for ``M`` rows of a case, here and now; see ``dispatch``."""
    return decider(inputs)(case, M)


def decider(inputs: object = None) -> Callable[[Case, int], Choice]:
    """As :func:`decide`, of several cases: what runs kernels here is asked once."""
    backend = jit.backend(inputs)
    judge = _tuning().judge if backend == "metal" else None
    return partial(dispatch.decide, backend=backend, judge=judge)


@cache
def _tuning() -> ModuleType:
    from . import tuning

    return tuning


def _parameters(dtype: mx.Dtype, *others: Weight | None) -> str:
    """Dtype of scales and norm where it is not that of x; of several the first."""
    for other in others:
        a = other.scales if isinstance(other, QuantizedWeight) else other
        if a is not None and a.dtype not in (dtype, mx.uint8):
            return dtype_name(a.dtype)
    return ""
