"""Characters to train on."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from .. import user_cache
from ..bench.report import write
from ..evaluation.windows import read_text
from .experiment import S

#: Works of Shakespeare, 1.1 MB; the text is in the public domain.
URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
    "input.txt"
)
_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(frozen=True)
class Corpus:
    """A text as numbers, split in three.

    Attributes:
        characters: that occur, sorted; a number is a place in it.
        train: the first nine tenths.
        tune: half of the rest, to choose settings by.
        test: the other half, to report.
    """

    characters: str
    train: np.ndarray
    tune: np.ndarray
    test: np.ndarray


def find(path: Path | None) -> Path:
    """The file itself, or Shakespeare's, fetched once into the user's cache.

    Raises:
        FileNotFoundError: it cannot be fetched.
        ValueError: it is not what it was.
    """
    if path is not None:
        return path
    kept = user_cache.cache_folder() / "tinyshakespeare.txt"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write(kept, _fetch())
    return kept


def prepare(settings: S) -> S:
    """Settings whose ``text`` is a file; as `find`."""
    given: Any = settings
    return cast(S, replace(given, text=find(given.text)))


def _fetch() -> bytes:
    try:
        with urllib.request.urlopen(URL, timeout=30) as answer:
            data = bytes(answer.read(1 << 22))
    except (urllib.error.URLError, TimeoutError) as error:
        raise FileNotFoundError(
            f"[science] {URL} cannot be fetched: {error}; give a text, --text FILE"
        ) from error
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise ValueError(
            f"[science] {URL} is not the text it was; give another one, --text FILE"
        )
    return data


@lru_cache(maxsize=4)
def read(path: Path) -> Corpus:
    """Read a UTF-8 text.

    Raises:
        ValueError: it is not UTF-8, or too short to be split.
    """
    text = read_text(path)
    if len(text) < 2000:
        raise ValueError(
            f"[science] a text has at least 2000 characters but {path} has "
            f"{len(text)}; give a longer one"
        )
    characters = "".join(sorted(set(text)))
    place = {c: i for i, c in enumerate(characters)}
    ids = np.array([place[c] for c in text], np.int32)
    first, second = len(ids) * 18 // 20, len(ids) * 19 // 20
    return Corpus(characters, ids[:first], ids[first:second], ids[second:])
