"""What the installed MLX itself makes of a kernel: the reference for ``signature``.

MLX writes the text when a call is traced for export, which needs no GPU.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx


def mlx_source(
    constructor_kwargs: Mapping[str, Any], call_kwargs: Mapping[str, Any]
) -> str:
    """Return the text that MLX hands to Metal's compiler, without its preamble.

    Not for several threads: MLX prints the text, so standard output is caught.

    Args:
        constructor_kwargs: arguments of ``mx.fast.metal_kernel``.
        call_kwargs: arguments of the kernel's call.

    Raises:
        ValueError: MLX refused the kernel or the call, or printed nothing.
    """
    kernel: Any = mx.fast.metal_kernel(**constructor_kwargs)
    inputs = [
        x if isinstance(x, mx.array) else mx.array(x) for x in call_kwargs["inputs"]
    ]

    def call(*arrays: mx.array) -> tuple[mx.array, ...]:
        changes = {"inputs": list(arrays), "verbose": True}
        return tuple(kernel(**{**call_kwargs, **changes}))

    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "stdout"
        sys.stdout.flush()
        saved = os.dup(1)
        try:
            with printed.open("wb") as file:
                os.dup2(file.fileno(), 1)
            mx.export_function(str(Path(folder) / "call.mlxfn"), call, *inputs)
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        text = printed.read_text()
    _, mark, rest = text.partition("```\n")
    if not mark:
        raise ValueError(
            "[metal_sim] MLX was to print the kernel while it traces the call, but "
            f"printed {text!r}; mlx >= 0.32 does"
        )
    return rest.rpartition("\n```")[0]
