"""Which cell of a grid a point is in, as one integer; and a set of cells that grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import UserError

Keys = npt.NDArray[np.int64]

BITS = 21
HALF = 1 << (BITS - 1)


def cell_keys(xyz: npt.NDArray[Any], size: float) -> Keys:
    """Return the cell floor(xyz / size) of points "n 3" as one integer each, "n", ordered by x, then y, then z.

    UserError for points farther than 2^20 cells from the origin.
    """
    cells = np.floor(np.asarray(xyz, np.float64) / size)
    if not (np.abs(cells) < HALF).all():
        raise UserError(
            f"a cloud reaches {np.abs(xyz).max():.0f} m, more than {HALF} cells of {size:g} m from its origin; "
            "take larger cells, or give poses relative to the first scan"
        )
    x, y, z = (cells.astype(np.int64) + HALF).T
    return np.asarray((x << (2 * BITS)) | (y << BITS) | z)


class CellSet:
    """Cells and in how many additions each occurred; numbered in the order in which they came.

    Sorted runs whose lengths at least double, so that adding n cells costs n log of all, and never a copy of them.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[Keys, Keys]] = []
        self._counts = np.zeros(1024, np.int32)
        self._size = 0

    def __len__(self) -> int:
        """Return the number of cells."""
        return self._size

    @property
    def counts(self) -> npt.NDArray[np.int32]:
        """Return in how many additions each cell occurred, in the order of numbers."""
        return self._counts[: self._size]

    def add(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Add cells, each once however often it is there; return the indices, ascending, of those that are new."""
        distinct, first = np.unique(keys, return_index=True)
        new = np.ones(len(distinct), bool)
        for run, numbers in self._runs:
            place = np.searchsorted(run, distinct)
            place[place == len(run)] = 0
            known = run[place] == distinct
            self._counts[numbers[place[known]]] += 1
            new &= ~known
        order = np.argsort(first[new])  # numbered as the points come in the scan
        numbers = np.empty(len(order), np.int64)
        numbers[order] = self._size + np.arange(len(order))
        self._append(distinct[new], numbers)
        return first[new][order].astype(np.int64)

    def _append(self, keys: Keys, numbers: Keys) -> None:
        if not len(keys):
            return
        self._size += len(keys)
        if self._size > len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros(2 * self._size - len(self._counts), np.int32)])
        self._counts[numbers] = 1
        while self._runs and len(self._runs[-1][0]) < 2 * len(keys):
            last, theirs = self._runs.pop()
            keys, numbers = np.concatenate([last, keys]), np.concatenate([theirs, numbers])
            order = np.argsort(keys, kind="stable")
            keys, numbers = keys[order], numbers[order]
        self._runs.append((keys, numbers))
