"""What a tokenizer.json must not say, since it would end the process.

The ``tokenizers`` library trusts its file: a table of characters that lies, or rules
that multiply the text, make it ask for more memory than there is, and Rust then aborts
the process, which no ``except`` can catch. What it does notice comes as a Python error.
"""

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..untrusted import parse_json

#: Bytes and JSON values; Gemma 3's file is one of the largest, 33 MB and 1.9 million.
MAX_BYTES, MAX_ITEMS = 64 << 20, 6_000_000

#: Times that normalizers may multiply a text; NFKC's table has 11 for one character.
_MAX_GROWTH = 256

_MAX_PARTS = 1000


def check_tokenizer_json(data: bytes) -> None:
    """Refuse a file that could crash the library or fill the memory.

    Raises:
        ValueError: what is wrong; no JSON, too.
    """
    state = parse_json(data, MAX_ITEMS)
    if not isinstance(state, dict):
        raise ValueError("it is no JSON object")
    growth = 1.0
    for part in _parts(state.get("normalizer")):
        growth *= _growth(part)
    if growth > _MAX_GROWTH:
        raise ValueError(f"its normalizer makes text {growth:.0f} times longer")
    for part in _parts(state.get("post_processor")):
        for key in ("single", "pair"):
            if json.dumps(part.get(key)).count('"Sequence"') > 2:
                raise ValueError("its post_processor repeats the text")
    for _ in _parts(state.get("pre_tokenizer")):
        pass  # counts them


def check_charsmap(blob: bytes) -> int:
    """Check sentencepiece's table of characters, a double-array trie and its texts.

    Returns:
        The most bytes that one character becomes.

    Raises:
        ValueError: a step through the trie could leave it.
    """
    size = int.from_bytes(blob[:4], "little")
    units = np.frombuffer(blob[4 : 4 + size - size % 4], "<u4").astype(np.int64)
    texts = blob[4 + size :]
    if not len(units) or 4 * len(units) != size or not texts.endswith(b"\0"):
        raise ValueError("its table of characters is damaged")
    is_value = units >> 31 == 1
    offsets = units >> 10 << ((units & 1 << 9) >> 6)
    steps = (np.arange(len(units)) ^ offsets)[~is_value]
    last = int((steps | 0xFF).max(initial=0))
    # A unit whose ninth bit is set has its value at the step of the empty label.
    ends = steps[(units[~is_value] >> 8 & 1) == 1]
    if last >= len(units) or (units[ends] & 2**31 - 1).max(initial=0) >= len(texts):
        raise ValueError("its table of characters points outside of itself")
    return max(map(len, texts.split(b"\0")))


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """All objects in a part of the pipeline, however its sequences are nested."""
    left, count = [part], 0
    while left:
        value = left.pop()
        if isinstance(value, dict):
            count += 1
            if count > _MAX_PARTS:
                raise ValueError(f"it has a pipeline of over {_MAX_PARTS} parts")
            yield value
            left += value.values()
        elif isinstance(value, list):
            left += value


def _growth(part: dict[str, Any]) -> float:
    """Times that a normalizer may multiply a text."""
    if isinstance(part.get("precompiled_charsmap"), str):
        try:
            return check_charsmap(base64.b64decode(part["precompiled_charsmap"]))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"its normalizer: {error}") from error
    content, pattern = part.get("content"), part.get("pattern")
    if not isinstance(content, str) or not isinstance(pattern, dict):
        return 1.0
    regex = pattern.get("Regex")
    if isinstance(regex, str) and not _is_plain(regex):
        raise ValueError(f"its normalizer searches for {regex[:100]!r}; too complex")
    replaced = len(str(pattern.get("String", "")).encode())
    return 1 + len(content.encode()) / max(replaced, 1)


def _is_plain(regex: str) -> bool:
    """Whether it has no alternatives and one repetition, so that it takes no time."""
    text = re.sub(r"\\.|\[[^]]*\]", "x", regex)
    return not set(text) & {*"()|"} and sum(map(text.count, "*+?{")) < 2
