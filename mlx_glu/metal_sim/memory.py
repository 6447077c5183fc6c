"""Memory that a run shares with its child process."""

import ctypes
import math
import mmap
from typing import TypeVar

import numpy as np

from .bindings import GUARD, REGIONS, Launch, Note, Region
from .report import TRACE

NOTES = 64
_NORESERVE = 0x4000
_CACHE_LINE = 256
_HEAD = 1 << 16

_T = TypeVar("_T", bound=ctypes.Structure)


class SharedMemory:
    """Zeroed pages, handed out from the front; untouched ones cost nothing."""

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NORESERVE
        self._map = mmap.mmap(-1, size + GUARD, flags=flags)
        self._bytes = np.frombuffer(self._map, np.uint8)
        # Offsets are counted from an aligned address.
        self._bytes = self._bytes[-self._bytes.ctypes.data % GUARD :]
        self._used = 0

    def skip(self, size: int, alignment: int) -> None:
        """Leave ``size`` bytes out, and more up to the alignment."""
        self._used = -(-(self._used + size) // alignment) * alignment

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        """Hand out [count] elements."""
        begin = self._used
        self._used += dtype.itemsize * count
        assert self._used <= len(self._bytes), "shared memory laid out too small"
        return self._bytes[begin : self._used].view(dtype)

    def structures(self, kind: type[_T], count: int) -> ctypes.Array[_T]:
        """Hand out an array of structures."""
        self.skip(0, _CACHE_LINE)
        room = self.array(np.dtype("u1"), ctypes.sizeof(kind) * count)
        return (kind * count).from_address(room.ctypes.data)


class Layout:
    """Where the buffers, the results and the description of one run lie.

    Buffers are far apart, so that a wrong index does not meet another one.

    Attributes:
        launch: the description.
        regions: one per buffer.
        notes: room for findings.
        pointers: address of each buffer, by index.
        blocks: [blocks] counts.
        trace: room for accesses.
        places: [bytes] of each buffer, by index.
        gap: bytes between buffers, at least.
    """

    def __init__(
        self, arrays: dict[int, np.ndarray], *, blocks: int, trace: int, flush: bool
    ) -> None:
        """Make room and copy the arrays in.

        Args:
            arrays: contiguous, by buffer index.
            blocks: how many basic blocks are counted.
            trace: how many accesses are listed.
            flush: end each buffer at a guard page, rather than start it at a page.
        """
        self.gap = _round_up(max([1 << 20, *(a.nbytes for a in arrays.values())]))
        total = sum(_round_up(a.nbytes) + self.gap for a in arrays.values())
        head = _round_up(_HEAD + 8 * blocks + TRACE.itemsize * trace)
        self._memory = SharedMemory(head + total + 2 * self.gap)
        self.launch = self._memory.structures(Launch, 1)[0]
        self.regions = self._memory.structures(Region, REGIONS)
        self.notes = self._memory.structures(Note, NOTES)
        self.pointers = self._memory.array(np.dtype("u8"), REGIONS)
        self.blocks = self._memory.array(np.dtype("u8"), blocks)
        self._memory.skip(0, _CACHE_LINE)
        self.trace = self._memory.array(TRACE, trace)
        self.places: dict[int, np.ndarray] = {}
        for region, (index, array) in zip(self.regions, arrays.items(), strict=False):
            self._place(region, index, array, flush)

    def _place(
        self, region: Region, index: int, array: np.ndarray, flush: bool
    ) -> None:
        size = array.nbytes
        self._memory.skip(self.gap, GUARD)
        if flush:
            # The end stays aligned enough for the widest vector that fits.
            alignment = 16 if size >= 16 else 1 << max(size - 1, 0).bit_length()
            self._memory.skip(-size % GUARD - -size % alignment, 1)
        # NumPy gives an empty slice the address of the whole.
        place = self._memory.array(np.dtype("u1"), max(size, 1))
        self.pointers[index] = region.base = place.ctypes.data
        self.places[index] = place[:size]
        self.places[index][:] = array.reshape(-1).view(np.uint8)
        region.size = size
        region.element = array.itemsize
        region.granule = math.gcd(array.itemsize, 4)


def _round_up(size: int) -> int:
    return -(-size // GUARD) * GUARD
