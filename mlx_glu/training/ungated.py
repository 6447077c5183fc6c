"""Feed-forward blocks without a gate: the baselines of the GLU family.

Activations are computed in float32 and rounded once; their gradients keep the
pre-activation alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from ..checks import check_dtype
from ..layers import GatedMLP, RMSNorm
from ..lean import plus
from ..linear_layers import project
from ..quantization import dtype_name
from ..reference import PHI, PSI, widen
from ..tracing import is_shapeless
from ..variants import VARIANTS
from .xielu import XIELU

#: Of an activation and of its derivative, both in the dtype of their argument.
Pointwise = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Activation:
    """One activation of an ungated block.

    Attributes:
        name: key of the row in :data:`ACTIVATIONS`.
        source: where the definition comes from.
        value: the function; None for one with parameters, which is a module.
        derivative: its derivative.
        hf_acts: Hugging Face ``hidden_act`` strings that mean it.
    """

    name: str
    source: str
    value: Pointwise | None = None
    derivative: Pointwise | None = None
    hf_acts: tuple[str, ...] = ()

    def layer(self) -> Callable[[mx.array], mx.array]:
        """What maps [...] to [...] of the same dtype; a new module for "xielu"."""
        return XIELU() if self.value is None else _rounded_once(self)


class MLP(nn.Module):
    r"""Feed-forward block without a gate, called as :class:`layers.GatedMLP`.

    .. math:: y = \phi(x W_u^\top) W_d^\top

    Args:
        dims: K, size of the input and of the output.
        hidden_dims: N, intermediate size.
        activation: a key of :data:`ACTIVATIONS`.
        bias: whether the projections have a bias.

    Raises:
        ValueError: ``activation`` is unknown.
    """

    def __init__(
        self,
        dims: int,
        hidden_dims: int,
        *,
        activation: str = "relu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"[MLP] expected one of {', '.join(ACTIVATIONS)} but got "
                f"{activation!r}; gated units are variants of GatedMLP"
            )
        self.activation = ACTIVATIONS[activation]
        self.up_proj = nn.Linear(dims, hidden_dims, bias=bias)
        self.act_fn = self.activation.layer()
        self.down_proj = nn.Linear(hidden_dims, dims, bias=bias)

    def __call__(
        self,
        x: mx.array,
        *,
        norm: RMSNorm | None = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """Apply the block.

        Args:
            x: [..., K] activations; float16, bfloat16 or float32.
            norm: normalises ``x`` first; None for an ``x`` that is normalised.
            residual: [..., K] of the dtype of ``x``, added to the result; or None.

        Returns:
            [..., K] array of the dtype of ``x``.

        Raises:
            ValueError: ``residual`` or an adapter's result has another dtype, or
                ``residual`` another shape.
        """
        check_dtype("MLP", "x", x)
        h = self.act_fn(project(self.up_proj, x if norm is None else norm(x)))
        y = project(self.down_proj, h)
        if y.dtype != x.dtype:
            raise ValueError(
                f"[MLP] layers give the dtype of x, {dtype_name(x.dtype)}, but the "
                f"result is {dtype_name(y.dtype)}; cast their weights"
            )
        return plus(residual, y)

    def _extra_repr(self) -> str:
        return f"activation={self.activation.name}"


def matched_width(name: str, hidden_dims: int) -> int:
    """N at which a unit's block has the parameters of an ungated one.

    Args:
        name: as in :func:`feed_forward`.
        hidden_dims: intermediate size of the ungated block.

    Raises:
        ValueError: two thirds of it are no whole number.
    """
    if name in ACTIVATIONS:
        return hidden_dims
    if hidden_dims % 3:
        raise ValueError(
            "[matched_width] hidden_dims is a multiple of 3, so that two thirds are "
            f"whole, but is {hidden_dims}; take {hidden_dims - hidden_dims % 3}"
        )
    return 2 * hidden_dims // 3


def feed_forward(
    name: str, dims: int, hidden_dims: int, *, bias: bool = False
) -> GatedMLP | MLP:
    """Build the block of a unit, gated or not.

    Args:
        name: a key of ``VARIANTS`` or of :data:`ACTIVATIONS`.
        dims: K, size of the input and of the output.
        hidden_dims: N, intermediate size.
        bias: whether the projections have a bias.

    Raises:
        ValueError: neither table has the name.
    """
    if name in ACTIVATIONS:
        return MLP(dims, hidden_dims, activation=name, bias=bias)
    if name in VARIANTS:
        return GatedMLP(dims, hidden_dims, variant=name, bias=bias)
    raise ValueError(
        f"[feed_forward] expected one of {', '.join((*VARIANTS, *ACTIVATIONS))} but "
        f"got {name!r}; take a name of these"
    )


@cache
def _rounded_once(activation: Activation) -> Pointwise:
    """The function on 16-bit arrays too, with a gradient from its argument alone."""
    value, derivative = activation.value, activation.derivative
    assert value is not None
    assert derivative is not None

    def apply(x: mx.array) -> mx.array:
        return value(widen(x)).astype(x.dtype)

    lean = mx.custom_function(apply)

    @lean.vjp
    def backward(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return (widen(cotangent) * derivative(widen(x))).astype(x.dtype)

    def run(x: mx.array) -> mx.array:
        # MLX cannot replay a custom function, as stock.glu_mul has it.
        return apply(x) if is_shapeless() else cast(mx.array, lean(x))

    return run


def _of_gate(name: str, variant: str, source: str) -> Activation:
    """The activation that a variant has in its gate, with its parameters there."""
    row = VARIANTS[variant]
    params = dict(row.params)
    value, derivative = PHI[row.phi]
    assert derivative is not None
    return Activation(
        name,
        source,
        lambda x: value(x, params),
        lambda x: derivative(x, params),
        row.hf_acts,
    )


def _tanh() -> Activation:
    value, derivative = PSI["tanh"]
    source = "LeCun et al. 1998, Efficient BackProp"
    functions = lambda x: value(x, {}), lambda x: derivative(x, {})
    return Activation("tanh", source, *functions, ("tanh",))


_GELU = "Hendrycks and Gimpel 2016, arXiv:1606.08415"

_ROWS = (
    _of_gate("relu", "reglu", "Nair and Hinton 2010, ICML"),
    _of_gate("gelu", "geglu", _GELU),
    _of_gate("gelu_tanh", "geglu_tanh", _GELU),
    _of_gate("silu", "swiglu", f"{_GELU}; Elfwing et al. 2017, arXiv:1702.03118"),
    _of_gate("relu2", "relu2_glu", "So et al. 2021, Primer, arXiv:2109.08668"),
    Activation("xielu", "Huang and Schlag 2024, arXiv:2411.13010", hf_acts=("xielu",)),
    _of_gate("sigmoid", "glu", "the logistic function"),
    _tanh(),
)

ACTIVATIONS: dict[str, Activation] = {row.name: row for row in _ROWS}
