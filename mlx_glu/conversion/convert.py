"""Convert a checkpoint to the community's MLX format, one tensor at a time.

The folder is what mlx-lm writes: config.json, ``model*.safetensors``, an index,
the tokenizer's own files. It appears at its destination only when complete.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from ..checkpoints.checkpoint import open_checkpoint
from ..grouping import Group
from ..hashing import BackgroundHashes
from ..hub import resolve
from ..tensor_info import TensorInfo
from ..weights import examine
from . import provenance
from .destination import check_destination, new_folder
from .journal import Journal
from .model_folder import write_card, write_config, write_index, write_tokenizer
from .plan import DTYPES, Converted, Plan, make_plan
from .recipes import Predicate, Request
from .writer import Writer, shards

#: mlx-lm's limit, so that the same model has the same number of files.
MAX_SHARD = 5 << 30

#: Bytes of freed memory that MLX may keep, and weights checked at a time.
_CACHE, _SLICE = 32 << 20, 1 << 22

#: Arguments that say where and how, and have no part in what is made.
_NOT_SETTINGS = ("hf_path", "mlx_path", "overwrite", "resume", "progress")


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        path: the folder that was written.
        bits_per_weight: stored bits over parameters, scales included.
        kept_float: modules that the quantization could not take, and why.
        notes: decisions a user should hear of.
        groups: what each part of the model got, and weighs.
    """

    path: Path
    bits_per_weight: float
    kept_float: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


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
    quant_predicate: str | Predicate | None = None,
    q_ffn_bits: int | None = None,
    q_overrides: Mapping[str, str] | None = None,
    q_skip: Sequence[str] = (),
    revision: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
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
        quant_predicate: a recipe of mlx-lm, or its callable, which chooses each
            module's format; what wins over what is at the head of ``recipes.py``.
        q_ffn_bits: bits of the feed-forwards alone.
        q_overrides: pattern of module paths to format, as ``quantization.parse``
            reads it.
        q_skip: patterns of modules that stay float.
        revision: branch, tag or commit on the Hub.
        overwrite: replace ``mlx_path`` if it holds a model.
        resume: continue where a conversion with the same settings was interrupted,
            if one was; otherwise what it left is removed.
        check: refuse NaN and infinity.
        progress: show a progress bar on stderr.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: nothing at ``hf_path``.
        FileExistsError: ``mlx_path`` exists and ``overwrite`` is not set.
        OSError: a file cannot be read or written, or another conversion writes to
            ``mlx_path``. Nothing is there, or what was; much work is kept to resume.
        ValueError: damaged input or impossible settings. Nothing is written.
    """
    settings = {k: v for k, v in locals().items() if v and k not in _NOT_SETTINGS}
    requested = None
    if quantize:
        requested = Request.of(
            q_mode,
            q_group_size,
            q_bits,
            predicate=quant_predicate,
            ffn_bits=q_ffn_bits,
            overrides=q_overrides,
            skip=q_skip,
        )
    if quantize and dequantize:
        raise ValueError("[convert] choose between quantize and dequantize")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(
            f"[convert] dtype {dtype!r} is unknown; choose from {', '.join(DTYPES)}"
        )
    source = resolve(hf_path, revision)
    destination = Path(os.path.expanduser(mlx_path))
    check_destination(source, destination, overwrite)
    checkpoint = open_checkpoint(source)
    weights = examine(checkpoint)
    plan = make_plan(weights, requested, DTYPES.get(dtype or ""), dequantize)
    files = _files(plan)
    asked = provenance.about(checkpoint, _plain(settings), files)
    with new_folder(destination, overwrite, asked, resume) as (folder, journal):
        write_index(folder, files, plan.nbytes, weights.parameter_count)
        vector = next(n for n, shape in weights.shapes.items() if len(shape) == 1)
        dtype = str(plan.dense_dtype(vector))
        write_config(folder, weights, plan.formats, dtype.removeprefix("mlx.core."))
        write_tokenizer(folder, weights)
        write_card(folder, str(hf_path))
        read = provenance.source_files(checkpoint)
        with provenance.unchanged(read), BackgroundHashes(read) as hashes:
            written = _write_weights(plan, files, folder, journal, check, progress)
            provenance.write(
                folder, checkpoint, asked, plan.formats, weights.notes, hashes, written
            )
    bits, groups = plan.bits_per_weight, plan.groups()
    return Report(destination, bits, plan.kept_float, weights.notes, groups)


def _plain(value: Any) -> Any:
    """A setting as a JSON value; a callable is known by its name."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return value


def _files(plan: Plan) -> dict[str, dict[str, TensorInfo]]:
    """The tensors of each file that will be written."""
    parts = shards(plan.outputs.items(), MAX_SHARD)
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    names = (f"model-{i + 1:05}-of-{len(parts):05}" for i in range(len(parts)))
    return {
        f"{name}.safetensors": part for name, part in zip(names, parts, strict=True)
    }


def _write_weights(
    plan: Plan,
    files: Mapping[str, Mapping[str, TensorInfo]],
    folder: Path,
    journal: Journal,
    check: bool,
    progress: bool,
) -> dict[str, str]:
    """Write the tensors that are not there yet; return the sha256 of each file."""
    outputs, written = Converted(plan), {}
    bar = tqdm(
        total=plan.nbytes,
        unit="B",
        unit_scale=True,
        desc="convert",
        disable=not progress,
    )
    cache = mx.set_cache_limit(_CACHE)
    try:
        for file_name, tensors in files.items():
            marks, add = journal.marks[file_name], partial(journal.add, file_name)
            with Writer(folder / file_name, tensors, marks, add) as writer:
                left = list(writer.left)
                bar.update(sum(tensors[n].nbytes for n in tensors.keys() - {*left}))
                for name in left:
                    array = outputs.load(name)
                    if check:
                        _check(plan, name, array)
                    writer.write(name, array)
                    bar.update(array.nbytes)
            written[file_name] = writer.mark.sha256
    finally:
        bar.close()
        mx.set_cache_limit(cache)
    return written


def _check(plan: Plan, name: str, array: mx.array) -> None:
    """Packing can hide NaN, so of a packed weight the source counts."""
    if not mx.issubdtype(array.dtype, mx.floating):
        if name not in plan.weights.shapes:
            return
        array = plan.weights.load_dense(name)
    flat = array.reshape(-1)
    for start in range(0, flat.size, _SLICE):
        if not mx.isfinite(flat[start : start + _SLICE]).all():
            raise ValueError(
                f"[convert] {plan.weights.checkpoint.path}: {name} holds NaN or "
                "infinity"
            )
