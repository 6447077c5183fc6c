"""Convert a checkpoint to the community's MLX format, one tensor at a time.

The folder is what mlx-lm writes: config.json, ``model*.safetensors``, an index,
the tokenizer's own files. It appears at its destination only when complete.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
from tqdm import tqdm

from .checkpoint import open_checkpoint
from .conversion_plan import DTYPES, Plan, arrays_of, dense_dtype, make_plan
from .destination import check_destination, new_folder
from .hub import resolve
from .model_folder import write_card, write_config, write_index, write_tokenizer
from .quantization import choose
from .safetensors import Writer, shards
from .weights import examine

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
    plan = make_plan(weights, requested, DTYPES.get(dtype or ""), dequantize)
    with new_folder(destination, overwrite) as folder:
        weight_map = _write_weights(plan, folder, check, progress)
        write_index(folder, weight_map, plan.nbytes, weights.parameter_count)
        dtype = str(dense_dtype(plan, "model.norm.weight"))
        write_config(folder, weights, plan.formats, dtype.removeprefix("mlx.core."))
        write_tokenizer(folder, weights)
        write_card(folder, str(hf_path))
    bits = 8 * plan.nbytes / weights.parameter_count
    return Report(destination, bits, plan.kept_float, weights.notes)


def _write_weights(
    plan: Plan, folder: Path, check: bool, progress: bool
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


def _ready(plan: Plan, check: bool) -> Iterator[mx.array]:
    """Every output, computed one parameter at a time."""
    for name in plan.weights.shapes:
        arrays = arrays_of(plan, name)
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
