"""What becomes of every tensor of a conversion, known before anything is written."""

from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from .quantization import Quantization
from .safetensors import TensorInfo
from .weights import Weights

DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


@dataclass(frozen=True)
class Plan:
    """Every module's format and every output tensor.

    Attributes:
        formats: module path to format; None stays float.
        outputs: every tensor that will be written, in order.
        dtype: what --dtype asked for.
        kept_float: modules that the requested format does not fit, and why.
    """

    weights: Weights
    formats: dict[str, Quantization | None]
    outputs: dict[str, TensorInfo]
    dtype: mx.Dtype | None
    kept_float: dict[str, str]

    @cached_property
    def float_dtype(self) -> mx.Dtype | None:
        """--dtype, else that of scales that stay as they are, else config.json's.

        None keeps each float tensor's own.
        """
        if self.dtype is not None:
            return self.dtype
        for module, packed in self.weights.quantization.items():
            if packed.mode == "affine" and kept_packed(self, module):
                return self.weights.info(f"{module}.scales").dtype
        config = self.weights.checkpoint.config
        return DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))

    @property
    def nbytes(self) -> int:
        """Size of all that will be written."""
        return sum(info.nbytes for info in self.outputs.values())


def make_plan(
    weights: Weights,
    requested: Quantization | None,
    dtype: mx.Dtype | None,
    dequantize: bool,
) -> Plan:
    """Decide every module's format and every tensor's dtype.

    Args:
        weights: the source.
        requested: the format to pack with, or None.
        dtype: of float tensors, or None.
        dequantize: unpack what is packed.

    Raises:
        ValueError: no layer can take the format.
    """
    kept_float: dict[str, str] = {}
    formats: dict[str, Quantization | None] = {}
    for module in weights.modules():
        stored = weights.quantization.get(module)
        formats[module] = None if dequantize else requested or stored
        K = weights.shapes[f"{module}.weight"][-1]
        if requested and K % requested.group_size:
            formats[module] = None
            kept_float[module] = (
                f"{K} inputs are not a multiple of group size {requested.group_size}"
            )
    if requested and len(kept_float) == len(formats):
        raise ValueError(
            f"[convert] no layer can be packed with {requested}: "
            f"{next(iter(kept_float.values()))}; choose a smaller group size"
        )
    if requested and weights.quantization:
        weights.notes.append(
            "the source is quantized already, and packing it again loses more; "
            "leave out -q to keep it as it is"
        )
    plan = Plan(weights, formats, {}, dtype, kept_float)
    for name in weights.shapes:
        plan.outputs.update(outputs_of(plan, name))
    return plan


def outputs_of(plan: Plan, name: str) -> dict[str, TensorInfo]:
    """The tensors that parameter ``name`` becomes."""
    weights, (module, _, last) = plan.weights, name.rpartition(".")
    dense = TensorInfo(dense_dtype(plan, name), weights.shapes[name])
    packed = plan.formats.get(module) if last == "weight" else None
    if packed is None:
        return {name: dense}
    if kept_packed(plan, module) and packed.mode == "affine" and plan.dtype is None:
        dense = dense._replace(dtype=weights.info(f"{module}.scales").dtype)
    return {f"{module}.{k}": info for k, info in packed.packed(dense).items()}


def dense_dtype(plan: Plan, name: str) -> mx.Dtype:
    """The dtype of a float tensor: one for all, else the tensor's own."""
    own = plan.weights.info(name).dtype
    return plan.float_dtype or (mx.bfloat16 if own == mx.uint32 else own)


def kept_packed(plan: Plan, module: str) -> bool:
    """Does a module keep the packed weight that the source has?"""
    stored = plan.weights.quantization.get(module)
    return stored is not None and plan.formats[module] == stored


def arrays_of(plan: Plan, name: str) -> list[mx.array]:
    """Compute the tensors of `outputs_of`, in its order."""
    weights, (module, _, last) = plan.weights, name.rpartition(".")
    outputs = outputs_of(plan, name)
    packed = plan.formats.get(module) if last == "weight" else None
    if packed and kept_packed(plan, module):
        return [weights.load(n).astype(info.dtype) for n, info in outputs.items()]
    dense = weights.load_dense(name, dense_dtype(plan, name))
    if packed is None:
        return [dense]
    return list(mx.quantize(dense, **packed.as_config()))
