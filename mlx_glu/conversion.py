"""Convert a checkpoint to the community's MLX format, one tensor at a time.

The folder is what mlx-lm writes: config.json, ``model*.safetensors``, an index,
the tokenizer's own files. It appears at its destination only when complete.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import mlx.core as mx
from tqdm import tqdm

from .checkpoint import open_checkpoint
from .destination import check_destination, new_folder
from .hub import resolve
from .model_folder import write_card, write_config, write_index, write_tokenizer
from .quantization import Quantization, choose
from .safetensors import TensorInfo, Writer, shards
from .weights import Weights, examine

DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}

#: mlx-lm's limit, so that the same model has the same number of files.
MAX_SHARD = 5 << 30


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        path: the folder that was written.
        bits_per_weight: stored bits over parameters, scales included.
        kept_float: modules that the quantization could not take, and why.
        notes: decisions a user should hear of.
    """

    path: Path
    bits_per_weight: float
    kept_float: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Plan:
    """What becomes of every module and tensor, known before anything is written."""

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
            if packed.mode == "affine" and _kept_packed(self, module):
                return self.weights.info(f"{module}.scales").dtype
        config = self.weights.checkpoint.config
        return DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))

    @property
    def nbytes(self) -> int:
        """Size of all that will be written."""
        return sum(info.nbytes for info in self.outputs.values())


def convert(
    hf_path: str | Path,
    mlx_path: str | Path = "mlx_model",
    quantize: bool = False,
    q_group_size: int | None = None,
    q_bits: int | None = None,
    q_mode: str = "affine",
    dtype: str | None = None,
    dequantize: bool = False,
    *,
    overwrite: bool = False,
    check: bool = False,
    progress: bool = False,
) -> Report:
    """Convert a checkpoint to an MLX folder.

    Args:
        hf_path: a Hugging Face or MLX folder, a GGUF file, or a hub id.
        mlx_path: the folder to make.
        quantize: pack the linear layers and embeddings.
        q_group_size: weights per scale; None takes the mode's default.
        q_bits: bits per weight; None takes the mode's default.
        q_mode: ``affine``, ``mxfp4``, ``mxfp8`` or ``nvfp4``.
        dtype: of float tensors; None takes the config's, else each tensor's own.
        dequantize: unpack a quantized checkpoint.
        overwrite: replace ``mlx_path`` if it holds a model.
        check: refuse NaN and infinity.
        progress: show a progress bar on stderr.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: nothing at ``hf_path``.
        FileExistsError: ``mlx_path`` exists and ``overwrite`` is not set.
        ValueError: damaged input or impossible settings. Nothing is written.
    """
    requested = choose(q_mode, q_group_size, q_bits) if quantize else None
    if quantize and dequantize:
        raise ValueError("[convert] choose between quantize and dequantize")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(
            f"[convert] dtype {dtype!r} is unknown; choose from {', '.join(DTYPES)}"
        )
    source, destination = resolve(hf_path), Path(os.path.expanduser(mlx_path))
    check_destination(source, destination, overwrite)
    weights = examine(open_checkpoint(source))
    plan = _plan(weights, requested, DTYPES.get(dtype or ""), dequantize)
    with new_folder(destination, overwrite) as folder:
        weight_map = _write_weights(plan, folder, check, progress)
        write_index(folder, weight_map, plan.nbytes, weights.parameter_count)
        dtype = str(_dense_dtype(plan, "model.norm.weight"))
        write_config(folder, weights, plan.formats, dtype.removeprefix("mlx.core."))
        write_tokenizer(folder, weights)
        write_card(folder, str(hf_path))
    bits = 8 * plan.nbytes / weights.parameter_count
    return Report(destination, bits, plan.kept_float, weights.notes)


def _plan(
    weights: Weights,
    requested: Quantization | None,
    dtype: mx.Dtype | None,
    dequantize: bool,
) -> _Plan:
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
    plan = _Plan(weights, formats, {}, dtype, kept_float)
    for name in weights.shapes:
        plan.outputs.update(_outputs(plan, name))
    return plan


def _outputs(plan: _Plan, name: str) -> dict[str, TensorInfo]:
    """The tensors that parameter ``name`` becomes."""
    weights, (module, _, last) = plan.weights, name.rpartition(".")
    dense = TensorInfo(_dense_dtype(plan, name), weights.shapes[name])
    packed = plan.formats.get(module) if last == "weight" else None
    if packed is None:
        return {name: dense}
    if _kept_packed(plan, module) and packed.mode == "affine" and plan.dtype is None:
        dense = dense._replace(dtype=weights.info(f"{module}.scales").dtype)
    return {f"{module}.{k}": info for k, info in packed.packed(dense).items()}


def _dense_dtype(plan: _Plan, name: str) -> mx.Dtype:
    """The dtype of a float tensor: one for all, else the tensor's own."""
    own = plan.weights.info(name).dtype
    return plan.float_dtype or (mx.bfloat16 if own == mx.uint32 else own)


def _kept_packed(plan: _Plan, module: str) -> bool:
    stored = plan.weights.quantization.get(module)
    return stored is not None and plan.formats[module] == stored


def _arrays(plan: _Plan, name: str) -> list[mx.array]:
    """Compute the tensors of `_outputs`, in its order."""
    weights, (module, _, last) = plan.weights, name.rpartition(".")
    outputs = _outputs(plan, name)
    packed = plan.formats.get(module) if last == "weight" else None
    if packed and _kept_packed(plan, module):
        return [weights.load(n).astype(info.dtype) for n, info in outputs.items()]
    dense = weights.load_dense(name, _dense_dtype(plan, name))
    if packed is None:
        return [dense]
    return list(mx.quantize(dense, **packed.as_config()))


def _write_weights(
    plan: _Plan, folder: Path, check: bool, progress: bool
) -> dict[str, str]:
    """Write every tensor; return the file name of each."""
    files = shards(plan.outputs.items(), MAX_SHARD)
    weight_map: dict[str, str] = {}
    ready = _ready(plan, check)
    bar = tqdm(
        total=plan.nbytes,
        unit="B",
        unit_scale=True,
        desc="convert",
        disable=not progress,
    )
    with bar:
        for number, tensors in enumerate(files, start=1):
            file_name = f"model-{number:05}-of-{len(files):05}.safetensors"
            if len(files) == 1:
                file_name = "model.safetensors"
            with Writer(folder / file_name, tensors) as writer:
                for name in tensors:
                    writer.write(name, next(ready))
                    weight_map[name] = file_name
                    bar.update(tensors[name].nbytes)
    return weight_map


def _ready(plan: _Plan, check: bool) -> Iterator[mx.array]:
    """Every output, computed one parameter at a time."""
    for name in plan.weights.shapes:
        arrays = _arrays(plan, name)
        mx.eval(arrays)
        # Packing can hide NaN, so the source counts as well.
        checked = [plan.weights.load_dense(name), *arrays] if check else []
        for array in checked:
            is_float = mx.issubdtype(array.dtype, mx.floating)
            if is_float and not mx.isfinite(array).all():
                raise ValueError(
                    f"[convert] {plan.weights.checkpoint.path}: {name} holds NaN or "
                    "infinity"
                )
        yield from arrays
