"""The kernel text that MLX makes of a body: its name, parameters and instantiation.

``tests/test_sim_golden.py`` holds it against what the installed MLX itself makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

TYPES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.float32: "float",
    mx.bfloat16: "bfloat16_t",
    mx.complex64: "complex64_t",
}
# A parameter each, if the body has the text.
ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}
# Of an input with dimensions, if the body has the text <input>_<key>.
LAYOUT = {
    "shape": "int* {}_shape",
    "strides": "int64_t* {}_strides",
    "ndim": "int& {}_ndim",
}
# Inputs smaller than this are in the constant address space.
MAX_CONSTANT_SIZE = 8

TemplateValue = int | bool | mx.Dtype
Template = Sequence[tuple[str, TemplateValue]]


def type_name(dtype: object) -> str:
    """Return MLX's Metal name of a dtype.

    Raises:
        ValueError: Metal has no such type.
    """
    if not isinstance(dtype, mx.Dtype) or dtype not in TYPES:
        have = ", ".join(str(known).split(".")[-1] for known in TYPES)
        raise ValueError(f"[metal_kernel] a dtype is one of {have}, but got {dtype!r}")
    return TYPES[dtype]


@dataclass(frozen=True)
class Signature:
    """What the constructor of a kernel knows of its text."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str = ""
    atomic_outputs: bool = False

    def layout(self, position: int, ndim: int) -> list[str]:
        """Return which keys of :data:`LAYOUT` follow an input, in buffer order."""
        name = self.input_names[position]
        return [key for key in LAYOUT if ndim and f"{name}_{key}" in self.source]

    def text(
        self,
        inputs: Sequence[mx.array],
        output_dtypes: Sequence[mx.Dtype],
        template: Template = (),
    ) -> tuple[str, str]:
        """Write the kernel.

        Args:
            inputs: one array for each input name.
            output_dtypes: one dtype for each output name.
            template: names and values of template arguments.

        Returns:
            The name of the instance, and the text without MLX's preamble.

        Raises:
            ValueError: Metal lacks a dtype, or a template value is of another kind.
        """
        values = ", ".join(_template_value(name, value) for name, value in template)
        kernel = self._instance_name(values, inputs, output_dtypes)
        parameters = self._parameters(inputs, output_dtypes)
        head, tail = "", ""
        if template:
            names = ", ".join(f"{_template_kind(v)} {n}" for n, v in template)
            head = f"template <{names}>\n"
            tail = (
                f'\ntemplate [[host_name("{kernel}")]] [[kernel]] '
                f"decltype({kernel}<{values}>) {kernel}<{values}>;\n"
            )
        signature = f"[[kernel]] void {kernel}(\n" + ",\n".join(parameters) + ") {\n"
        return kernel, self.header + head + signature + self.source + "\n}\n" + tail

    def _instance_name(
        self, values: str, inputs: Sequence[mx.array], dtypes: Sequence[mx.Dtype]
    ) -> str:
        name = f"custom_kernel_{self.name}"
        if values:
            name += "__" + values.replace(", ", "_").replace("-", "_")
        for array in inputs:
            place = "c" if array.size < MAX_CONSTANT_SIZE else ""
            name += f"_{type_name(array.dtype)}{place if array.ndim else 's'}"
        return name + "".join(f"_{type_name(dtype)}" for dtype in dtypes)

    def _parameters(
        self, inputs: Sequence[mx.array], dtypes: Sequence[mx.Dtype]
    ) -> list[str]:
        texts = []
        for position, array in enumerate(inputs):
            name = self.input_names[position]
            space = "constant" if array.size < MAX_CONSTANT_SIZE else "device"
            sign = "*" if array.ndim else "&"
            texts.append(f"const {space} {type_name(array.dtype)}{sign} {name}")
            for key in self.layout(position, array.ndim):
                texts.append(f"const constant {LAYOUT[key].format(name)}")
        for name, dtype in zip(self.output_names, dtypes, strict=True):
            kind = type_name(dtype)
            kind = f"atomic<{kind}>" if self.atomic_outputs else kind
            texts.append(f"device {kind}* {name}")
        numbered = [f"  {text} [[buffer({i})]]" for i, text in enumerate(texts)]
        used = [(a, kind) for a, kind in ATTRIBUTES.items() if a in self.source]
        return numbered + [f"  {kind} {a} [[{a}]]" for a, kind in used]


def _template_kind(value: TemplateValue) -> str:
    if isinstance(value, bool):
        return "bool"
    return "int" if isinstance(value, int) else "typename"


def _template_value(name: str, value: object) -> str:
    if isinstance(value, int) and -(2**31) <= value < 2**31:
        return str(int(value))
    if isinstance(value, mx.Dtype):
        return type_name(value)
    raise ValueError(
        f"[metal_kernel] a template argument is a 32-bit int, a bool or a dtype, but "
        f"{name!r} is {value!r}; write other values into the source"
    )
