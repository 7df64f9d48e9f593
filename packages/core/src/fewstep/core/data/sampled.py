"""How the trajectories a prepared folder keeps were made: what its index says of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """How the teacher made the trajectories a cache keeps, where it keeps any.

    ``solver`` at the falling times ``grid`` of its process, and on to clean data; ``keys``: which of these states are
    kept, by their place in the grid, the clean one last. ``network``: its fingerprint.
    """

    solver: str
    grid: tuple[float, ...]
    keys: tuple[int, ...]
    guidance_scale: float
    seed: int
    network: str

    def key_times(self) -> tuple[float, ...]:
        """Return the times of the states kept, all but the clean one's."""
        return tuple(self.grid[key] for key in self.keys[:-1])

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Sampled:
        """Return what an index says; ValueError, KeyError or TypeError for what is no such thing."""
        made = cls(
            solver=str(found["solver"]),
            grid=tuple(map(float, found["grid"])),
            keys=tuple(map(int, found["keys"])),
            guidance_scale=float(found["guidance_scale"]),
            seed=int(found["seed"]),
            network=str(found["network"]),
        )
        rising = all(a < b for a, b in itertools.pairwise(made.keys))
        if len(made.keys) < 2 or not rising or made.keys[0] < 0 or made.keys[-1] != len(made.grid):
            raise ValueError("keys are no places in the grid")
        return made
