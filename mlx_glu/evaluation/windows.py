"""A text as windows of tokens."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

#: Mary Shelley, Frankenstein (1818), from chapter 5; in the public domain. Models have
#: read it: it shows what a quantization costs, and ranks no models.
SAMPLE = Path(__file__).with_name("sample.txt")


def read_text(path: str | Path) -> str:
    """The text of a file; of stdin where the path is "-".

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8.
    """
    stdin = str(path) == "-"
    data = sys.stdin.buffer.read() if stdin else Path(path).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"[text] {path} is not UTF-8 at byte {error.start}; convert it first"
        ) from error


def split(
    ids: Sequence[int], length: int, count: int = -1, seed: int | None = None
) -> list[list[int]]:
    """Windows that follow each other and do not overlap, the last one maybe shorter.

    Args:
        ids: of the whole text, encoded in one go; a BOS that the tokenizer puts
            before it is in the first window alone, as Hugging Face's guide has it.
        length: tokens of a window.
        count: how many; -1 takes all.
        seed: draws ``count`` of them; None takes the first ones.

    Raises:
        ValueError: an impossible length or count, or too short a text.
    """
    if length < 2 or count == 0 or count < -1:
        raise ValueError(
            f"[text] windows have at least 2 tokens, and there is at least one or -1 "
            f"for all; got {length} tokens and {count} windows"
        )
    windows = [list(ids[i : i + length]) for i in range(0, len(ids), length)]
    if windows and len(windows[-1]) < 2:
        windows.pop()
    if count != -1 and count < len(windows):
        drawn = np.arange(count)
        if seed is not None:
            drawn = np.random.default_rng(seed).permutation(len(windows))[:count]
        windows = [windows[i] for i in sorted(drawn)]
    predicted = sum(len(window) - 1 for window in windows)
    if predicted < 2:  # one has no standard error
        raise ValueError(
            f"[text] a text of {len(ids)} tokens in windows of {length} leaves "
            f"{predicted} to predict, and 2 are the least; give a longer text, or "
            "more windows"
        )
    return windows


def batches(windows: Sequence[Sequence[int]], size: int) -> Iterator[np.ndarray]:
    """Up to ``size`` neighbours of one length at a time, as [B, L] ids."""
    own: list[Sequence[int]] = []
    for window in windows:
        if own and (len(own) == size or len(own[0]) != len(window)):
            yield np.array(own)
            own = []
        own.append(window)
    if own:
        yield np.array(own)
