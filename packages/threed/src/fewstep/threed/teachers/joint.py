"""Teachers of several views of an object at once (MVDream's kind), in pixels or in latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.threed.cameras import Camera, ViewRanges
from fewstep.threed.cameras.conventions import mvdream_condition
from fewstep.threed.judges import Judge
from fewstep.threed.teachers.backbone import CAMERA
from fewstep.threed.teachers.spaces import Space
from fewstep.threed.views import Views

Encode = Callable[[Sequence[str]], Cond]


class JointJudge(Judge):
    """A teacher of ``views`` pictures of an object at equal steps around it, told their cameras.

    teacher: of "b v *d", such as a :class:`~fewstep.threed.teachers.multi_view.JointBackbone`. space: what it sees of
    each view. encode: its prompts. ``azimuth_offset_deg``: as in :data:`fewstep.threed.cameras.AZIMUTH_OFFSETS_DEG`.
    """

    def __init__(
        self,
        teacher: Denoiser,
        space: Space,
        encode: Encode,
        ranges: ViewRanges,
        views: int,
        *,
        azimuth_offset_deg: float = 0.0,
    ) -> None:
        self.teacher, self.space, self.ranges, self.views = teacher, space, ranges, views
        self.azimuth_offset_deg, self._encode = azimuth_offset_deg, encode
        self.size, self.shape = space.size, (views, *space.shape)

    def encode(self, texts: Sequence[str]) -> Cond:
        """Return the prompts' part of the condition."""
        return self._encode(texts)

    def told(self, camera: Camera, cond: Cond) -> Cond:
        """Return prompts, and cameras "b v 16"."""
        numbers = mvdream_condition(camera, azimuth_offset_deg=self.azimuth_offset_deg)
        return {**cond, CAMERA: numbers.reshape(-1, self.views, numbers.shape[1])}

    def x0(self, seen: Views, camera: Camera) -> Tensor:
        """Return the views as samples "b v *d"."""
        return self.space.of(seen, camera).reshape(-1, *self.shape)

    def pictures(self, samples: Tensor) -> Tensor:
        """Return samples as colours, an object's views adjacent."""
        return self.space.pictures(samples.flatten(0, 1))
