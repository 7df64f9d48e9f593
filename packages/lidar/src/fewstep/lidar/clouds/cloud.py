"""A point cloud in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import check

Points = npt.NDArray[np.floating[Any]]
"""Coordinates in metres, "n 3", x forward and z up."""

Column = npt.NDArray[Any]
"""One number per point, "n"."""


@dataclass(frozen=True)
class Cloud:
    """Points of a scan in the sensor's frame.

    ``xyz``: float32 or float64, "n 3". ``fields``: further columns by name, such as ``remission``, "n" each.
    """

    xyz: Points
    fields: Mapping[str, Column] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            self.xyz.ndim == 2 and self.xyz.shape[1] == 3 and self.xyz.dtype in (np.float32, np.float64),
            f"a cloud's xyz is float32 or float64 of shape (n, 3), not {self.xyz.dtype} of {self.xyz.shape}",
        )
        for name, column in self.fields.items():
            check(
                column.shape == (len(self.xyz),),
                f"field '{name}' of a cloud of {len(self.xyz)} points has the shape {column.shape}; give one per point",
            )

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.xyz)

    def take(self, chosen: npt.NDArray[Any]) -> Cloud:
        """Return the points of a mask or of indices, with their fields."""
        return Cloud(self.xyz[chosen], {name: column[chosen] for name, column in self.fields.items()})
