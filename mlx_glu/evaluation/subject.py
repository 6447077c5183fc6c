"""A model that is to be evaluated: what it is and weighs, before it is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.checkpoint import open_checkpoint
from ..hub import resolve
from ..loading import free_memory, model_of, tokenizer_of
from ..models.llama import Model
from ..tokenizer import Tokenizer
from ..weights import Weights, examine


@dataclass(frozen=True)
class Subject:
    """A checkpoint that fits its model.

    Attributes:
        name: as the user gave it.
        weights: examined, not read.
        tokenizer: of the checkpoint.
    """

    name: str
    weights: Weights
    tokenizer: Tokenizer

    @classmethod
    def open(cls, path: str | Path) -> "Subject":
        """Open a folder, a GGUF file or a hub id.

        Raises:
            FileNotFoundError: nothing there, or no tokenizer.
            ValueError: damaged or unsupported.
        """
        checkpoint = open_checkpoint(resolve(path))
        return cls(str(path), examine(checkpoint), tokenizer_of(checkpoint))

    @property
    def nbytes(self) -> int:
        """Of the tensors as stored; of a GGUF file, which may hold other formats."""
        path = self.weights.checkpoint.path
        if path.is_file():
            return path.stat().st_size
        return self.read_nbytes

    @property
    def read_nbytes(self) -> int:
        """Of the tensors as they are read; a GGUF file may pack them tighter."""
        return sum(info.nbytes for info in self.weights.checkpoint.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over parameters."""
        return 8 * self.nbytes / self.weights.parameter_count

    def facts(self) -> dict[str, object]:
        """What a line of JSON says of the model."""
        bits = self.bits_per_weight
        return {"model": self.name, "bits_per_weight": bits, "nbytes": self.nbytes}

    def load(self) -> Model:
        """Read the weights; the examined skeleton stays as it is."""
        return model_of(examine(self.weights.checkpoint))


def check_vocabulary(a: Subject, b: Subject, text: str) -> list[int]:
    """The ids of a text, if they are those of both models.

    Raises:
        ValueError: the models do not share a vocabulary.
    """
    sizes = [s.weights.config.vocab_size for s in (a, b)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"[compare] models with one vocabulary can be compared; {a.name} has "
            f"{sizes[0]} tokens and {b.name} {sizes[1]}"
        )
    ids = [s.tokenizer.encode(text) for s in (a, b)]
    if ids[0] != ids[1]:
        raise ValueError(
            f"[compare] models with one vocabulary can be compared; {a.name} and "
            f"{b.name} read the text as other tokens"
        )
    return ids[0]


def check_memory(nbytes: Mapping[str, int]) -> None:
    """Whether models fit into memory side by side, as they are read.

    Raises:
        ValueError: they do not.
    """
    needed, free = sum(nbytes.values()), free_memory()
    if needed > free:
        raise ValueError(
            f"[compare] {' and '.join(nbytes)} need {needed / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free; take mlx-glu perplexity of each"
        )
