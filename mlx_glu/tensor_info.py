"""A tensor known by dtype and shape."""

import math
from typing import NamedTuple

import mlx.core as mx


class TensorInfo(NamedTuple):
    """A tensor that has not been read yet."""

    dtype: mx.Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * self.dtype.size
