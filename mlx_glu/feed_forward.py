"""A gated block over layers of any kind: packed, adapted, sharded.

A projection that is its arrays alone goes into the fused operations; any other, such
as an adapter, is called as it is, and its result is gated like the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers import distributed

from . import lean, ops, reference
from .checks import check_dtype
from .choosing import (
    BlockPlan,
    Cases,
    Plan,
    count_rows,
    down_case,
    linear_case,
    mul_case,
    plan_down,
    plan_gated,
    planned,
    row_form,
)
from .dispatch import note
from .elementwise import Packing
from .fused import flatten
from .linear_layers import (
    SHARDED,
    Half,
    child_of,
    columns_of,
    misfit,
    own_weight,
    parts_of,
    project,
    weight_of,
)
from .quantization import dtype_name, rows, take_rows
from .variants import Variant


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
        training: bool = False,
    ) -> mx.array:
        """Run the block: ``down(phi(gate(x)) * psi(up(x)))``, fused where it can be.

        Args:
            module: has the projections.
            x: [..., K] activations; float16, bfloat16 or float32.
            norm: of ``x`` before the projections, or None.
            residual: [..., K], added to the result, or None.
            otherwise: called with module and x where no part would be fused, or
                where stock would give another dtype; None for stock operations.
            training: whether the gradient of stock operations keeps gate and up but
                not their product, which costs some time.

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
        choices = plan.choices(count_rows(x), (x, norm, residual, module))
        if otherwise is not None and all(c.impl == "stock" for c in choices):
            for choice in choices:
                note(choice)
            return otherwise(module, x)
        if plan.cases.linear is not None:
            note(choices[0])
        if plan.gated is None or choices[0].impl == "stock":
            halves = self._project(layers, x, norm)
            if halves is not None and training:
                back = lean.project_product_back
                return back(layers[2], self._multiply, halves, residual)
            if halves is not None:
                y = self._multiply(*halves)
                return lean.project_back(layers[2], y, residual)
            if otherwise is not None:
                why = "a projection gives another dtype than that of x"
                note(choices[0]._replace(impl="stock", why=why))
                return otherwise(module, x)
            raise ValueError(
                "[feed_forward] projections give the dtype of x, "
                f"{dtype_name(x.dtype)}, but one does not; cast its weights"
            )
        y = self._run(plan, module, x, norm, arrays)
        if plan.down is None or choices[-1].impl == "stock":
            return lean.project_back(layers[2], y, residual)
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
        weight = own_weight(layer)
        if weight is not None:
            down = down_case(dtype, weight, "bias" in layer, residual)
        N = linear.N if linear else down.K if down else columns_of(layer)
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
            Half(take_rows(gate, part), None if bias is None else bias[part])
            for part in (slice(N), slice(N, 2 * N))
        )
        return (first, second) if order == "gate_first" else (second, first)

    def _read(self, module: nn.Module, norm: ops.Norm | None) -> tuple[Any, ...]:
        """Layers, their arrays up to the last layer and of it, and what they are."""
        layers = [child_of(module, name) for name in (self.gate, self.up, self.down)]
        (gate, gate_bias), (up, up_bias), down = map(parts_of, layers)
        arrays, forms = flatten((norm, gate, up, gate_bias, up_bias))
        last, last_forms = flatten(down)
        return layers, arrays, last, (*map(type, layers), forms, last_forms)

    def _run(
        self,
        plan: BlockPlan,
        module: nn.Module,
        x: mx.array,
        norm: ops.Norm | None,
        arrays: list[mx.array],
    ) -> mx.array:
        """The fused product of gate and up."""
        assert plan.gated is not None
        if self.packing is not None:
            halves = self.halves(module)
            assert halves is not None
            (gate, gate_bias), (up, up_bias) = halves
            arrays = flatten((norm, gate, up, gate_bias, up_bias))[0]
        layer = child_of(module, self.gate)
        if type(layer) in SHARDED:
            x = distributed.sum_gradients(layer.group)(x)
        return plan.gated.run(x, *arrays)

    def _plan(
        self,
        module: nn.Module,
        x: mx.array,
        norm: ops.Norm | None,
        residual: bool,
        alone: bool,
    ) -> BlockPlan:
        check_dtype("feed_forward", "x", x)
        gated, down, refusal = None, None, ""
        try:
            gated, down = self._products(module, x, norm, residual)
        except ValueError as error:
            if alone:
                raise
            refusal = str(error)
        if not alone:
            names = self.gate, self.up or self.gate, self.down
            refusal = misfit(module, names, x.dtype) or refusal
        return BlockPlan(
            self.cases(module, x.dtype, norm, residual), refusal, gated, down
        )

    def _products(
        self, module: nn.Module, x: mx.array, norm: ops.Norm | None, residual: bool
    ) -> tuple[Plan | None, Plan | None]:
        halves, layer = self.halves(module), getattr(module, self.down)
        if halves is None:
            return None, None
        (gate, gate_bias), (up, up_bias) = halves
        given = norm, gate, up, gate_bias, up_bias
        gated = plan_gated(x, self.variant, *given)
        weight = own_weight(layer)
        if weight is None:
            return gated, None
        y = mx.zeros((1, gated.case.N), x.dtype)
        return gated, plan_down(y, weight, layer.get("bias"), residual)

    def _project(
        self, layers: Sequence[Any], x: mx.array, norm: ops.Norm | None
    ) -> list[mx.array] | None:
        """Gate and up, or one array with both, as the layers give them.

        None where one gives another dtype than that of x.
        """
        x = x if norm is None else reference.rms_norm(x, norm)
        own = layers[:1] if self.packing is not None else layers[:2]
        halves = [project(layer, x) for layer in own]
        return halves if all(a.dtype == x.dtype for a in halves) else None

    def _multiply(self, first: mx.array, *second: mx.array) -> mx.array:
        """The gated product of what :meth:`_project` gives."""
        if self.packing is None:
            return ops.glu_mul(first, second[0], self.variant)
        order, layout = self.packing
        return ops.glu_mul_packed(first, self.variant, order=order, layout=layout)
