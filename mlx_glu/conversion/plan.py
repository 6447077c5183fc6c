"""What becomes of every tensor of a conversion, known before anything is written."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mlx.core as mx

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.stored import Tensor
from ..config import export
from ..grouping import Group, group
from ..quantization import Quantization
from ..tensor_info import TensorInfo
from ..weights import Weights
from .recipes import Formats, Request
from .row_packing import pack

DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


@dataclass(frozen=True)
class Plan:
    """Every module's format and every output tensor.

    Attributes:
        weights: the source.
        formats: module path to format; None stays float.
        dtype: what --dtype asked for.
        kept_float: modules that the requested format does not fit, and why.
    """

    weights: Weights
    formats: Formats
    dtype: mx.Dtype | None
    kept_float: dict[str, str]

    @cached_property
    def outputs(self) -> dict[str, TensorInfo]:
        """Every tensor that will be written, in order."""
        found: dict[str, TensorInfo] = {}
        for name in self.weights.shapes:
            found |= self.outputs_of(name)
        return found

    @cached_property
    def float_dtype(self) -> mx.Dtype | None:
        """--dtype, else that of scales that stay as they are, else config.json's.

        None keeps each float tensor's own.
        """
        if self.dtype is not None:
            return self.dtype
        for module, packed in self.weights.quantization.items():
            if packed.mode == "affine" and self._keeps(module):
                return self.weights.info(f"{module}.scales").dtype
        config = self.weights.checkpoint.config
        return DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))

    @property
    def nbytes(self) -> int:
        """Size of all that will be written."""
        return sum(info.nbytes for info in self.outputs.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits that will be written over parameters, scales included."""
        return 8 * self.nbytes / self.weights.parameter_count

    def groups(self) -> list[Group]:
        """What each part of the model gets, and weighs."""
        tensors = {name: Tensor.of(info) for name, info in self.outputs.items()}
        packed = {module: own for module, own in self.formats.items() if own}
        return group(tensors, packed)

    def outputs_of(self, name: str) -> dict[str, TensorInfo]:
        """The tensors that parameter ``name`` becomes."""
        module, packed = self._module(name)
        dense = TensorInfo(self.dense_dtype(name), self.weights.shapes[name])
        if packed is None:
            return {name: dense}
        if self._keeps(module) and packed.mode == "affine" and self.dtype is None:
            scales = self.weights.info(f"{module}.scales")
            dense = dense._replace(dtype=scales.dtype)
        return {f"{module}.{k}": info for k, info in packed.packed(dense).items()}

    def arrays_of(self, name: str) -> list[mx.array]:
        """Compute the tensors of `outputs_of`, in its order."""
        module, packed = self._module(name)
        if packed and self._keeps(module):
            outputs = self.outputs_of(name).items()
            return [self.weights.load(n).astype(info.dtype) for n, info in outputs]
        dense = self.weights.load_dense(name, self.dense_dtype(name))
        if packed is None:
            return [dense]
        return pack(dense, packed)

    def dense_dtype(self, name: str) -> mx.Dtype:
        """The dtype of a float tensor: one for all, else the tensor's own."""
        own = self.weights.info(name).dtype
        return self.float_dtype or (mx.bfloat16 if own == mx.uint32 else own)

    def _module(self, name: str) -> tuple[str, Quantization | None]:
        """Path and format of the module that a parameter is the weight of."""
        module, _, last = name.rpartition(".")
        return module, self.formats.get(module) if last == "weight" else None

    def _keeps(self, module: str) -> bool:
        """Does a module keep the packed weight that the source has?"""
        stored = self.weights.quantization.get(module)
        return stored is not None and self.formats[module] == stored


def make_plan(
    weights: Weights,
    request: Request | None = None,
    dtype: mx.Dtype | None = None,
    dequantize: bool = False,
) -> Plan:
    """Decide every module's format and every tensor's dtype.

    Args:
        weights: the source.
        request: what to pack, or None.
        dtype: of float tensors, or None.
        dequantize: unpack what is packed.

    Raises:
        ValueError: no layer can take its format; see also ``Request.formats``.
    """
    if request is None:
        stored = {} if dequantize else weights.quantization
        formats: Formats = {m: stored.get(m) for m in weights.modules()}
        return Plan(weights, formats, dtype, {})
    formats, kept_float = request.formats(weights)
    if not any(formats.values()):
        reason = next(iter(kept_float.values()), "")
        raise ValueError(
            f"[convert] no layer can be packed with {request.base}: {reason}; choose "
            "a smaller group size"
            if reason
            else "[convert] no layer is left to be packed; leave out -q"
        )
    if weights.quantization:
        weights.notes.append(
            "the source is quantized already, and packing it again loses more; "
            "leave out -q to keep it as it is"
        )
    return Plan(weights, formats, dtype, kept_float)


class Converted(Checkpoint):
    """What a conversion would write, made when it is asked for and not kept."""

    def __init__(self, plan: Plan) -> None:
        source = plan.weights.checkpoint
        self.path = source.path
        self.config = export(source.config, plan.weights.config)
        self.tensors = plan.outputs
        self._plan = plan
        self._ready: dict[str, mx.array] = {}

    def load(self, name: str) -> mx.array:
        """Compute one tensor, and the others that come with it."""
        if name not in self._ready:
            module, _, last = name.rpartition(".")
            weight = f"{module}.weight"
            parameter = weight if last in ("scales", "biases") else name
            names = self._plan.outputs_of(parameter)
            arrays = self._plan.arrays_of(parameter)
            self._ready |= zip(names, arrays, strict=True)
        return self._ready.pop(name)

    def write_tokenizer(self, folder: Path) -> None:
        """Write those of the source."""
        self._plan.weights.checkpoint.write_tokenizer(folder)
