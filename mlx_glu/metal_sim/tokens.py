"""Tokens of preprocessed Metal text: what every rewrite and rule works on.

A rewrite never adds or removes a token: it changes texts in place. So indices stay
valid over all passes, and so do line numbers, as blanked tokens keep their newlines.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

ADDRESS_SPACES = frozenset({"device", "constant", "threadgroup", "thread"})
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_TOKEN = re.compile(
    r"""
    (?P<directive>^[ \t]*\#(?:[^\n\\]|\\.|\\\n)*)
  | (?P<space>\s*\n|[^\S\n]+|//[^\n]*|/\*.*?\*/)
  | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
  | (?P<number>\.?\d(?:[eEpP][+-]|[\w.]|'(?=\w))*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<operator>::|->|<<=|>>=|\.\.\.|&&|\|\||==|!=|<=|>=|\+=|-=|\*=|/=|%=|&=
      |\|=|\^=|\+\+|--|<<|.)
    """,
    re.X | re.S | re.M,
)
_LINE_MARKER = re.compile(r'[ \t]*#\s*(?:line\s+)?(\d{1,9})(?:\s+"((?:\\.|[^"])*)")?')


class MslError(ValueError):
    """The text is not the Metal Shading Language; the message says where."""


@dataclass(slots=True)
class Token:
    """A piece of source text.

    ``kind`` is name, number, string, operator, space or directive; ``line`` counts in
    ``file`` as the preprocessor's line markers say ("" is the text itself).
    """

    kind: str
    text: str
    line: int
    file: str

    @property
    def where(self) -> str:
        """``file:line``, or ``line n`` in the text itself."""
        return f"{self.file}:{self.line}" if self.file else f"line {self.line}"


class Tokens:
    """The tokens of one text, with their brackets matched.

    Raises:
        MslError: a bracket has no partner.
    """

    def __init__(self, source: str) -> None:
        self.all = list(_tokenize(source))
        self._closing = _match_brackets(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, index: int) -> Token:
        return self.all[index]

    def text(self, index: int) -> str:
        """The token's text; "" outside of the list."""
        return self.all[index].text if 0 <= index < len(self.all) else ""

    def is_name(self, index: int) -> bool:
        """Whether the token is an identifier or a keyword."""
        return 0 <= index < len(self.all) and self.all[index].kind == "name"

    def is_code(self, index: int) -> bool:
        """Whether the token is neither space, nor a directive, nor blanked."""
        return self.all[index].kind not in ("space", "directive")

    def at(self, index: int) -> int:
        """The first token of code from ``index`` on; ``len(self)`` if none."""
        while index < len(self.all) and not self.is_code(index):
            index += 1
        return index

    def next(self, index: int) -> int:
        """The token of code after ``index``; ``len(self)`` if none."""
        return self.at(index + 1)

    def previous(self, index: int) -> int:
        """The token of code before ``index``; -1 if none."""
        index -= 1
        while index >= 0 and not self.is_code(index):
            index -= 1
        return index

    def code(self, begin: int, end: int) -> list[int]:
        """The tokens of code in [begin, end)."""
        return [i for i in range(begin, min(end, len(self.all))) if self.is_code(i)]

    def join(self, begin: int, end: int) -> str:
        """The text of [begin, end) on one line, without directives."""
        parts = (t.text for t in self.all[begin:end] if t.kind != "directive")
        return " ".join("".join(parts).split())

    def closing(self, index: int) -> int:
        """The bracket that closes the one at ``index``.

        Raises:
            MslError: there is no bracket.
        """
        if index not in self._closing:
            place = self.all[min(index, len(self.all) - 1)].where
            raise MslError(f"{place}: expected a bracket, got {self.text(index)!r}")
        return self._closing[index]

    def after_group(self, index: int) -> int:
        """The index after this token, or after the bracket it opens."""
        return self._closing.get(index, index) + 1

    def closing_angle(self, index: int) -> int:
        """The ``>`` that closes the ``<`` at ``index``; -1 if it is a comparison."""
        depth = 0
        while index < len(self.all):
            text = self.all[index].text
            if index in self._closing and text in ("(", "[", "{"):
                index = self._closing[index]
            # After a bracket or a number, as in `sizeof(T) < 4`, it compares.
            elif text == "<" and self.is_name(self.previous(index)):
                depth += 1
            elif text == ">":
                depth -= 1
                if depth <= 0:
                    return index if depth == 0 else -1
            elif text in (";", "}"):
                break
            index += 1
        return -1

    def after_template(self, index: int) -> int:
        """The index after the parameter list of the ``template`` at ``index``.

        Raises:
            MslError: the list does not end.
        """
        opening = self.next(index)
        if self.text(opening) != "<":
            return index + 1  # an explicit instantiation
        closing = self.closing_angle(opening)
        if closing < 0:
            where = self.all[index].where
            raise MslError(f"{where}: cannot find the end of the template's list")
        return closing + 1

    def blank(self, first: int, last: int) -> None:
        """Remove [first, last]; newlines and line markers stay."""
        for token in self.all[first : last + 1]:
            if token.kind != "directive":
                token.text = "\n" * token.text.count("\n")
                token.kind = "space"

    def replace(self, first: int, last: int, text: str) -> None:
        """Put one line of text in place of [first, last]."""
        self.blank(first, last)
        self.all[first].kind = "name"
        self.all[first].text = text

    def __str__(self) -> str:
        return "".join(token.text for token in self.all)


def _tokenize(source: str) -> Iterator[Token]:
    line, file = 1, ""
    for match in _TOKEN.finditer(source):
        text = match.group()
        yield Token(match.lastgroup or "operator", text, line, file)
        marker = match.lastgroup == "directive" and _LINE_MARKER.match(text)
        if marker:
            line = int(marker[1]) - 1  # the marker's own newline is still to come
            name = marker[2]
            file = file if name is None else "" if name.startswith("<") else name
        line += text.count("\n")


def _match_brackets(tokens: list[Token]) -> dict[int, int]:
    closing: dict[int, int] = {}
    opened: list[int] = []
    for index, token in enumerate(tokens):
        if token.kind != "operator":
            continue
        if token.text in _CLOSES:
            opened.append(index)
        elif token.text in (")", "]", "}"):
            if not opened:
                raise MslError(f"{token.where}: '{token.text}' closes no bracket")
            start = tokens[opened[-1]]
            if _CLOSES[start.text] != token.text:
                raise MslError(
                    f"{token.where}: '{token.text}' where '{_CLOSES[start.text]}' "
                    f"should close the '{start.text}' of {start.where}"
                )
            closing[opened.pop()] = index
    if opened:
        start = tokens[opened[-1]]
        raise MslError(f"{start.where}: '{start.text}' is never closed")
    return closing
