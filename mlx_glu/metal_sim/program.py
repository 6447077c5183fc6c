"""One kernel, compiled for this processor and loaded into this process."""

from __future__ import annotations

import ctypes
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from . import toolchain
from .arithmetic import ARITHMETIC_FLAGS, Tally, instrument
from .desugar import Desugared, Kernel, Param, desugar
from .options import CHECKED_FLAGS, MODES, STACK_FLAGS

# Two names for one value, and the one value that is always zero.
_ALIASES = {
    "grid_size": "threads_per_grid",
    "grid_origin": "zero3",
    "thread_execution_width": "threads_per_simdgroup",
}
_COMMON_FLAGS = ("-g1", "-Wno-everything")
# A misaligned float4 is a fault of the kernel, not of the process.
_FAST_FLAGS = ("-O2", "-fmax-type-align=8", *STACK_FLAGS)

_LAUNCHER = """
#line 1 "launcher"
#include "msl/launch.h"
extern "C" MSL_NOSAN __attribute__((visibility("default")))
void msl_launch(const MslThread* self, void* const* buffers) {{
  using Function = __msl_fn<decltype({function})>;
  {function}({arguments});
}}
"""


@dataclass(frozen=True)
class _Built:
    """What a cache entry says about its library."""

    buffer_names: dict[int, str]
    warnings: list[str]
    tallies: list[dict[str, int]]


class Program:
    """A compiled kernel; :func:`~mlx_glu.metal_sim.launch.run` runs it.

    Attributes:
        library: the shared library, in the cache.
        entry: address of its ``msl_launch``.
        buffer_names: the kernel's name for each buffer index.
        mode: one of :data:`MODES`.
        block_tallies: operations of each basic block; empty but in arithmetic mode.
        warnings: what was translated with a loss.
    """

    def __init__(
        self,
        source: str,
        kernel: str | None = None,
        template: str = "",
        *,
        includes: Sequence[str] = (),
        defines: Sequence[str] = (),
        constants: Mapping[int, object] | None = None,
        mode: str = "checked",
        contract: str = "on",
    ) -> None:
        """Compile ``source``, or find it in the cache.

        Args:
            source: MSL; what ``newLibraryWithSource`` would get.
            kernel: name or ``host_name``; the first kernel of the text if None.
            template: arguments for a template kernel without instantiation.
            includes: folders to search for headers.
            defines: macros, as ``NAME`` or ``NAME=VALUE``.
            constants: function constants by index; those left out are 0.
            mode: ``"fast"``, ``"checked"`` or ``"arithmetic"``.
            contract: clang's ``-ffp-contract``: ``"on"``, ``"off"`` or ``"fast"``.

        Raises:
            CompileError: clang refused it.
            MslError: it is not MSL that the simulator knows.
            ValueError: there is no such kernel, mode or compiler.
        """
        if mode not in MODES:
            raise ValueError(
                f"[metal_sim] mode is one of {', '.join(MODES)}, but got {mode!r}"
            )
        text = toolchain.preprocess(source, includes, defines)
        constants = dict(sorted((constants or {}).items()))
        flags = _flags(mode, contract)
        key = (text, kernel, template, constants, flags, mode, _package_texts())
        self.library = toolchain.cache_folder() / f"{toolchain.digest(key)}.so"
        note = self.library.with_suffix(".json")
        built = _read(note)
        if built is None or not toolchain.is_whole(self.library):
            result = desugar(text, constants=constants)
            built = _build(result, kernel, template, flags, mode, self.library)
            _write(note, built)
        self.mode = mode
        self.buffer_names = built.buffer_names
        self.warnings = tuple(built.warnings)
        self.block_tallies = tuple(Tally(**fields) for fields in built.tallies)
        self.entry = _load(self.library)


def _flags(mode: str, contract: str) -> tuple[str, ...]:
    by_mode = {
        "fast": _FAST_FLAGS,
        "checked": CHECKED_FLAGS,
        "arithmetic": ARITHMETIC_FLAGS,
    }
    return (
        *toolchain.KERNEL_FLAGS,
        *toolchain.TARGETS[toolchain.machine()],
        f"-ffp-contract={contract}",
        *_COMMON_FLAGS,
        *by_mode[mode],
    )


@lru_cache(1)
def _package_texts() -> str:
    """Digest of all that decides how a text is compiled."""
    files = [*toolchain.PACKAGE.glob("*.py"), *toolchain.INCLUDE.rglob("*")]
    texts = [(p.name, p.read_bytes()) for p in sorted(files) if p.is_file()]
    return toolchain.digest(texts)


def _build(
    result: Desugared,
    kernel: str | None,
    template: str,
    flags: Sequence[str],
    mode: str,
    library: Path,
) -> _Built:
    signature, function = result.instance(kernel, template)
    text = (
        '#include "msl/shim.h"\n'
        + result.text
        + _LAUNCHER.format(function=function, arguments=_arguments(signature))
    )
    tallies: list[Tally] = []
    if mode == "arithmetic":
        done = toolchain.clang(
            ["-x", "c++", *flags, "-S", "-emit-llvm", "-o", "-", "-"], text
        )
        if done.returncode:
            raise toolchain.CompileError(done.stderr)
        text, tallies = instrument(done.stdout)
        toolchain.compile_shared(text, library, flags, language="ir")
    else:
        toolchain.compile_shared(text, library, flags)
    names = {p.index: p.name for p in _buffers(signature) if p.index is not None}
    return _Built(names, list(result.warnings), [asdict(t) for t in tallies])


def _buffers(signature: Kernel) -> list[Param]:
    return [p for p in signature.params if p.attr == "buffer"]


def _arguments(signature: Kernel) -> str:
    """Return the C++ arguments that call a kernel from ``msl_launch``."""
    texts = []
    for position, param in enumerate(signature.params):
        kind = f"Function::arg<{position}>"
        if param.attr == "buffer":
            texts.append(f"__msl_buf<{kind}>::get(buffers[{param.index}])")
        else:
            name = _ALIASES.get(param.attr or "", param.attr)
            texts.append(f"__msl_builtin<{kind}>((const uint*)&self->{name})")
    return ",\n      ".join(texts)


def _read(note: Path) -> _Built | None:
    try:
        fields = json.loads(note.read_text())
        names = {int(index): name for index, name in fields["buffer_names"].items()}
        return _Built(names, fields["warnings"], fields["tallies"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _write(note: Path, built: _Built) -> None:
    handle, name = tempfile.mkstemp(prefix="build-", dir=note.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(built), file)
    os.replace(name, note)


@lru_cache(1)
def runtime() -> ctypes.CDLL:
    """Compile and load the runtime; kernels find its functions by name."""
    # The mathematical functions of the shim. With musl they are in the C library.
    try:
        ctypes.CDLL("libm.so.6", ctypes.RTLD_GLOBAL)
    except OSError:
        ctypes.CDLL(None, ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(toolchain.runtime_library()), ctypes.RTLD_GLOBAL)


def _load(library: Path) -> int:
    runtime()
    try:
        function = ctypes.CDLL(str(library)).msl_launch
    except OSError as error:
        raise toolchain.CompileError(f"error: {error}") from None
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
