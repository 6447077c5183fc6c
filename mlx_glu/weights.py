"""Does a checkpoint fit its model? Every tensor accounted for before any is read."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .checkpoints.arrangement import Arranged, text_tensors
from .checkpoints.checkpoint import Checkpoint
from .config import ModelConfig
from .families import MULTIMODAL, text_part
from .models import MODEL_TYPES, build
from .models.llama import Model
from .quantization import FLOATS, Quantization, dequantize, read_off
from .tensor_info import TensorInfo

_HEAD = "lm_head"


@dataclass
class Weights:
    """A checkpoint that fits.

    Attributes:
        config: with ``tie_word_embeddings`` decided.
        model: the skeleton; its parameters are placeholders.
        shapes: parameter name to the shape of the unpacked weight.
        quantization: module path to format, for the packed modules.
        notes: decisions a user should hear of, one line each.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    model: Model
    shapes: dict[str, tuple[int, ...]]
    quantization: dict[str, Quantization] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def parameter_count(self) -> int:
        """Weights of the unpacked model."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def modules(self) -> Iterator[str]:
        """Paths of the modules that a quantization can pack, in model order."""
        tree = self.model.leaf_modules()
        leaves: Any = tree_flatten(tree, is_leaf=nn.Module.is_module)
        can_pack = {path for path, leaf in leaves if hasattr(leaf, "to_quantized")}
        for name in self.shapes:
            module, _, last = name.rpartition(".")
            if last == "weight" and module in can_pack:
                yield module

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape of a parameter as stored."""
        return self.checkpoint.tensors[name]

    def load(self, name: str) -> mx.array:
        """Read a parameter as stored."""
        return self.checkpoint.load(name)

    def load_dense(self, name: str, dtype: mx.Dtype | None = None) -> mx.array:
        """Read a parameter, unpacked where it is packed, as ``dtype``."""
        module, _, last = name.rpartition(".")
        packed = self.quantization.get(module) if last == "weight" else None
        if packed is None:
            array = self.load(name)
            return array if dtype is None else array.astype(dtype)
        affine = packed.mode == "affine"
        scales = self.load(f"{module}.scales")
        biases = self.load(f"{module}.biases") if affine else None
        if dtype is None:
            dtype = scales.dtype if affine else mx.bfloat16
        return dequantize(self.load(name), scales, biases, packed, dtype)


def examine(checkpoint: Checkpoint) -> Weights:
    """Compare every tensor with what the model needs.

    Raises:
        ValueError: a tensor is missing, unknown, or of the wrong shape; the
            message names the checkpoint and the tensor.
    """
    notes = list(checkpoint.notes)
    try:
        checkpoint = _text_model(checkpoint, notes)
        config = ModelConfig.from_dict(checkpoint.config)
        arrange = MODEL_TYPES[config.model_type].arrange
        arrangement = arrange(checkpoint.tensors, config)
    except ValueError as error:
        raise ValueError(f"{error} (in {checkpoint.path})") from error
    checkpoint = Arranged(checkpoint, checkpoint.config, arrangement)
    tied = _tied(checkpoint, config, notes)
    config = replace(config, tie_word_embeddings=tied)
    try:
        model = build(config)
    except OverflowError as error:  # two sizes in one axis, which has 32 bits
        raise ValueError(f"[config] {error} (in {checkpoint.path})") from error
    flat: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    shapes = {name: array.shape for name, array in flat.items()}
    weights = Weights(checkpoint, config, model, shapes, notes=notes)
    left = dict(checkpoint.tensors)
    if tied:
        for name in [n for n in left if n.startswith(f"{_HEAD}.")]:
            del left[name]
    for module in weights.modules():
        _match_packed(weights, module, left)
    for name in [n for n in left if n.endswith("rotary_emb.inv_freq")]:
        del left[name]  # computed from the config
    missing = [n for n in shapes if n not in checkpoint.tensors]
    if missing:
        raise ValueError(f"[load] {checkpoint.path} lacks {_some(missing)}")
    for name, shape in shapes.items():
        info = left.pop(name, None)
        if info is not None:
            _check(checkpoint, name, info, shape)
    if left:
        raise ValueError(
            f"[load] {checkpoint.path} has {_some(list(left))}, which a "
            f"{config.model_type} model does not have"
        )
    block = ("quantization", "quantization_config")
    if any(map(checkpoint.config.get, block)) and not weights.quantization:
        notes.append("config.json speaks of quantization, but no tensor is packed")
    return weights


def _text_model(checkpoint: Checkpoint, notes: list[str]) -> Checkpoint:
    """The text part of a multimodal checkpoint; another as it is."""
    if str(checkpoint.config.get("model_type")) not in MULTIMODAL:
        return checkpoint
    arrangement = text_tensors(checkpoint.tensors)
    if arrangement.dropped:
        notes.append(
            f"{len(arrangement.dropped)} tensors beside the text model, such as "
            f"{arrangement.dropped[0]}, are left out"
        )
    return Arranged(checkpoint, text_part(checkpoint.config), arrangement)


def _tied(checkpoint: Checkpoint, config: ModelConfig, notes: list[str]) -> bool:
    """Does the output head share the embeddings? Config and tensors must agree."""
    has_head = f"{_HEAD}.weight" in checkpoint.tensors
    if config.tie_word_embeddings is None:
        found = "has lm_head: not tied" if has_head else "has no lm_head: tied"
        notes.append(f"tie_word_embeddings is not given; the checkpoint {found}")
        return not has_head
    if config.tie_word_embeddings and has_head:
        notes.append("lm_head.weight is ignored: config.json ties it to the embeddings")
    return config.tie_word_embeddings


def _match_packed(weights: Weights, module: str, left: dict[str, TensorInfo]) -> None:
    """Take the tensors of a packed module off the list, checking each."""
    checkpoint, shape = weights.checkpoint, weights.shapes[f"{module}.weight"]
    try:
        packed = read_off(module, shape[-1], checkpoint.tensors)
    except ValueError as error:
        raise ValueError(f"[load] {checkpoint.path}: {error}") from error
    if packed is None:
        return
    weights.quantization[module] = packed
    scales = checkpoint.tensors[f"{module}.scales"]
    for suffix, info in packed.packed(TensorInfo(scales.dtype, shape)).items():
        name = f"{module}.{suffix}"
        if name not in left:
            raise ValueError(f"[load] {checkpoint.path} lacks {name}")
        found = left.pop(name)
        if found != info:
            raise ValueError(
                f"[load] {checkpoint.path}: {name} must be {info.dtype} "
                f"{list(info.shape)}, got {found.dtype} {list(found.shape)}"
            )


def _check(
    checkpoint: Checkpoint, name: str, info: TensorInfo, shape: tuple[int, ...]
) -> None:
    if info.shape != shape:
        raise ValueError(
            f"[load] {checkpoint.path}: {name} must have shape {list(shape)}, "
            f"got {list(info.shape)}"
        )
    if info.dtype not in FLOATS:
        raise ValueError(
            f"[load] {checkpoint.path}: {name} is {info.dtype} without scales; "
            "a float tensor was expected"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
