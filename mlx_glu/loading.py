"""Checkpoint to model, in the representation that this machine runs fastest."""

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from . import blas
from .checkpoints.checkpoint import Checkpoint, open_checkpoint
from .hub import resolve
from .models.llama import Model
from .projection import cpu_streams
from .tokenizer import Tokenizer, load_tokenizer
from .weights import Weights, examine


@dataclass(frozen=True)
class Representation:
    """How weights are held in memory.

    Attributes:
        dtype: of float tensors, scales and affine biases; None keeps each.
        unpack: packed weights become dense.
        why: the reason, in words.
    """

    dtype: mx.Dtype | None
    unpack: bool
    why: str


def load(path: str | Path) -> tuple[Model, Tokenizer]:
    """Load a model and its tokenizer.

    Args:
        path: a Hugging Face or MLX folder, a GGUF file, or a hub id.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: damaged or unsupported; the message names file and tensor.
    """
    checkpoint = open_checkpoint(resolve(path))
    tokenizer = tokenizer_of(checkpoint)
    return model_of(examine(checkpoint)), tokenizer


def load_model(path: str | Path, *, as_stored: bool = False) -> Model:
    """Load a model alone; no tokenizer is needed.

    Args:
        path: as for `load`.
        as_stored: keep every dtype and packed weight, even where this machine
            runs another form faster.

    Returns:
        The model; ``model.representation`` says how its weights are held and
        ``model.notes`` what was decided on the way.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: damaged or unsupported; the message names file and tensor.
    """
    weights = examine(open_checkpoint(resolve(path)))
    return model_of(weights, as_stored=as_stored)


def model_of(weights: Weights, *, as_stored: bool = False) -> Model:
    """As `load_model`; the skeleton in ``weights`` becomes the model."""
    stored = Representation(None, False, "as stored")
    form = stored if as_stored else representation(weights)
    model = weights.model
    if not form.unpack:
        pack(model, weights)
    model.update(tree_unflatten(list(_arrays(weights, form).items())))
    model.representation = form.why
    model.notes = weights.notes
    model.eval()
    return model


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint alone."""
    if checkpoint.path.is_dir():
        return load_tokenizer(checkpoint.path)
    with TemporaryDirectory() as folder:
        checkpoint.write_tokenizer(Path(folder))
        return load_tokenizer(folder)


def representation(weights: Weights) -> Representation:
    """The fastest form that computes the same function on the default device.

    On the CPU, 16-bit products are slow and packed ones round in 16 bits, so
    everything is float32 there; with a fast BLAS a dense product beats a packed
    one at any number of tokens, if it fits into half of the free memory.
    """
    if mx.default_device() == mx.gpu:
        return Representation(None, False, "as stored")
    dense = 4 * weights.parameter_count
    fits = dense <= free_memory() // 2
    speed = f"{blas.gflops():.0f} GFLOP/s BLAS"
    if weights.quantization:
        if blas.is_fast() and fits:
            return Representation(mx.float32, True, f"unpacked to float32, {speed}")
        cause = speed if fits else f"float32 needs {dense / 1e9:.1f} GB"
        return Representation(mx.float32, False, f"packed, float32 scales: {cause}")
    if fits:
        return Representation(mx.float32, False, f"float32, {speed}")
    return Representation(None, False, f"as stored: float32 needs {dense / 1e9:.1f} GB")


def free_memory() -> int:
    """Bytes of memory that can be taken without swapping."""
    try:
        with open("/proc/meminfo") as file:
            rows = dict(line.split(":", 1) for line in file)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _names(weights: Weights, form: Representation) -> list[str]:
    names: list[str] = []
    for name in weights.shapes:
        names.append(name)
        module, _, last = name.rpartition(".")
        packed = weights.quantization.get(module) if last == "weight" else None
        if packed and not form.unpack:
            affine = packed.mode == "affine"
            names += [f"{module}.scales"] + [f"{module}.biases"] * affine
    return names


def _arrays(weights: Weights, form: Representation) -> dict[str, mx.array]:
    """Read every tensor, a few at a time: what they came from is freed early."""
    arrays: dict[str, mx.array] = {}
    streams = cpu_streams() if form.dtype else [mx.default_stream(mx.default_device())]
    batch: list[mx.array] = []
    for name in _names(weights, form):
        with mx.stream(streams[len(batch)]):
            arrays[name] = _read(weights, name, form)
        batch.append(arrays[name])
        if len(batch) == len(streams):
            mx.eval(batch)
            batch = []
    mx.eval(batch)
    return arrays


def _read(weights: Weights, name: str, form: Representation) -> mx.array:
    if form.unpack:
        return weights.load_dense(name, form.dtype)
    array = weights.load(name)
    if form.dtype is not None and mx.issubdtype(array.dtype, mx.floating):
        array = array.astype(form.dtype)
    return array


def pack(model: Model, weights: Weights) -> None:
    """Give packed modules their quantized layers, to be filled."""

    def layer(path: str, module: nn.Module) -> bool | dict[str, object]:
        packed = weights.quantization.get(path)
        return packed.as_config() if packed else False

    if weights.quantization:
        nn.quantize(model, class_predicate=layer)
