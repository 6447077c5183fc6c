"""Where this package keeps what it made for a user."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/mlx_glu``, or ``~/.cache/mlx_glu``; it need not exist.

    Raises:
        RuntimeError: the variable is not set and there is no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mlx_glu"
