"""Find, read and trim the Metal sources.

Metal's run-time compiler has no include path, and MLX hashes the whole text of a
kernel at each evaluation: so a kernel is one text that holds only what it uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).parent

# A wheel carries metal/ inside the package; a checkout has it at the top level.
METAL = next(d for d in (_HERE / "metal", _HERE.parent / "metal") if d.is_dir())

_INCLUDE = re.compile(r'^#include "([^"]+)"[^\n]*\n', re.MULTILINE)
_NAMESPACE = "namespace mlx_glu {", "} // namespace mlx_glu"
_GUARD = re.compile(r"^#(?:ifndef|define|endif)\b[^\n]*$", re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*")
_STRUCT = re.compile(r"\bstruct \w+[^{;]*\{")
_NAME = re.compile(r"\b(?:struct|using)\s+(\w+)|(\w+)\s*\(")
_WORD = re.compile(r"[A-Za-z_]\w*")
_PARAMETER = re.compile(r"\btypename(?=(?:\.\.\.)? \w+[,>])")
_SPACES = re.compile(
    r" ?([{}();,<>=*/?:&|%^\[\]]|[+-]=) ?|(?<=[\w)\]]) ?([+-]) ?(?=[\w(])"
)


def read(name: str) -> str:
    """Return the text of ``metal/<name>`` with its quoted includes inlined.

    Args:
        name: file name inside ``metal/``.

    Returns:
        The source, ASCII; each included file once, before what includes it.

    Raises:
        ValueError: there is no such file, or it is not ASCII.
    """
    return _inline(name, set())


@lru_cache(maxsize=256)
def trim(name: str, body: str) -> str:
    """Return what ``body`` uses of ``metal/<name>``, without comments.

    Args:
        name: file name inside ``metal/``.
        body: the body of a kernel; its words name what is kept.

    Returns:
        Structs with their fields and the functions in use, and free functions, of
        ``namespace mlx_glu``, in their order; one declaration a line.
    """
    pieces = _pieces(name)
    used = set(_WORD.findall(body))
    while True:
        kept = [piece for piece in pieces if used.issuperset(piece.needs)]
        words = used.union(*(_WORD.findall(piece.text) for piece in kept))
        if words == used:
            break
        used = words
    text = "".join(piece.text for piece in kept)
    return f"namespace mlx_glu {{\n{text}}}\n"


class _Piece(NamedTuple):
    """A stretch of source that is kept where all the names it needs are used."""

    needs: tuple[str, ...]
    text: str


@lru_cache
def _pieces(name: str) -> list[_Piece]:
    text = read(name)
    for line in _NAMESPACE:
        text = text.replace(line, "")
    text = _GUARD.sub("", _COMMENT.sub("", text))
    pieces = []
    for part in _declarations(text):
        own = _declared(part)
        struct = _STRUCT.search(part)
        if struct is None:
            pieces.append(_Piece((own,), _squeeze(part) + "\n"))
            continue
        pieces.append(_Piece((own,), _squeeze(part[: struct.end()])))
        for member in _declarations(part[struct.end() : part.rindex("}")]):
            is_function = member.endswith("}")
            needs = (own, _declared(member)) if is_function else (own,)
            pieces.append(_Piece(needs, _squeeze(member)))
        pieces.append(_Piece((own,), "};\n"))
    return pieces


def _inline(name: str, seen: set[str]) -> str:
    if name in seen:
        return ""
    seen.add(name)
    return _INCLUDE.sub(lambda match: _inline(match[1], seen), _text(name))


def _text(name: str) -> str:
    try:
        return (METAL / name).read_text(encoding="ascii")
    except FileNotFoundError:
        have = ", ".join(sorted(p.name for p in METAL.iterdir()))
        raise ValueError(
            f"[metal] expected one of {have} but got {name!r}; is the file in {METAL}?"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"[metal] Metal sources are ASCII but {name} has byte "
            f"{error.object[error.start]:#x} at {error.start}; replace the character"
        ) from None


def _declarations(text: str) -> Iterator[str]:
    """Structs, functions, fields and aliases: what a bracket depth of 0 divides."""
    start = depth = 0
    for match in re.finditer(r"[{}();]", text):
        end, sign = match.end(), match[0]
        depth += (sign in "{(") - (sign in "})")
        ends_function = sign == "}" and not re.match(r"\s*;", text[end:])
        if depth == 0 and (sign == ";" or ends_function):
            yield text[start:end].strip()
            start = end


def _declared(part: str) -> str:
    """The name that a declaration introduces; overloads share it."""
    while part.startswith("template"):
        depth = 0
        for match in re.finditer("[<>]", part):
            depth += 1 if match[0] == "<" else -1
            if depth == 0:
                part = part[match.end() :].lstrip()
                break
    name = _NAME.search(part)
    return (name[1] or name[2]) if name else ""


def _squeeze(part: str) -> str:
    """A declaration on one line, but for pragmas, which have lines of their own."""
    lines = (line.strip() for line in part.splitlines())
    text = " ".join(f"\n{x}\n" if x.startswith("#") else x for x in lines)
    text = _PARAMETER.sub("class", text)
    return _SPACES.sub(r"\1\2", text).replace("\n ", "\n")
