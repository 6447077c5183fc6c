"""Metal's ``[[attributes]]``: recorded, then taken out of the text."""

import re
from dataclasses import dataclass, field

from .tokens import MslError, Tokens

# Those that clang knows stay where they are.
_STANDARD = re.compile(
    r"(clang::|gnu::|(maybe_unused|nodiscard|noreturn|deprecated|fallthrough"
    r"|unroll|likely|unlikely|no_unique_address)\b)"
)
_KERNEL = re.compile(r"kernel\b")
_HOST_NAME = re.compile(r"host_name\b")


@dataclass
class Attributes:
    """Where the attributes of one text stood, by index of a token.

    Attributes:
        kernels: first tokens after ``[[kernel]]`` or ``kernel``.
        host_names: first tokens after ``[[host_name("name")]]``, and the name.
        after: last tokens before any other attribute, and its text; this is the
            name of the parameter or variable it belongs to.
    """

    kernels: set[int] = field(default_factory=set)
    host_names: dict[int, str] = field(default_factory=dict)
    after: dict[int, str] = field(default_factory=dict)

    def kernel_in(self, begin: int, end: int) -> bool:
        """Whether a function whose head is [begin, end) is a kernel."""
        return any(begin <= index < end for index in self.kernels)

    def host_name_in(self, begin: int, end: int) -> str | None:
        """The host name given in [begin, end)."""
        return next((n for i, n in self.host_names.items() if begin <= i < end), None)


def extract_attributes(tokens: Tokens) -> Attributes:
    """Take Metal's attributes out of the text.

    Raises:
        MslError: a ``host_name`` without a string.
    """
    found = Attributes()
    index = 0
    while index < len(tokens):
        end = index + 1
        if tokens.text(index) == "[" and tokens.text(index + 1) == "[":
            end = tokens.closing(index) + 1
            _take(tokens, index, end - 1, found)
        elif tokens.is_name(index) and tokens.text(index) == "kernel":
            tokens.blank(index, index)
            found.kernels.add(index)
        index = end
    # Only now: one attribute may stand before another.
    found.kernels = {tokens.at(index) for index in found.kernels}
    found.host_names = {tokens.at(i): name for i, name in found.host_names.items()}
    return found


def _take(tokens: Tokens, first: int, last: int, found: Attributes) -> None:
    body = tokens.join(first + 2, last - 1)
    if _STANDARD.match(body) or tokens.text(last - 1) != "]":
        return
    where = tokens[first].where
    tokens.blank(first, last)
    if _KERNEL.match(body):
        found.kernels.add(last)
    elif _HOST_NAME.match(body):
        name = "".join(re.findall(r'"(.*?)"', body))
        if not name:
            raise MslError(f'{where}: expected [[host_name("name")]], got [[{body}]]')
        found.host_names[last] = name
    else:
        found.after[tokens.previous(first)] = body
