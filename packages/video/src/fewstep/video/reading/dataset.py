"""Clips with captions, ready to be trained on: what can be read, cut to one size, what cannot, skipped and counted."""

from __future__ import annotations

import os
from collections.abc import Sequence

from jaxtyping import UInt8
from torch import Tensor

from fewstep.core.data.captioned import digest_of
from fewstep.core.data.damage import BadFiles, Damaged
from fewstep.core.errors import check
from fewstep.video.reading.clips import LIMITS, probe, read_clip
from fewstep.video.reading.info import ClipInfo, ClipSource, Limits, Unreadable
from fewstep.video.reading.layouts import Captioned
from fewstep.video.reading.sampling import ClipConfig, NoRate, TooShort, draw, window


class Clips:
    """Clips of :func:`.layouts.list_clips`, cut as ``config`` says. ``identity``: a digest of which clips these are.

    Clips that cannot be read, or are too short, are counted in ``bad``, and named once in the log.
    """

    def __init__(
        self,
        where: str,
        clips: Sequence[Captioned],
        config: ClipConfig,
        *,
        reader: str = "auto",
        limits: Limits = LIMITS,
        max_bad_share: float = 0.01,
    ) -> None:
        check(bool(clips), f"{where}: no clip in it")
        self.clips, self.config, self.reader, self.limits = list(clips), config, reader, limits
        self.bad = BadFiles(where, len(self.clips), max_bad_share, kind="videos")
        root = os.path.commonpath([each.source.path.absolute().parent for each in self.clips])
        self.identity = digest_of((_inside(root, each.source), _size(each), each.caption) for each in self.clips)
        self._known: dict[int, ClipInfo | Unreadable] = {}

    def __len__(self) -> int:
        """Return the number of clips, those that cannot be read included."""
        return len(self.clips)

    def caption(self, index: int) -> str:
        """Return a caption."""
        return self.clips[index].caption

    def clip(self, index: int, seed: int, epoch: int) -> UInt8[Tensor, "f 3 h w"]:
        """Return a clip's frames at ``config.size``: a function of (seed, epoch, index) and of the file.

        :class:`Damaged` for one that cannot be read, TrainingError once there are too many of those.
        """
        if index in self.bad.indices:
            raise Damaged(self.clips[index].source.name)
        return self.attempt(index, seed, epoch)

    def attempt(self, index: int, seed: int, epoch: int) -> UInt8[Tensor, "f 3 h w"]:
        """Return what :meth:`clip` does, also for a video of which another clip could not be read.

        What is refused does not depend on the order then.
        """
        source = self.clips[index].source
        try:
            cut = window(self.config, self._info(index, source), draw(self.config, seed, epoch, index))
            frames = read_clip(source, list(cut.indices), size=cut.resized, reader=self.reader, limits=self.limits)
        except (Unreadable, TooShort, NoRate) as error:
            self.bad.add(index, source.name, error)
            raise Damaged(source.name) from error
        height, width = self.config.size
        frames = frames[:, :, cut.top : cut.top + height, cut.left : cut.left + width]
        return frames.flip(3) if cut.flip else frames

    def _info(self, index: int, source: ClipSource) -> ClipInfo:
        """Return what a video holds, found once; Unreadable likewise."""
        if index not in self._known:
            try:
                self._known[index] = probe(source, limits=self.limits)
            except Unreadable as error:
                self._known[index] = error
        known = self._known[index]
        if isinstance(known, Unreadable):
            raise known
        return known


def _inside(root: str, source: ClipSource) -> str:
    """Return a clip's name that stays the same when the data are moved as a whole."""
    return f"{source.path.absolute().relative_to(root).as_posix()}:{source.member}"


def _size(clip: Captioned) -> int:
    source = clip.source
    return source.size if source.size >= 0 or source.path.is_dir() else source.path.stat().st_size
