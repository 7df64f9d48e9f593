"""Memory of training on a CPU: what a step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import os
import platform

# parameters of mallopt in glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = 2**30  # bytes at the end of the heap that stay with the process
LARGEST = 2**25  # bytes of the largest block taken from the heap; glibc allows no more


def keep_freed_memory() -> bool:
    """Ask glibc not to return freed blocks to the system at once; returns whether it agreed.

    Every step allocates and frees the same activations, and glibc's defaults fetch their pages anew each time, which
    costs a tenth of a step of a small network. Values the user gives (``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES``)
    are left alone, and so are other C libraries.
    """
    chosen = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(TRIM_THRESHOLD, KEPT)) and bool(mallopt(MMAP_THRESHOLD, LARGEST))
