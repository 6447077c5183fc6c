"""The compiler: clang and lld out of the ``ziglang`` wheel, and the cache of results.

``zig clang`` is the plain clang driver, ``zig ld.lld`` the plain linker; neither
needs a C library, as everything that is compiled here is freestanding.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from .. import user_cache

PACKAGE = Path(__file__).parent
INCLUDE = PACKAGE / "include"

TARGETS = {
    "x86_64": ("--target=x86_64-linux-gnu", "-march=x86-64-v3"),
    "aarch64": ("--target=aarch64-linux-gnu", "-march=armv8.2-a+fp16"),
}
_SAME_MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}

# What both the kernel and the runtime need: no libc, no libc++, no exceptions.
FREESTANDING_FLAGS = (
    "-std=c++17",
    "-ffreestanding",
    "-nostdinc",
    "-fno-exceptions",
    "-fno-rtti",
    "-fPIC",
    "-fvisibility=hidden",
)
# The C++ dialect closest to MSL: an unsuffixed literal is a float, char is signed,
# half and bfloat are rounded after every operation.
KERNEL_FLAGS = (
    *FREESTANDING_FLAGS,
    "-fno-math-errno",
    # A call of a function that holds a simdgroup operation must not be duplicated.
    "-fconvergent-functions",
    "-fsigned-char",
    "-Wno-everything",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
    "-Xclang",
    "-cl-single-precision-constant",
    f"-I{INCLUDE}",
)
_PREPROCESS_FLAGS = ("-E", "-x", "c++", *FREESTANDING_FLAGS, f"-I{INCLUDE}")
_RUNTIME_FLAGS = ("-O2", "-g1", *FREESTANDING_FLAGS)
_SEAL = hashlib.sha256().digest_size


class CompileError(ValueError):
    """The compiler or the linker refused a source.

    Attributes:
        output: everything it printed.
    """

    def __init__(self, output: str) -> None:
        lines = [line for line in output.splitlines() if "error:" in line]
        shown = "\n".join(lines[:8]) or output.strip()
        super().__init__(f"[metal_sim] the kernel does not compile:\n{shown}")
        self.output = output


@lru_cache(1)
def machine() -> str:
    """Return the key of :data:`TARGETS` for this computer.

    Raises:
        ValueError: not Linux, or a processor the runtime is not written for.
    """
    name = platform.machine().lower()
    name = _SAME_MACHINE.get(name, name)
    if not sys.platform.startswith("linux") or name not in TARGETS:
        raise ValueError(
            f"[metal_sim] the simulator runs on Linux on {' or '.join(TARGETS)}, but "
            f"this is {platform.system()} on {name}; use a Linux container, or "
            "mx.fast.metal_kernel where there is a Metal GPU"
        )
    return name


@lru_cache(1)
def zig() -> str:
    """Return the path of the compiler.

    Raises:
        ValueError: there is none for this computer.
    """
    machine()
    try:
        import elftools  # noqa: F401  for places in findings, too late to miss there
        import ziglang
    except ImportError as error:
        raise ValueError(
            "[metal_sim] the simulator compiles with the clang of the ziglang package "
            f"and needs pyelftools, but {error.name} is not installed; "
            "pip install ziglang==0.17.1 pyelftools"
        ) from None
    return str(Path(ziglang.__file__).parent / "zig")


def _zig_tool(
    tool: str, args: Sequence[str], stdin: str | None
) -> subprocess.CompletedProcess[str]:
    command = [zig(), tool, *args]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, errors="replace"
    )


def clang(
    args: Sequence[str], stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the clang driver; the caller looks at ``returncode`` and ``stderr``.

    Args:
        args: the command line after ``clang``.
        stdin: text for an input file called ``-``.

    Raises:
        ValueError: there is no compiler for this computer.
    """
    return _zig_tool("clang", args, stdin)


def preprocess(text: str, includes: Sequence[str], defines: Sequence[str]) -> str:
    """Expand includes and macros; line markers keep the author's lines.

    Args:
        text: MSL source.
        includes: folders to search, after the simulator's own.
        defines: macros, as ``NAME`` or ``NAME=VALUE``.

    Raises:
        CompileError: an include is missing, or ``#error`` was reached.
    """
    done = clang(
        [
            *_PREPROCESS_FLAGS,
            *(f"-I{folder}" for folder in includes),
            *(f"-D{define}" for define in defines),
            "-",
        ],
        text,
    )
    if done.returncode:
        raise CompileError(done.stderr)
    return done.stdout


def cache_folder() -> Path:
    """Return the folder of compiled kernels, made if need be.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        folder = user_cache.cache_folder() / "metal_sim"
    except RuntimeError:
        raise ValueError(
            "[metal_sim] there is no home directory to keep compiled kernels in; set "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_cache(folder, error) from None
    return folder


def _no_cache(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"[metal_sim] compiled kernels are kept in {folder}, which cannot be written "
        f"({error}); set XDG_CACHE_HOME to a folder that can"
    )


@contextlib.contextmanager
def _temporary_folder(beside: Path) -> Iterator[Path]:
    # Beside the result, as os.replace cannot cross file systems.
    try:
        folder = tempfile.TemporaryDirectory(prefix="build-", dir=beside.parent)
    except OSError as error:
        raise _no_cache(beside.parent, error) from None
    with folder as name:
        yield Path(name)


def compile_shared(
    source: str, out: Path, flags: Sequence[str], *, language: str = "c++"
) -> None:
    """Compile a text into a shared library, written in one step.

    Two processes may write the same library: each publishes a whole one.

    Args:
        source: C++ text, or LLVM IR with ``language="ir"``.
        out: the library.
        flags: for clang; the target and ``-O`` level included.
        language: clang's ``-x``.

    Raises:
        CompileError: clang or the linker refused it.
    """
    with _temporary_folder(out) as folder:
        unit, library = folder / "unit.o", folder / "library.so"
        args = ["-x", language, *flags, "-c", "-", "-o", str(unit)]
        done = clang(args, source)
        if not done.returncode:
            done = _zig_tool("ld.lld", ["-shared", str(unit), "-o", str(library)], None)
        if done.returncode:
            raise CompileError(done.stderr)
        content = library.read_bytes()
        library.write_bytes(content + hashlib.sha256(content).digest())
        os.replace(library, out)


def is_whole(library: Path) -> bool:
    """Say whether a library is there as :func:`compile_shared` wrote it.

    Its digest stands behind it: loading a library that was cut short can end the
    process with a bus error rather than an exception.
    """
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_SEAL]).digest() == content[-_SEAL:]


def digest(*parts: object) -> str:
    """Return 20 hexadecimal digits that name these values in the cache."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


@lru_cache(1)
def runtime_library() -> Path:
    """Compile ``runtime/runtime.cpp`` if its folder has changed; return the library."""
    folder = PACKAGE / "runtime"
    texts = [(p.name, p.read_text()) for p in sorted(folder.iterdir()) if p.is_file()]
    flags = [*_RUNTIME_FLAGS, *TARGETS[machine()], f"-I{folder}"]
    out = cache_folder() / f"runtime-{digest(flags, texts)}.so"
    if not is_whole(out):
        main = folder / "runtime.cpp"
        compile_shared(f'#include "{main}"\n', out, flags)
    return out
