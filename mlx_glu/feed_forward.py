"""A gated block over layers of any kind: packed, adapted, sharded.

A projection that is its arrays alone goes into the fused operations; any other, such
as an adapter, is called as it is, and its result is gated like the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers import distributed

from . import ops, reference
from .checks import check_dtype
from .choosing import (
    Plan,
    count_rows,
    decider,
    down_case,
    linear_case,
    mul_case,
    plan_down,
    plan_gated,
    planned,
    row_form,
)
from .dispatch import Case, Choice, note
from .elementwise import Packing
from .fused import flatten
from .quantization import QuantizedWeight, Weight, dtype_name, rows, size, take_rows
from .variants import Variant

_DENSE = (nn.Linear, nn.Embedding, nn.AllToShardedLinear)
_PACKED = (nn.QuantizedLinear, nn.QuantizedEmbedding, nn.QuantizedAllToShardedLinear)
#: Each device of a group has some rows of the weight; gradients by x are summed.
_SHARDED = (nn.AllToShardedLinear, nn.QuantizedAllToShardedLinear)
_PARTS = ("weight", "scales", "biases", "bias")


def weight_of(layer: Any) -> Weight | None:
    """The weight of a layer that is its arrays alone; a subclass may compute more."""
    kind = type(layer)
    if kind in _DENSE:
        weight: mx.array = layer["weight"]
        return weight
    if kind in _PACKED:
        arrays = layer["weight"], layer["scales"], layer.get("biases")
        return QuantizedWeight(*arrays, layer.group_size, layer.bits, layer.mode)
    return None


def inner(layer: Any) -> Any:
    """The layer that an adapter adds to, or the layer itself."""
    while isinstance(layer, nn.Module) and isinstance(layer.get("linear"), nn.Module):
        layer = layer["linear"]
    return layer


def project(layer: Any, x: mx.array) -> mx.array:
    """Apply a linear layer, or an embedding as the output head that it is tied to.

    Args:
        layer: a linear layer or an embedding, plain or quantized; or any other
            module, such as an adapter, which is called.
        x: [..., K] activations.

    Returns:
        [..., N] array of the dtype of ``x``.
    """
    weight = weight_of(layer)
    if weight is not None and type(layer) not in _SHARDED:
        return reference.linear(x, weight, layer.get("bias"))
    y: mx.array = layer(x)
    return y


class Half(NamedTuple):
    """Gate or up: its weight [N, K] and its bias [N], or None."""

    weight: Weight
    bias: mx.array | None


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


class _Plan(NamedTuple):
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


@dataclass(frozen=True)
class Block:
    """Which children of a module are its projections, and what is between them.

    Attributes:
        variant: the unit.
        gate: name of the gate's projection, or of one that holds gate and up.
        up: name of the value's projection; "" where ``gate`` holds it.
        down: name of the projection back.
        packing: order and layout of gate and up in one array, or None.
    """

    variant: Variant
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    packing: Packing = None

    def __call__(
        self,
        module: nn.Module,
        x: mx.array,
        norm: ops.Norm | None = None,
        residual: mx.array | None = None,
        *,
        otherwise: Callable[[nn.Module, mx.array], mx.array] | None = None,
    ) -> mx.array:
        """Run the block: ``down(phi(gate(x)) * psi(up(x)))``, fused where it can be.

        Args:
            module: has the projections.
            x: [..., K] activations; float16, bfloat16 or float32.
            norm: of ``x`` before the projections, or None.
            residual: [..., K], added to the result, or None.
            otherwise: called with module and x where no part would be fused, or
                where stock would give another dtype; None for stock operations.

        Returns:
            [..., K] array of the dtype of ``x``.

        Raises:
            ValueError: weights do not match ``x``, and ``otherwise`` is None.
        """
        layers, arrays, last, forms = self._read(module, norm)
        how = residual is not None, otherwise is None
        key = how, *row_form(x), forms
        # A bound method is hashed by the identity of its object, which is fast.
        plan = planned(self._plan, key, module, x, norm, *how)
        choices = plan.cases.choices(count_rows(x), (x, norm, residual, module))
        if plan.refusal:
            choices = [c._replace(impl="stock", why=plan.refusal) for c in choices]
        if otherwise is not None and all(c.impl == "stock" for c in choices):
            for choice in choices:
                note(choice)
            return otherwise(module, x)
        if plan.cases.linear is not None:
            note(choices[0])
        if plan.gated is None or choices[0].impl == "stock":
            return _project_back(layers[2], self._multiply(layers, x, norm), residual)
        if self.packing is not None:
            arrays = self._unpacked(module, norm)
        if type(layers[0]) in _SHARDED:
            x = distributed.sum_gradients(layers[0].group)(x)
        y = plan.gated.run(x, *arrays)
        if plan.down is None or choices[-1].impl == "stock":
            return _project_back(layers[2], y, residual)
        note(choices[-1])
        if residual is not None:
            ops.check_residual(residual, x, plan.down.case.N)
            last.append(residual)
        return plan.down.run(y, *last)

    def cases(
        self,
        module: nn.Module,
        dtype: mx.Dtype,
        norm: ops.Norm | None = None,
        residual: bool = False,
    ) -> Cases:
        """What :meth:`__call__` asks dispatch for an x of this dtype."""
        halves, layer = self.halves(module), getattr(module, self.down)
        linear = down = None
        if halves is not None:
            (gate, gate_bias), (up, up_bias) = halves
            linear = linear_case(
                dtype, gate, up, self.variant, gate_bias, up_bias, norm
            )
        weight = _plain_weight(layer)
        if weight is not None:
            down = down_case(dtype, weight, "bias" in layer, residual)
        N = linear.N if linear else down.K if down else _columns(layer)
        return Cases(linear, mul_case(dtype, N, self.variant, self.packing), down)

    def halves(self, module: nn.Module) -> tuple[Half, Half] | None:
        """Gate and up as arrays; views of the rows of one layer where it holds both."""
        layer = getattr(module, self.gate)
        gate = weight_of(layer)
        if self.packing is None:
            other = getattr(module, self.up)
            up = weight_of(other)
            if gate is None or up is None:
                return None
            return Half(gate, layer.get("bias")), Half(up, other.get("bias"))
        order, layout = self.packing
        if gate is None or layout != "concat":
            return None
        N, bias = rows(gate) // 2, layer.get("bias")
        first, second = (
            Half(take_rows(gate, i, i + N), None if bias is None else bias[i : i + N])
            for i in (0, N)
        )
        return (first, second) if order == "gate_first" else (second, first)

    def _read(self, module: nn.Module, norm: ops.Norm | None) -> tuple[Any, ...]:
        """Layers, their arrays up to the last layer and of it, and what they are."""
        layers = [_child(module, name) for name in (self.gate, self.up, self.down)]
        (gate, gate_bias), (up, up_bias), down = map(_parts, layers)
        arrays, forms = flatten((norm, gate, up, gate_bias, up_bias))
        last, last_forms = flatten(down)
        return layers, arrays, last, (*map(type, layers), forms, last_forms)

    def _unpacked(self, module: nn.Module, norm: ops.Norm | None) -> list[mx.array]:
        halves = self.halves(module)
        assert halves is not None
        (gate, gate_bias), (up, up_bias) = halves
        return flatten((norm, gate, up, gate_bias, up_bias))[0]

    def _plan(
        self,
        module: nn.Module,
        x: mx.array,
        norm: ops.Norm | None,
        residual: bool,
        alone: bool,
    ) -> _Plan:
        check_dtype("feed_forward", "x", x)
        gated, down, refusal = None, None, ""
        try:
            gated, down = self._products(module, x, norm, residual)
        except ValueError as error:
            if alone:
                raise
            refusal = str(error)
        if not alone:
            refusal = refusal or self._misfit(module, x.dtype)
        return _Plan(self.cases(module, x.dtype, norm, residual), refusal, gated, down)

    def _products(
        self, module: nn.Module, x: mx.array, norm: ops.Norm | None, residual: bool
    ) -> tuple[Plan | None, Plan | None]:
        halves, layer = self.halves(module), getattr(module, self.down)
        if halves is None:
            return None, None
        (gate, gate_bias), (up, up_bias) = halves
        given = norm, gate, up, gate_bias, up_bias
        gated = plan_gated(x, self.variant, *given)
        weight = _plain_weight(layer)
        if weight is None:
            return gated, None
        y = mx.zeros((1, gated.case.N), x.dtype)
        return gated, plan_down(y, weight, layer.get("bias"), residual)

    def _misfit(self, module: nn.Module, dtype: mx.Dtype) -> str:
        """Whether stock would give an x of this dtype a result of another.

        It widens where a weight has another dtype; fused operations do not.
        """
        for name in (self.gate, self.up or self.gate, self.down):
            for part, a in zip(_PARTS, _inside(getattr(module, name)), strict=True):
                if a is not None and a.dtype not in (dtype, mx.uint32, mx.uint8):
                    return (
                        f"{part} of {name} is {dtype_name(a.dtype)} and x "
                        f"{dtype_name(dtype)}; stock widens the result"
                    )
        return ""

    def _multiply(
        self, layers: Sequence[Any], x: mx.array, norm: ops.Norm | None
    ) -> mx.array:
        """The gated product of what the layers give, called one by one."""
        x = x if norm is None else reference.rms_norm(x, norm)
        gate = project(layers[0], x)
        if self.packing is None:
            return ops.glu_mul(gate, project(layers[1], x), self.variant)
        order, layout = self.packing
        return ops.glu_mul_packed(gate, self.variant, order=order, layout=layout)


def _child(module: nn.Module, name: str) -> Any:
    """As ``getattr``, which takes its time in a module; "" is no child."""
    if name in module:
        return module[name]
    return getattr(module, name) if name else None


def _parts(layer: Any) -> tuple[Any, Any]:
    """Weight and bias of a layer; arrays and settings inside any other."""
    weight = weight_of(layer)
    if weight is not None:
        return weight, layer.get("bias")
    settings = vars(inner(layer)) if isinstance(layer, nn.Module) else {}
    return _inside(layer), tuple(map(settings.get, ("group_size", "bits", "mode")))


def _inside(layer: Any) -> tuple[mx.array | None, ...]:
    own = inner(layer)
    return tuple(map(own.get if isinstance(own, nn.Module) else {}.get, _PARTS))


def _plain_weight(layer: Any) -> Weight | None:
    return None if type(layer) in _SHARDED else weight_of(layer)


def _columns(layer: Any) -> int:
    """K of a layer that has to be called; 0 where it cannot be seen."""
    weight = weight_of(inner(layer))
    return 0 if weight is None else size(weight)[1]


def _project_back(layer: Any, y: mx.array, residual: mx.array | None) -> mx.array:
    weight = _plain_weight(layer)
    if weight is not None:
        bias = layer.get("bias")
        return ops.down_linear(y, weight, bias=bias, residual=residual)
    y = layer(y)
    return y if residual is None else residual + y
