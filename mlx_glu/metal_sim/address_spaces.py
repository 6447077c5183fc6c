"""What C++ cannot say about address spaces, taken out.

A member cannot be qualified by the address space of ``this``, and an array parameter
cannot be in one. Without the spaces some overloads become equal: the first is kept.
"""

from collections import defaultdict

from .entry_points import split
from .scopes import Declaration
from .tokens import ADDRESS_SPACES, Tokens

# As msl/address_spaces.h numbers them, and clang's messages call them.
SPACES = {"device": 1, "constant": 2, "threadgroup": 3}
_AFTER_PARAMETERS = frozenset({"const", "volatile", "noexcept", *ADDRESS_SPACES})
_NOT_IN_ARRAYS = frozenset({"*", "&", "&&", "("})


class AddressSpaces:
    """Rewrites one declaration after the other.

    Args:
        tokens: the text.
        lint: keep overloads on the space of an argument, which lint checks for real.

    Attributes:
        members: (place or class, number of a space): a member declared there may be
            called on objects in that space.
    """

    def __init__(self, tokens: Tokens, lint: bool) -> None:
        self.tokens, self.lint = tokens, lint
        self.members: set[tuple[str, int]] = set()
        self._seen: dict[str, dict[str, tuple[str, Declaration]]] = defaultdict(dict)

    def rewrite(self, found: Declaration) -> bool:
        """Rewrite one declaration; False if it was a copy and is blanked."""
        original = " ".join(self._head(found))
        spaces: set[int] = set()
        if found.kind in ("function", "signature"):
            spaces = self._rewrite_parameters(found)
        words = self._head(found)
        if not self.lint:
            words = [word for word in words if word not in ADDRESS_SPACES]
        key = " ".join([str(found.has_body), *words])
        text, first = self._seen[found.scope].setdefault(key, (original, found))
        if spaces:
            head = self.tokens.all[first.start : first.head]
            places = {token.where for token in head} | {found.scope.split(" ")[-1]}
            self.members.update((place, space) for place in places for space in spaces)
        if text == original:
            return True
        self.tokens.blank(found.start, found.end)
        return False

    def _head(self, found: Declaration) -> list[str]:
        return [self.tokens.text(i) for i in self.tokens.code(found.start, found.head)]

    def _rewrite_parameters(self, found: Declaration) -> set[int]:
        """Return the spaces that ``this`` may be in."""
        tokens = self.tokens
        index, spaces = found.start, set()
        while index < found.head:
            end = tokens.after_group(index)
            if tokens.text(index) == "template":
                end = tokens.after_template(index)
            elif tokens.text(index) == "(":
                self._rewrite_arrays(index + 1, end - 1)
                spaces |= self._remove_this_space(end)
            index = end
        return spaces

    def _remove_this_space(self, index: int) -> set[int]:
        spaces = set()
        index = self.tokens.at(index)
        while self.tokens.text(index) in _AFTER_PARAMETERS:
            if self.tokens.text(index) in ADDRESS_SPACES:
                spaces.add(SPACES.get(self.tokens.text(index), 0))
                self.tokens.blank(index, index)
            index = self.tokens.next(index)
        return spaces

    def _rewrite_arrays(self, begin: int, end: int) -> None:
        """Write ``constant int* shape`` for ``constant int shape[4]``."""
        tokens = self.tokens
        for part in split(tokens, begin, end):
            texts = [tokens.text(index) for index in part]
            if "[" not in texts or ADDRESS_SPACES.isdisjoint(texts):
                continue
            bracket = texts.index("[")
            name = part[bracket - 1]
            if tokens.is_name(name) and _NOT_IN_ARRAYS.isdisjoint(texts[:bracket]):
                tokens.blank(part[bracket], tokens.closing(part[bracket]))
                tokens.replace(name, name, f"* {texts[bracket - 1]}")
