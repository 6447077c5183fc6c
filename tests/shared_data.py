"""The data beside the repository; tests that need it skip where it is absent."""

import json
from functools import lru_cache
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
TOKENIZERS = SHARED / "tokenizers"
requires_shared = pytest.mark.skipif(
    not TOKENIZERS.is_dir(), reason="needs the shared test data"
)


@lru_cache(maxsize=1)
def expected_encodings():
    """``texts``, and ids by tokenizer."""
    return json.loads((TOKENIZERS / "expected_encodings.json").read_text("utf-8"))
