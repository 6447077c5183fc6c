"""What a converted folder holds beside tensors: config, index, card, tokenizer."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import INDEX
from ..config import export
from ..quantization import Quantization, config_block
from ..tokenizer import load_tokenizer
from ..weights import Weights


def write_config(
    folder: Path,
    weights: Weights,
    formats: Mapping[str, Quantization | None],
    dtype: str,
) -> None:
    """Write ``config.json``: every module's format, and the dtype of the rest."""
    config = export(weights.checkpoint.config, weights.config)
    block = config_block(formats)
    if block:
        # Both keys: mlx-lm reads the first, the Hub's model tree the second.
        config["quantization"] = config["quantization_config"] = block
    config["torch_dtype"] = config["dtype"] = dtype
    _write_json(folder / "config.json", dict(sorted(config.items())))


def write_index(
    folder: Path, files: Mapping[str, Iterable[str]], nbytes: int, parameters: int
) -> None:
    """Write the index, which names the file of every tensor."""
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    metadata = {"total_size": nbytes, "total_parameters": parameters}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / INDEX, index)


def write_card(folder: Path, hf_path: str) -> None:
    """Write the model card's header, by which the Hub knows an MLX model."""
    lines = ["library_name: mlx", "pipeline_tag: text-generation", "tags:", "- mlx"]
    if not Path(os.path.expanduser(hf_path)).exists():
        lines.append(f"base_model: {hf_path}")  # a Hub id
    text = "\n".join(["---", *lines, "---", ""])
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_tokenizer(folder: Path, weights: Weights) -> None:
    """Write the tokenizer's files and open them: generation must be able to.

    Raises:
        ValueError: they are broken; the message names the source.
    """
    source = weights.checkpoint.path
    weights.checkpoint.write_tokenizer(folder)
    try:
        load_tokenizer(folder)
    except FileNotFoundError:
        weights.notes.append(
            f"{source} has no tokenizer that is read; add one to generate text"
        )
    except ValueError as error:
        message = str(error).replace(str(folder), str(source))
        raise ValueError(message) from error


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
