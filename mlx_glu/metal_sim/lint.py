"""What Apple's compiler would refuse, or a GPU run badly, in a kernel's source.

The same C++ as for a run, but with real address spaces and without a launch.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from subprocess import CompletedProcess

from . import toolchain
from .compiled_rules import CompiledKernel
from .desugar import Desugared, desugar
from .diagnostics import WARNINGS, read_diagnostics
from .language import check_buffers, check_text, check_tokens
from .tokens import MslError

_METAL_VERSION = re.compile(r"__METAL_VERSION__=(\d+)")
_CAST = re.compile(r"CStyleCastExpr .* '([^']+)'.* <AddressSpaceConversion>")
_IR_FLAGS = ("-g", "-O0", "-Xclang", "-disable-llvm-passes", "-S", "-emit-llvm")


def lint(
    source: str,
    kernel: str | None = None,
    template: str = "",
    *,
    includes: Sequence[str] = (),
    defines: Sequence[str] = (),
    constants: Mapping[int, object] | None = None,
) -> list[str]:
    """Check a kernel against the rules of Metal.

    Args:
        source: MSL; what ``newLibraryWithSource`` would get.
        kernel: name or ``host_name``; the first kernel of the text if None.
        template: arguments for a template kernel without instantiation.
        includes: folders to search for headers.
        defines: macros, as ``NAME`` or ``NAME=VALUE``; ``__METAL_VERSION__=400``
            allows C++17.
        constants: function constants by index; those left out are 0.

    Returns:
        One line for each problem, in the order they were found; empty if clean.

    Raises:
        ValueError: there is no such kernel, or no compiler.
    """
    problems = list(check_text(source))
    constants = constants or {}
    try:
        text = toolchain.preprocess(source, includes, defines)
        problems += check_tokens(text)
        result = desugar(text, constants=constants, lint=True)
    except toolchain.CompileError as error:
        return problems + read_diagnostics(error.output).problems
    except MslError as error:
        return [*problems, str(error)]
    problems += result.warnings
    signature, function = result.instance(kernel, template)
    problems += check_buffers(signature)
    metal4 = any(int(v) >= 400 for v in _METAL_VERSION.findall(" ".join(defines)))
    problems += _compile(text, result, function, constants, metal4)
    return list(dict.fromkeys(problems))


def _compile(
    text: str,
    result: Desugared,
    function: str,
    constants: Mapping[int, object],
    metal4: bool,
) -> Iterator[str]:
    done = _clang(result.text, function, "-DMSL_LINT", *_IR_FLAGS)
    diagnosis = read_diagnostics(done.stderr, result.members, metal4=metal4)
    yield from (_name_instance(line, function) for line in diagnosis.problems)
    ir = done.stdout
    if diagnosis.forgiven:
        yield from _check_casts(result.text, function)
        erased = desugar(text, constants=constants)
        ir = _clang(erased.text, function, *_IR_FLAGS).stdout
    if ir:
        yield from CompiledKernel(ir, str(toolchain.INCLUDE)).problems()


def _name_instance(problem: str, function: str) -> str:
    if "'__msl_use'" not in problem:
        return problem
    return f"'{function}' names no kernel; check its template arguments"


def _check_casts(text: str, function: str) -> Iterator[str]:
    """Check the casts of a kernel that copies structs between address spaces.

    Metal does so and clang does not, so there is no IR with address spaces.
    """
    flags = ("-DMSL_LINT", "-fsyntax-only", "-Xclang", "-ast-dump")
    for target in _CAST.findall(_clang(text, function, *flags).stdout):
        yield f"a cast to '{target}' drops or changes the address space"


def _clang(text: str, function: str, *flags: str) -> CompletedProcess[str]:
    args = [
        *("-isystem", str(toolchain.INCLUDE)),  # no warnings about our own headers
        *toolchain.KERNEL_FLAGS,
        *toolchain.TARGETS[toolchain.machine()],
        *WARNINGS,
        *flags,
    ]
    unit = f'#include "msl/shim.h"\n{text}\nauto __msl_use = &{function};\n'
    return toolchain.clang(["-x", "c++", *args, "-o", "-", "-"], unit)
