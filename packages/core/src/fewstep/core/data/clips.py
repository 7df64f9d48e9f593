"""Videos for domains that read none themselves: an installed package offers how, in the group ``fewstep.clips``."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor


class ClipSize(NamedTuple):
    """What a video holds: ``frames`` of ``height`` and ``width`` pixels, ``fps`` of them a second."""

    frames: int
    height: int
    width: int
    fps: float


@runtime_checkable
class ClipFiles(Protocol):
    """How video files are read and written; all of it raises UserError in one line for what cannot be done."""

    def probe(self, path: Path) -> ClipSize:
        """Return what a video holds."""

    def read(self, path: Path, start: int, count: int) -> UInt8[Tensor, "f 3 h w"]:
        """Return frames in RGB, upright."""

    def write(
        self,
        path: Path,
        frames: Iterable[UInt8[Tensor, "f 3 h w"]],
        size: tuple[int, int],
        fps: float,
        sound: Path | None = None,
    ) -> str:
        """Write pieces of a video as they come, whole or not at all; ``size``: height and width.

        ``sound``: a video whose sound goes into it as it is. Returns why there is none in it, empty where there is.
        """


def find_clip_files() -> ClipFiles | None:
    """Return what an installed package offers; None when none does."""
    for point in sorted(entry_points(group="fewstep.clips")):
        found: ClipFiles = point.load()
        return found
    return None
