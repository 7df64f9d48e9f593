"""Memory for decoded frames that is used again, because what costs is not copying into it but its first touch."""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref

import numpy as np

from fewstep.video.reading.arrays import Frames

LARGE = 2**26  # bytes, from which on telling the system that it may take them costs little beside using them


class Memory:
    """Gives arrays, and takes their memory back when neither they nor any view or tensor of them is left.

    Up to ``keep`` bytes wait for their next use; of large pieces the system may take the pages meanwhile. The memory
    is the process's own, and after a fork each process has its own copy. One thread at a time may ask for arrays; any
    may drop them.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._free: list[mmap.mmap] = []

    @property
    def waiting(self) -> int:
        """The bytes that wait for their next use."""
        return sum(len(memory) for memory in self._free)

    def array(self, shape: tuple[int, ...]) -> Frames:
        """Return an array of ``shape`` with anything in it."""
        size = math.prod(shape)
        memory = self._taken(size) or mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # numpy's views forget the arrays between them and the memory, but all refer to this object
        owner = (ctypes.c_uint8 * len(memory)).from_buffer(memory)
        weakref.finalize(owner, self._back, memory).atexit = False
        return np.frombuffer(memoryview(owner), np.uint8, size).reshape(shape)

    def _taken(self, size: int) -> mmap.mmap | None:
        """Return the smallest piece that is large enough and not more than twice that; without one, the oldest goes."""
        for memory in sorted(self._free, key=len):
            if size <= len(memory) <= 2 * size:
                self._free.remove(memory)
                return memory
        del self._free[:1]
        return None

    def _back(self, memory: mmap.mmap) -> None:
        # runs wherever the last reference is dropped, between any two steps of the methods above: it only appends
        if self.waiting + len(memory) <= self.keep:
            if len(memory) >= LARGE and hasattr(mmap, "MADV_FREE"):
                memory.madvise(mmap.MADV_FREE)
            self._free.append(memory)
