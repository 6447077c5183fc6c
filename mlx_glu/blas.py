"""A fast BLAS for MLX's CPU backend on Linux.

MLX's Linux wheel brings the reference BLAS, at a few GFLOP/s. It calls it
through the public symbols, so an OpenBLAS that is loaded first takes over.
"""

import ctypes
import os
import sys
import time
from functools import cache

#: Sonames of Debian, Fedora and conda; the threaded builds first.
LIBRARIES = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so")

#: Reference BLAS stays below 5 GFLOP/s, an optimised one starts above 20.
FAST_GFLOPS = 10.0


@cache
def preload() -> str | None:
    """Load the system's OpenBLAS, unless MLX is loaded already.

    ``MLX_GLU_BLAS`` names another library, or is ``none`` for MLX's own.

    Returns:
        Why the library that ``MLX_GLU_BLAS`` names cannot be loaded; `check` raises
        it, as an import is no place to fail.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return None
    wanted = os.environ.get("MLX_GLU_BLAS")
    if wanted == "none":
        return None
    for name in (wanted,) if wanted else LIBRARIES:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return None
        except OSError as error:
            if wanted:
                return str(error)
    return None


def check() -> None:
    """Raise what `preload` returned.

    Raises:
        ValueError: the library that ``MLX_GLU_BLAS`` names cannot be loaded.
    """
    problem = preload()
    if problem:
        raise ValueError(
            f"[blas] MLX_GLU_BLAS: {problem}; unset it, or set it to none for MLX's own"
        )


@cache
def gflops() -> float:
    """Speed of a float32 matrix product on the CPU, measured once in a few ms.

    Products too small for a second thread, and the best of many short tries: a busy
    machine must not pass for a slow library.

    Raises:
        ValueError: as `check`.
    """
    import mlx.core as mx

    check()
    n, chain, best = 64, 8, float("inf")
    with mx.stream(mx.cpu):
        a = mx.eye(n)
        mx.eval(a)
        for _ in range(20):
            start, product = time.perf_counter(), a
            for _ in range(chain):
                product = product @ a
            mx.eval(product)
            best = min(best, time.perf_counter() - start)
    return chain * 2 * n**3 / best / 1e9


def is_fast() -> bool:
    """Is MLX's CPU matrix product an optimised one?"""
    return gflops() > FAST_GFLOPS
