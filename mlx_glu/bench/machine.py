"""What a result must say about where it was measured."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from .. import __version__, jit, paired, tuning

#: Floats of the array that is copied: 128 MB, more than any cache.
_COPIED = 1 << 25


class Machine(NamedTuple):
    """A machine and the software on it.

    Attributes:
        date: of today, ISO.
        package: version of this package.
        commit: of the clone that it runs from, "-dirty" behind it if it was changed;
            None elsewhere.
        chip: name of the GPU, or of the CPU where that runs the arms.
        device: "gpu" or "cpu".
        os: system and version.
        mlx: version.
        copy_gbps: bytes read and written in a second of a large x + 1.
    """

    date: str
    package: str
    commit: str | None
    chip: str
    device: str
    os: str
    mlx: str
    copy_gbps: float


def on_gpu() -> bool:
    """Whether MLX's default device is a GPU."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def runs_kernels() -> bool:
    """Whether fused arms can run: on an Apple GPU, or inside ``simulate``."""
    return jit.backend() in ("metal", "simulator")


def this_machine() -> Machine:
    """Look around, and measure a copy."""
    return Machine(**described(), copy_gbps=_copy_gbps())


def described() -> dict[str, Any]:
    """All of it by name but what has to be measured."""
    here = tuning.Machine.here()
    name = str(mx.device_info().get("device_name", "")) or platform.processor()
    return {
        "date": datetime.date.today().isoformat(),
        "package": __version__,
        "commit": _commit(),
        "chip": name,
        "device": "gpu" if on_gpu() else "cpu",
        "os": here.os,
        "mlx": here.mlx,
    }


def _copy_gbps() -> float:
    x = mx.zeros(_COPIED)
    mx.eval(x)
    arms = {"copy": lambda: mx.eval(x + 1)}
    seconds = paired.interleave(arms, 5, warmup=2)["copy"]
    return 2 * x.nbytes / paired.spread(seconds).p50 / 1e9


def _commit() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None  # installed; a repository further up is not ours
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
