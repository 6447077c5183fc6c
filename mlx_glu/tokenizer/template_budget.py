"""What one rendering of a chat template may make, and how it is counted."""

import math
import re
import time
from collections.abc import Callable, Iterator
from operator import length_hint
from typing import Any

from jinja2.runtime import LoopContext

#: Characters and items that one value may hold, with all that is inside it. A million
#: tokens have 4 million characters.
MAX_VALUE = 1 << 22

#: What all values together may hold, and seconds of this thread's processor time; more
#: for longer chats. The slowest of 150 real templates needs a tenth of either.
MAX_WORK, WORK_PER_CHARACTER = 1 << 25, 100
MAX_SECONDS, SECONDS_PER_CHARACTER = 0.5, 5e-6

_EMPTY: dict[str, str] = {}
_VIEWS = type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items())
_SIZED = (str, list, tuple, dict, *_VIEWS)


class Budget:
    """What one rendering may still do, given the variables it starts with."""

    def __init__(self, variables: dict[str, Any]) -> None:
        self._weights: dict[int, tuple[object, int]] = {}
        self._left, self._end, self._steps = MAX_WORK, math.inf, 0
        weight = self.weigh(variables)
        self._left = MAX_WORK + WORK_PER_CHARACTER * weight
        seconds = MAX_SECONDS + SECONDS_PER_CHARACTER * weight
        self._end = time.thread_time() + seconds

    def spend(self, amount: int) -> None:
        """Pay for ``amount`` characters or items, and one step."""
        self._left -= amount + 1
        if self._left < 0:
            raise ValueError("it makes too many characters and items")
        self._steps += 1 + amount // 1000
        if self._steps > 20:
            self._steps = 0
            if time.thread_time() > self._end:
                raise ValueError("it takes too long")

    def check(self, weight: int) -> None:
        """Refuse a value of this weight."""
        if weight > MAX_VALUE:
            raise ValueError(f"a value has over {MAX_VALUE:,} characters")

    def weigh(self, value: object) -> int:
        """Characters and items of a value, shared ones each time, as its text has.

        Nothing in the sandbox changes, so a value is weighed and paid for once.
        """
        if not isinstance(value, _SIZED):
            if isinstance(value, int) and value.bit_length() > 4096:
                raise ValueError("it makes a number of over 1,000 digits")
            return 8
        known = self._weights.get(id(value))
        if known:
            return known[1]
        if isinstance(value, str):
            weight = len(value)
            self.spend(weight)
        else:
            items: list[Any] = [*value]
            if isinstance(value, dict):
                items += value.values()
            weight = 8 * len(items)
            self.spend(weight)
            weight += sum(map(self.weigh, items))
        self.check(weight)
        self._weights[id(value)] = value, weight
        return weight

    def keep(self, value: Any) -> Any:
        """A new value, weighed; a generator is run, and given back as an iterator."""
        self.weigh(value)
        if isinstance(value, _SIZED) or not isinstance(value, Iterator):
            return value
        if isinstance(value, LoopContext):  # has a next, but is no generator
            return value
        items = list(value)
        self.weigh(items)
        return iter(items)


def formatted(budget: Budget, text: Any, *values: Any, **named: Any) -> int:
    """At most so many characters does ``text % values``, or text.format(...) give."""
    text = str(text)
    numbers = [int(n) for n in re.findall(r"\d{1,9}", text)]
    if "*" in text:  # % takes widths from the values
        numbers += [abs(value) for value in values if isinstance(value, int)]
    if re.search(r"\{[^{}]*\{", text.replace("{{", "")):  # and so does format
        numbers.append(MAX_VALUE)
    widest = max(numbers, default=0) + budget.weigh(values) + budget.weigh(named)
    return int((text.count("%") + text.count("{")) * widest)


#: Characters or items that a filter or method of strings may give beyond its input.
GROWTH: dict[str, Callable[..., int]] = {
    "center": lambda b, value, width=80, fill=" ": width,
    "ljust": lambda b, value, width, fill=" ": width,
    "rjust": lambda b, value, width, fill=" ": width,
    "zfill": lambda b, value, width: width,
    "batch": lambda b, value, linecount, fill_with=None: 8 * linecount,
    "slice": lambda b, value, slices, fill_with=None: 8 * slices,
    "round": lambda b, value, precision=0, method="common": precision << 16,
    "indent": lambda b, s, width=4, first=False, blank=False: (
        (str(s).count("\n") + 1) * size_of(width)
    ),
    "replace": lambda b, s, old, new, count=None: (
        (b.weigh(s) // max(len(str(old)), 1) + 1) * len(str(new))
    ),
    "join": lambda b, value, d="", attribute=None: (
        b.weigh(value) + length_hint(value) * (len(str(d)) + 20)
    ),
    # Sums of lists are quadratic.
    "sum": lambda b, value, attribute=None, start=0: (
        0 if isinstance(start, int | float) else MAX_VALUE + 1
    ),
    "format": formatted,
}


def size_of(value: Any) -> int:
    """A number of characters, or the length of what is repeated."""
    return value if isinstance(value, int) else len(str(value))
