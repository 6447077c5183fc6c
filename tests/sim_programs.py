"""What the simulator's tests share: the reason to skip, and MLX's own kernels."""

from pathlib import Path

import mlx
import pytest

from mlx_glu.metal_sim import toolchain


def _missing():
    try:
        toolchain.zig()
    except ValueError as error:
        return str(error)
    return ""


needs_simulator = pytest.mark.skipif(bool(_missing()), reason=_missing())

MLX_INCLUDE = str(Path(next(iter(mlx.__path__))) / "include")
