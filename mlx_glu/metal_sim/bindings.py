"""The structures of ``runtime/abi.h``, and the sentence of each of its findings."""

import ctypes as C

REGIONS = 32
# Pages between buffers and around stacks; kGuard in the runtime.
GUARD = 1 << 16


class Region(C.Structure):
    """One buffer of the kernel."""

    _fields_ = (
        ("base", C.c_uint64),
        ("size", C.c_uint64),
        ("is_output", C.c_uint32),
        ("initialised", C.c_uint32),
        ("granule", C.c_uint32),
        ("element", C.c_uint32),
        ("read", C.c_uint64),
        ("written", C.c_uint64),
        ("read_merged", C.c_uint64),
        ("written_merged", C.c_uint64),
        ("touched", C.c_uint64),
        ("loads", C.c_uint64),
        ("stores", C.c_uint64),
        ("lane_loads", C.c_uint64),
        ("lane_stores", C.c_uint64),
        ("unwritten", C.c_uint64),
        ("first_unwritten", C.c_uint64),
        ("name", C.c_char * 64),
    )


class Note(C.Structure):
    """One finding."""

    _fields_ = (
        ("code", C.c_uint32),
        ("count", C.c_uint32),
        ("pc", C.c_uint64),
        ("other_pc", C.c_uint64),
        ("number", C.c_int64 * 3),
        ("thread", C.c_uint32),
        ("group", C.c_uint32),
        ("is_write", C.c_uint32),
        ("unused", C.c_uint32),
        ("name", C.c_char * 64),
        ("text", C.c_char * 64),
    )


class Launch(C.Structure):
    """One run: what to do, and what came of it."""

    _fields_ = (
        ("function", C.c_uint64),
        ("buffers", C.c_uint64),
        ("regions", C.c_uint64),
        ("notes", C.c_uint64),
        ("trace", C.c_uint64),
        ("blocks", C.c_uint64),
        ("code_low", C.c_uint64),
        ("code_high", C.c_uint64),
        ("stack_size", C.c_uint64),
        ("gap", C.c_uint64),
        ("seconds_allowed", C.c_double),
        ("trace_capacity", C.c_uint64),
        ("grid", C.c_uint32 * 3),
        ("threadgroup", C.c_uint32 * 3),
        ("region_count", C.c_uint32),
        ("note_capacity", C.c_uint32),
        ("block_count", C.c_uint32),
        ("trace_groups", C.c_uint32),
        ("checked", C.c_uint32),
        ("strict", C.c_uint32),
        ("lane_order", C.c_uint32),
        ("reduce_order", C.c_uint32),
        ("flush_denormals", C.c_uint32),
        ("threadgroup_limit", C.c_uint32),
        ("note_count", C.c_uint32),
        ("threadgroup_bytes", C.c_uint32),
        ("trace_count", C.c_uint64),
        ("threadgroups", C.c_uint64),
        ("abandoned", C.c_uint64),
        ("simd_operations", C.c_uint64),
        ("matrix_operations", C.c_uint64),
        ("barriers", C.c_uint64),
        ("simdgroup_barriers", C.c_uint64),
        ("partial_operations", C.c_uint64),
        ("switches", C.c_uint64),
        ("seconds", C.c_double),
        ("group", C.c_uint32),
        ("finished", C.c_uint32),
        ("timed_out", C.c_uint32),
        ("status", C.c_int32),
        ("fork_error", C.c_int64),
    )


# By Code of abi.h: the kind and the sentence. The gaps: name and text of the note,
# its numbers a, b, c; access is "read" or "write", other a second place.
SENTENCES: tuple[tuple[str, str], ...] = (
    ("", ""),
    (
        "divergent-simd",
        "lanes of one simdgroup are at different operations: lane {a} at {name}, "
        "lane {b} at {text}{other}",
    ),
    (
        "simd-inactive-lanes",
        "{name} is reached by part of the simdgroup: {a} lanes are at it, {b} at a "
        "threadgroup_barrier, {c} have exited",
    ),
    (
        "barrier-divergent",
        "threads {a} and {b} wait at different threadgroup_barrier calls{other}",
    ),
    (
        "barrier-exited",
        "{a} threads wait at a threadgroup_barrier, but {b} of the threadgroup have "
        "exited",
    ),
    (
        "threadgroup-memory",
        "threadgroup '{name}' brings the total to {a} bytes; the limit is {b}",
    ),
    (
        "out-of-bounds",
        "{access} out of bounds of '{name}': {b} bytes at byte {a}, but it has {c}",
    ),
    (
        "out-of-bounds",
        "{access} out of bounds of threadgroup '{name}': {b} bytes at byte {a}, but "
        "it has {c}",
    ),
    (
        "out-of-bounds",
        "{access} at address {a}, far from every buffer; is one not bound?",
    ),
    ("read-only", "write to '{name}', which is an input, at byte {a}"),
    (
        "uninitialised",
        "read of output '{name}' at byte {a} before anything wrote it",
    ),
    (
        "uninitialised",
        "read of threadgroup '{name}' at byte {a} before anything wrote it",
    ),
    (
        "race",
        "{access} of '{name}' at byte {a}, which thread {b} of threadgroup {c} wrote "
        "with no barrier between",
    ),
    (
        "race",
        "write of '{name}' at byte {a}, which thread {b} of threadgroup {c} read "
        "with no barrier between",
    ),
    (
        "same-value-race",
        "write of '{name}' at byte {a}, where thread {b} of threadgroup {c} wrote "
        "the same value with no barrier between",
    ),
    ("foreign-stack", "{access} of the private memory of thread {a}"),
    ("array-bounds", "index {a} is out of bounds of {name}"),
    ("array-bounds", "index out of bounds of a private array"),
    ("undefined", "shift of {name} by {a} bits"),
    ("undefined", "integer division by zero, or overflow of it, in {name}"),
    ("misaligned", "address of {name} is {a} bytes past a multiple of 64{owner}"),
    (
        "stack-overflow",
        "thread {a} needs more private memory than {b} bytes; smaller arrays?",
    ),
    ("crash", "{signal} at address {address}{near}"),
    ("timeout", "the kernel did not end in {seconds:g} s; an endless loop?"),
)
