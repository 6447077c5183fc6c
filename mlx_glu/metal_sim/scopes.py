"""Splits a text into the declarations of its namespaces and classes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .tokens import MslError, Tokens

_CLASS_KEYS = frozenset({"struct", "class", "union", "enum"})
_ACCESS = frozenset({"public", "private", "protected"})
_CLASS_NAME = re.compile(r"\b(?:struct|class|union)\s+(\w+)")
# Their parentheses do not make a function.
_NOT_PARAMETERS = frozenset(
    {"__attribute__", "alignas", "decltype", "explicit", "noexcept", "static_assert"}
)


@dataclass
class Declaration:
    """One declaration; all places are indices of tokens.

    Attributes:
        kind: "namespace", "class", "enum", "function" (with a body), "signature"
            or "other" (variables, aliases, forward declarations).
        scope: names the namespace or class it stands in; a class's name comes last.
        in_class: whether that is a class.
        start: first token.
        head: end of what declares: up to an initialiser, a body or the semicolon.
        body: the ``{`` of the body, or the end if there is none.
        end: last token: the ``}`` or the ``;``.
    """

    kind: str
    scope: str
    in_class: bool
    start: int
    head: int
    body: int
    end: int

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head."""
        return self.body < self.end


def declarations(
    tokens: Tokens,
    begin: int = 0,
    end: int | None = None,
    scope: str = "",
    in_class: bool = False,
) -> Iterator[Declaration]:
    """Yield the declarations of [begin, end), a class before its members.

    Raises:
        MslError: a template parameter list or a class does not end.
    """
    end = len(tokens) if end is None else end
    index = tokens.at(begin)
    while index < end:
        text = tokens.text(index)
        if text in (";", "}"):
            index = tokens.next(index)
            continue
        colon = tokens.next(index)
        if in_class and text in _ACCESS and tokens.text(colon) == ":":
            index = tokens.next(colon)
            continue
        found = _Reader(tokens, index, end).read(scope, in_class)
        if found is None:
            return
        after = tokens.next(found.end)
        yield found
        close = tokens.closing(found.body) if found.has_body else found.end
        if found.kind == "namespace":
            name = tokens.join(found.start, found.head)
            yield from declarations(tokens, found.body + 1, close, scope + name)
        elif found.kind == "class" and found.has_body:
            # The index, as specialisations share a name.
            inner = f"{scope} {found.start} {_class_name(tokens, found)}"
            yield from declarations(tokens, found.body + 1, close, inner, True)
        index = after


def _class_name(tokens: Tokens, found: Declaration) -> str:
    names = _CLASS_NAME.findall(tokens.join(found.start, found.head))
    return str(names[-1]) if names else ""


class _Reader:
    """Finds the parts of the declaration that starts at a token."""

    def __init__(self, tokens: Tokens, start: int, end: int) -> None:
        self.tokens, self.start, self.end = tokens, start, end
        self.class_key = ""
        self.is_namespace = False
        self.has_parameters = False
        self.initialiser = -1

    def read(self, scope: str, in_class: bool) -> Declaration | None:
        tokens = self.tokens
        index = self.start
        while index < self.end:
            text = tokens.text(index)
            if text == ";":
                return self._declaration(scope, in_class, index, index)
            if text == "{" and not self._initialises(index):
                close = tokens.closing(index)
                return self._declaration(scope, in_class, index, close)
            index = tokens.at(self._step(index))
        return None

    def _step(self, index: int) -> int:
        """Note what the token at ``index`` says; return the index to go on at."""
        tokens = self.tokens
        text = tokens.text(index)
        if text == "template":
            return tokens.after_template(index)
        if text == "namespace":
            self.is_namespace = True
        elif text in _CLASS_KEYS and not self.has_parameters:
            self.class_key = self.class_key or text
        elif text == "(":
            self.has_parameters |= tokens.text(tokens.previous(index)) not in (
                _NOT_PARAMETERS
            )
        elif self.initialiser < 0 and self._starts_initialiser(index):
            self.initialiser = index
        return tokens.after_group(index)

    def _starts_initialiser(self, index: int) -> bool:
        text = self.tokens.text(index)
        if text == "=":
            operator = self.tokens.text(self.tokens.previous(index)) == "operator"
            return not (operator or self.has_parameters)
        return text == ":" and self.has_parameters  # of the members by a constructor

    def _initialises(self, index: int) -> bool:
        """Whether the ``{`` holds a value and not a body."""
        if self.initialiser < 0:
            return False
        if self.tokens.text(self.initialiser) == "=":
            return True
        before = self.tokens.previous(index)
        return self.tokens.is_name(before) or self.tokens.text(before) == ">"

    def _declaration(
        self, scope: str, in_class: bool, body: int, end: int
    ) -> Declaration:
        head = self.initialiser if self.initialiser >= 0 else body
        kind = self._kind(body < end)
        if kind == "class" and body < end:
            end = self._semicolon(end)
        return Declaration(kind, scope, in_class, self.start, head, body, end)

    def _kind(self, has_body: bool) -> str:
        linkage = self.tokens.text(self.start) == "extern"
        if has_body and (self.is_namespace or (linkage and not self.has_parameters)):
            return "namespace"
        if self.has_parameters:
            return "function" if has_body else "signature"
        if self.class_key == "enum":
            return "enum"
        return "class" if self.class_key and has_body else "other"

    def _semicolon(self, brace: int) -> int:
        for index in range(brace, self.end):
            if self.tokens.text(index) == ";":
                return index
        where = self.tokens[brace].where
        raise MslError(f"{where}: expected ';' after the {self.class_key}")
