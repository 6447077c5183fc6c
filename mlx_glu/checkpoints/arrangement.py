"""Tensors of a checkpoint under the names of our modules, cut or joined to fit.

Other writers pack gate and up, store each expert alone or all in one, or put a
prefix before the text model of a multimodal checkpoint.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..fields import Config
from ..tensor_info import TensorInfo
from .checkpoint import Checkpoint

Tensors = Mapping[str, TensorInfo]


class Piece(NamedTuple):
    """How one tensor is made of stored ones.

    Attributes:
        sources: names in the checkpoint.
        info: what comes out.
        make: from the stored arrays to the one that is wanted.
    """

    sources: tuple[str, ...]
    info: TensorInfo
    make: Callable[..., mx.array]


@dataclass
class Arrangement:
    """What differs between a checkpoint's tensors and a model's parameters.

    Attributes:
        pieces: by parameter name; tensors that no piece uses keep their own.
        dropped: stored tensors that the model has no use for.
    """

    pieces: dict[str, Piece] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def renamed(name: str, info: TensorInfo) -> Piece:
    """A stored tensor as it is."""
    return Piece((name,), info, lambda array: array)


def rows(name: str, info: TensorInfo, part: slice, axis: int = 0) -> Piece:
    """Some indices of a stored tensor along an axis."""
    index = (*[slice(None)] * axis, part)
    length = len(range(*part.indices(info.shape[axis])))
    shape = (*info.shape[:axis], length, *info.shape[axis + 1 :])
    # A view would keep all of the stored tensor in memory.
    return Piece(
        (name,), info._replace(shape=shape), lambda array: mx.contiguous(array[index])
    )


def stacked(names: Iterable[str], info: TensorInfo) -> Piece:
    """Stored tensors of one shape along a new first axis."""
    names = tuple(names)
    shape = (len(names), *info.shape)
    return Piece(
        names, info._replace(shape=shape), lambda *arrays: mx.stack(list(arrays))
    )


def text_tensors(tensors: Tensors) -> Arrangement:
    """Of a multimodal checkpoint: the text model without its prefix."""
    found = Arrangement()
    for name, info in tensors.items():
        for old, new in _PREFIXES.items():
            if name.startswith(old):
                found.pieces[new + name.removeprefix(old)] = renamed(name, info)
                break
        else:
            if not name.startswith("lm_head."):
                found.dropped.append(name)
    return found


#: Of transformers 4 and mlx-lm; of transformers 5.
_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}


class Arranged(Checkpoint):
    """A checkpoint seen through an arrangement.

    Args:
        stored: the checkpoint.
        config: what stands for its config.json.
        arrangement: what to do with its tensors.
    """

    def __init__(
        self, stored: Checkpoint, config: Config, arrangement: Arrangement
    ) -> None:
        self.path = stored.path
        self.config = dict(config)
        self._stored, self._pieces = stored, arrangement.pieces
        used = {name for piece in self._pieces.values() for name in piece.sources}
        used.update(arrangement.dropped)
        made = {name: piece.info for name, piece in self._pieces.items()}
        self.tensors = {k: v for k, v in stored.tensors.items() if k not in used} | made

    def load(self, name: str) -> mx.array:
        """Read what a tensor is made of, and make it."""
        piece = self._pieces.get(name)
        if piece is None:
            return self._stored.load(name)
        return piece.make(*map(self._stored.load, piece.sources))

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files, generation config and licence."""
        self._stored.write_tokenizer(folder)
