"""Videos for other domains (``fewstep.core.data.clips``): read in the guarded process, written piece by piece."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from fewstep.core.data.clips import ClipSize
from fewstep.core.errors import check
from fewstep.video.reading import probe, read_clip
from fewstep.video.writing import write_pieces


class VideoFiles:
    """See :class:`fewstep.core.data.clips.ClipFiles`."""

    def probe(self, path: Path) -> ClipSize:
        """Return what a video holds; UserError for a file without frames, or that does not say how fast they are."""
        found = probe(path)
        check(found.has_video and found.frames > 0, f"{path}: holds no video frames")
        check(found.fps > 0, f"{path}: does not say how many frames a second it shows")
        return ClipSize(found.frames, found.height, found.width, found.fps)

    def read(self, path: Path, start: int, count: int) -> UInt8[Tensor, "f 3 h w"]:
        """Return frames in RGB, upright; UserError for what is damaged or not there."""
        return read_clip(path, (start, count, 1))

    def write(
        self,
        path: Path,
        frames: Iterable[UInt8[Tensor, "f 3 h w"]],
        size: tuple[int, int],
        fps: float,
        sound: Path | None = None,
    ) -> str:
        """Write pieces of a video as they come, whole or not at all; UserError for what cannot be written."""
        return write_pieces(path, frames, size, fps, sound=sound)


CLIPS = VideoFiles()
