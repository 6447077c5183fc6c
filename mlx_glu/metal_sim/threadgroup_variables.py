"""``threadgroup float x[32];`` becomes a reference to the threadgroup's one copy.

C++ has no storage that all lanes of a threadgroup share: the runtime has, and one
place there knows names, sizes and the limit of 32 KiB.
"""

from .scopes import Declaration
from .tokens import MslError, Tokens

_BEFORE_STATEMENT = frozenset({"{", ";", "}", ":"})
_AFTER_NAME = frozenset({"[", ",", "=", ";", "{", "("})


class ThreadgroupVariables:
    """Rewrites the threadgroup variables of function bodies.

    Args:
        tokens: the text.
        lint: a fixed address stands in for the memory, as nothing will run.

    Attributes:
        names: of the variables rewritten, in order; a variable's place is its id.
        warnings: initialisers that were dropped.
    """

    def __init__(self, tokens: Tokens, lint: bool) -> None:
        self.tokens, self.lint = tokens, lint
        self.names: list[str] = []
        self.warnings: list[str] = []

    def rewrite(self, function: Declaration) -> None:
        """Rewrite those of one function's body."""
        tokens = self.tokens
        index = function.body
        while index < function.end:
            is_keyword = tokens.is_name(index) and tokens.text(index) == "threadgroup"
            begin = self._statement(index) if is_keyword else -1
            if begin >= 0:
                semicolon = index
                while tokens.text(semicolon) != ";" and semicolon < function.end:
                    semicolon = tokens.after_group(semicolon)
                self._rewrite_statement(begin, index, semicolon)
                index = semicolon
            index += 1

    def _statement(self, keyword: int) -> int:
        """The start of the declaration the keyword stands in; -1 if in none."""
        tokens = self.tokens
        begin, before = keyword, tokens.previous(keyword)
        while True:
            if tokens.text(before) in _BEFORE_STATEMENT:
                return begin
            if tokens.text(before) == ")":  # alignas(16) threadgroup float x[4];
                opening = self._opening(before)
                before = tokens.previous(opening)
                if tokens.text(before) != "alignas":
                    return -1
            elif not tokens.is_name(before):
                return -1
            begin, before = before, tokens.previous(before)

    def _opening(self, closing: int) -> int:
        index = closing
        while self.tokens.text(index) != "(" or self.tokens.closing(index) != closing:
            index -= 1
        return index

    def _rewrite_statement(self, begin: int, keyword: int, semicolon: int) -> None:
        name = self._declared_name(keyword, semicolon)
        if name < 0:
            return
        tokens = self.tokens
        for index in tokens.code(begin, name):
            if tokens.text(index) == "alignas":
                opening = tokens.next(index)
                tokens.blank(index, tokens.closing(opening))
        tokens.blank(keyword, keyword)
        type_text = tokens.join(begin, name).removeprefix("static ").strip()
        if not type_text:
            where = tokens[keyword].where
            raise MslError(f"{where}: a threadgroup variable has no type")
        parts = []
        index = name
        while index < semicolon:
            text, index = self._declarator(type_text, index, semicolon)
            parts.append(text)
        tokens.replace(begin, semicolon - 1, "; ".join(parts))

    def _declared_name(self, keyword: int, semicolon: int) -> int:
        """The name the declaration gives to memory; -1 if it is a pointer."""
        tokens = self.tokens
        index, name = tokens.next(keyword), -1
        while index < semicolon:
            text = tokens.text(index)
            if text in ("*", "&", "&&"):
                return -1
            if text in _AFTER_NAME:
                break
            end = index + 1
            if text == "alignas":
                end = tokens.after_group(tokens.next(index))
            elif text == "<":
                end = tokens.closing_angle(index) + 1 or semicolon
            elif tokens.is_name(index):
                name = index
            index = tokens.at(end)
        return name

    def _declarator(
        self, type_text: str, index: int, semicolon: int
    ) -> tuple[str, int]:
        """Return the text for one name, and where the next one starts."""
        tokens = self.tokens
        name, dimensions = tokens.text(index), ""
        where = tokens[index].where
        index = tokens.next(index)
        while tokens.text(index) == "[":
            end = tokens.after_group(index)
            dimensions += tokens.join(index, end)
            index = tokens.at(end)
        if index < semicolon and tokens.text(index) != ",":
            # Apple's compiler takes one, but the memory is not initialised by it.
            self.warnings.append(
                f"{where}: initializer of threadgroup variable '{name}' ignored"
            )
        while index < semicolon and tokens.text(index) != ",":
            index = tokens.after_group(index)
        return self._definition(type_text, name, dimensions), tokens.next(index)

    def _definition(self, type_text: str, name: str, dimensions: str) -> str:
        number = len(self.names)
        self.names.append(name)
        alias = f"__msl_tgt{number}"
        memory = "16ul"
        if not self.lint:
            memory = f'__msl_tg_alloc({number}u, sizeof({alias}), "{name}")'
        return (
            f"typedef {type_text} {alias}{dimensions}; "
            f"threadgroup {alias}& {name} = *(threadgroup {alias}*){memory}"
        )
