"""Metal kernels run and checked on Linux, without a GPU.

``metal_kernel`` is called like ``mx.fast.metal_kernel``. The text of the kernel is
compiled unchanged for this processor; every GPU thread is a fiber, simdgroups and
barriers are exact, and a checker watches each access to memory.
"""

# Not on first use: three functions have the name of their module.
from .kernel import MetalKernel, Run, metal_kernel, record
from .launch import run
from .lint import lint
from .options import Options, options
from .program import Program
from .report import Finding, KernelError, Report
from .tokens import MslError
from .toolchain import CompileError

__all__ = [
    "CompileError",
    "Finding",
    "KernelError",
    "MetalKernel",
    "MslError",
    "Options",
    "Program",
    "Report",
    "Run",
    "lint",
    "metal_kernel",
    "options",
    "record",
    "run",
]
