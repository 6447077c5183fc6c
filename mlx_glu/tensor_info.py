"""A tensor known by dtype and shape."""

import math
from typing import NamedTuple

import mlx.core as mx

#: Unsigned integers of each size, which Python's buffers can hold.
BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


class TensorInfo(NamedTuple):
    """A tensor that has not been read yet."""

    dtype: mx.Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * self.dtype.size
