"""The machine that a measurement holds for, and what is known of its chip."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

import mlx.core as mx

from .. import __version__


@dataclass(frozen=True)
class Machine:
    """What a verdict depends on beside the case.

    Attributes:
        name: of the device, for instance "Apple M3 Max".
        architecture: of the GPU as MLX says it, for instance "applegpu_g15s".
        memory: bytes; with ``cores`` it tells chips of one name apart.
        cores: of the CPU.
        os: name and version of the operating system.
        mlx: its version.
        package: version of this package.
    """

    name: str
    architecture: str
    memory: int
    cores: int
    os: str
    mlx: str
    package: str = __version__

    @staticmethod
    @cache
    def here() -> Machine:
        """This machine; asked once a process."""
        gpu = mx.metal.is_available()
        info = mx.device_info(mx.gpu) if gpu else mx.device_info()
        mac = platform.mac_ver()[0]
        return Machine(
            name=str(info.get("device_name", platform.machine())),
            architecture=str(info.get("architecture", "")),
            memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            cores=os.cpu_count() or 0,
            os=f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}",
            mlx=version("mlx"),
        )

    @property
    def key(self) -> str:
        """All of it in a line; verdicts are kept under it."""
        return (
            f"{self.name} ({self.architecture}), {self.cores} CPU cores, "
            f"{self.memory / 2**30:.0f} GB, {self.os}, MLX {self.mlx}, "
            f"mlx_glu {self.package}"
        )

    @property
    def generation(self) -> int:
        """Of the GPU: 13 is M1, 17 is M5; 0 if it is no Apple GPU."""
        return _parse(self.architecture)[0]

    @property
    def suffix(self) -> str:
        """Size of the GPU: "p" phone, "g" base, "s" Max, "d" Ultra; "" if unknown."""
        return _parse(self.architecture)[1]

    @property
    def has_neural_accelerators(self) -> bool:
        """Whether MLX can multiply many rows with them here, by the chip alone."""
        return self.generation >= (18 if self.suffix == "p" else 17)


class Limits(NamedTuple):
    """A row of :data:`VECTOR_LIMITS`, for chips from a generation on.

    Attributes:
        first: the oldest generation.
        last: the newest, or None.
        suffixes: sizes of the GPU, or "" for all.
        up_to_2048: the limit where neither K nor N is larger.
        up_to_4096: as before.
        beyond: the limit of larger ones.
    """

    first: int
    last: int | None
    suffixes: str
    up_to_2048: int
    up_to_4096: int
    beyond: int


#: Rows of x from which MLX multiplies by a packed weight [N, K] as by a matrix, and
#: not as by vectors; the first row that fits holds. From get_qmv_batch_limit of
#: MLX 0.32.4, read in its source and its macOS binary, not measured.
VECTOR_LIMITS = (
    Limits(13, None, "d", 32, 18, 12),
    Limits(17, None, "", 33, 25, 13),
    Limits(15, None, "", 13, 15, 13),
    Limits(13, 13, "s", 14, 10, 7),
    Limits(13, None, "", 14, 10, 6),
    Limits(0, None, "d", 32, 18, 12),
    Limits(0, None, "", 18, 12, 10),
)


def vector_limit(generation: int, suffix: str, K: int, N: int) -> int:
    """Rows of x from which MLX has another kernel for a packed weight [N, K].

    Args:
        generation: of the GPU, as :attr:`Machine.generation`.
        suffix: of the GPU, as :attr:`Machine.suffix`.
        K: columns of the weight.
        N: its rows.

    Returns:
        The first number of rows of x that is no longer a few vectors.
    """
    row = next(
        r
        for r in VECTOR_LIMITS
        if r.first <= generation <= (generation if r.last is None else r.last)
        and suffix in (r.suffixes or suffix)
    )
    largest = max(K, N)
    if largest <= 2048:
        return row.up_to_2048
    return row.up_to_4096 if largest <= 4096 else row.beyond


@cache
def _parse(architecture: str) -> tuple[int, str]:
    found = re.fullmatch(r"applegpu_g(\d+)([a-z]?)", architecture)
    return (int(found[1]), found[2]) if found else (0, "")
