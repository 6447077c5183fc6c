"""What a simulated run does: mode, strictness, orders, limits."""

import contextlib
import dataclasses
import platform
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

MODES = ("fast", "checked", "arithmetic")
CHOICES: dict[str, tuple[object, ...]] = {
    "mode": MODES,
    "strict": (0, 1, 2),
    "lane_order": ("forward", "reverse", "permuted"),
    "reduce_order": ("tree", "sequential", "reversed"),
    "flush_denormals": (False, True),
    "contract": ("on", "off", "fast"),
}

# Big frames touch every page of the stack, so that an overflow meets a guard page.
# Calls at the end of a function or of two branches stay calls of their own, so that
# their place in the source is known.
STACK_FLAGS = (
    "-fstack-clash-protection",
    "-fno-optimize-sibling-calls",
    "-mllvm",
    "-enable-tail-merge=0",
)

# Vectors of at most 16 bytes: the checker knows no larger access.
_NARROW_VECTORS = {
    "x86_64": ("-march=x86-64-v2", "-mf16c"),
    "amd64": ("-march=x86-64-v2", "-mf16c"),
}

# Calls into the checker before every access to memory that threads share, and where
# an index, an alignment, a shift or a divisor is wrong. The checks do not recover, as
# the optimiser would keep loads apart around those that do. Nothing is unrolled or
# vectorised: one load of the source is one instruction.
CHECKED_FLAGS = (
    "-O2",
    *_NARROW_VECTORS.get(platform.machine().lower(), ()),
    *STACK_FLAGS,
    "-fno-unroll-loops",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-fsanitize=thread",
    "-fsanitize=bounds,shift,integer-divide-by-zero,alignment",
    "-fno-sanitize-recover=all",
    "-ftrivial-auto-var-init=pattern",  # NaN, so that unset private memory shows
    "-fstrict-flex-arrays=3",  # an array that ends a struct has bounds too
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
)


@dataclass(frozen=True)
class Options:
    """How kernels run in the simulator.

    Attributes:
        mode: "checked" reports every fault, "fast" only wrong control flow and
            crashes, "arithmetic" counts operations.
        strict: 0 allows simdgroup operations by part of a simdgroup; 1 refuses
            them where other lanes wait at a barrier; 2 refuses them all, and
            unwritten outputs and unordered writes of one value too.
        lane_order: in which order the lanes of a simdgroup run.
        reduce_order: in which order ``simd_sum`` and the like combine lanes.
        flush_denormals: treat float32 denormals as zero, as the GPU may.
        contract: fusing of a * b + c, as clang's ``-ffp-contract``.
        time_limit: seconds after which a run is stopped.
        trace_groups: how many threadgroups' accesses the report lists.

    Raises:
        ValueError: a value is not one of the choices.
    """

    mode: str = "checked"
    strict: int = 2
    lane_order: str = "forward"
    reduce_order: str = "tree"
    flush_denormals: bool = False
    contract: str = "on"
    time_limit: float = 60.0
    trace_groups: int = 0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                expected = ", ".join(repr(choice) for choice in choices)
                raise ValueError(f"[options] {name}={value!r}; choose from {expected}")
        if not self.time_limit > 0:
            raise ValueError(
                f"[options] time_limit={self.time_limit!r}; expected seconds above 0"
            )
        if self.trace_groups < 0:
            raise ValueError(
                f"[options] trace_groups={self.trace_groups!r}; expected 0 or more"
            )

    def order(self, name: str) -> int:
        """Position of an option's value among its choices."""
        return CHOICES[name].index(getattr(self, name))


_DEFAULT = Options()
_CURRENT: ContextVar[Options] = ContextVar("metal_sim_options", default=_DEFAULT)


def current() -> Options:
    """Options that hold here."""
    return _CURRENT.get()


@contextlib.contextmanager
def options(**changes: object) -> Iterator[Options]:
    """Change some options for the runs inside.

    Args:
        **changes: fields of :class:`Options`.

    Yields:
        The options that hold inside.

    Raises:
        ValueError: a name or a value is unknown.
    """
    names = [field.name for field in dataclasses.fields(Options)]
    for name in changes:
        if name not in names:
            raise ValueError(f"[options] no option {name!r}; choose from {names}")
    changed = dataclasses.replace(current(), **changes)  # type: ignore[arg-type]
    token = _CURRENT.set(changed)
    try:
        yield changed
    finally:
        _CURRENT.reset(token)
