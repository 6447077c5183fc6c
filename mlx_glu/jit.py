"""Find and read the Metal sources."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

_HERE = Path(__file__).parent

# A wheel carries metal/ inside the package; a checkout has it at the top level.
METAL = next(d for d in (_HERE / "metal", _HERE.parent / "metal") if d.is_dir())

_INCLUDE = re.compile(r'^#include "([^"]+)"[^\n]*$', re.MULTILINE)


@lru_cache
def read(name: str) -> str:
    """Return the text of ``metal/<name>`` with its quoted includes inlined.

    Metal's run-time compiler has no include path, so ``#include "act.h"`` must
    become text. ``#ifndef`` guards make a second copy harmless.

    Args:
        name: file name inside ``metal/``.

    Returns:
        The source; ASCII.

    Raises:
        ValueError: there is no such file, or it is not ASCII.
        RecursionError: files include each other in a circle.
    """
    try:
        text = (METAL / name).read_text(encoding="ascii")
    except FileNotFoundError:
        have = ", ".join(sorted(p.name for p in METAL.iterdir()))
        raise ValueError(
            f"[jit] expected one of {have} but got {name!r}; is the file in {METAL}?"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"[jit] Metal sources are ASCII but {name} has byte "
            f"{error.object[error.start]:#x} at {error.start}; replace the character"
        ) from None
    return _INCLUDE.sub(lambda match: read(match[1]), text)
