"""Clips with captions, ready to be trained on: what can be read, cut to one size, what cannot, skipped and counted."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import UInt8
from torch import Tensor

from fewstep.core.data.captioned import digest_of
from fewstep.core.data.damage import BadFiles, Damaged
from fewstep.core.errors import check
from fewstep.video.reading.clips import LIMITS, probe, read_clip
from fewstep.video.reading.info import ClipInfo, Limits, Unreadable
from fewstep.video.reading.layouts import Captioned
from fewstep.video.reading.sampling import ClipConfig, TooShort, draw, window


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
        self.bad = BadFiles(where, len(self.clips), max_bad_share)
        self.identity = digest_of((each.source.name, _size(each), each.caption) for each in self.clips)
        self._known: dict[int, ClipInfo] = {}

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
        source = self.clips[index].source
        if index in self.bad.indices:
            raise Damaged(source.name)
        try:
            info = self._known.get(index) or probe(source, limits=self.limits)
            self._known[index] = info
            cut = window(self.config, info, draw(self.config, seed, epoch, index))
            frames = read_clip(source, list(cut.indices), size=cut.resized, reader=self.reader, limits=self.limits)
        except (Unreadable, TooShort) as error:
            self.bad.add(index, source.name, error)
            raise Damaged(source.name) from error
        height, width = self.config.size
        frames = frames[:, :, cut.top : cut.top + height, cut.left : cut.left + width]
        return frames.flip(3) if cut.flip else frames


def _size(clip: Captioned) -> int:
    source = clip.source
    return source.size if source.size >= 0 or source.path.is_dir() else source.path.stat().st_size
