"""What judges renders: a frozen image diffusion model, the cameras it wants and the space it sees them in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.process import Process
from fewstep.core.recipes.rollout import Sample
from fewstep.core.rng import Rng
from fewstep.threed.cameras import Camera, ViewRanges, multi_view, random_views
from fewstep.threed.teachers.view_model import ViewModel, to_rgb, to_samples
from fewstep.threed.views import Views


class Judge(ABC):
    """A teacher of renders.

    ``views``: how many pictures of an object it sees in one sample (1: each alone). ``size``: pixels along a side of
    what is rendered for it. ``shape``: of one sample. ``ranges``: the cameras it was made for.
    """

    teacher: Denoiser
    views: int
    size: int
    shape: tuple[int, ...]
    ranges: ViewRanges

    @property
    def process(self) -> Process:
        """The teacher's process."""
        return self.teacher.process

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Cond:
        """Return the prompts' part of the condition, on the CPU; UserError for prompts the teacher cannot read."""

    @abstractmethod
    def told(self, camera: Camera, cond: Cond) -> Cond:
        """Return the whole condition of samples: ``cond``, the prompts' part, one row each, and what is said of views.

        ``camera``: ``views`` per sample, those of one adjacent.
        """

    @abstractmethod
    def x0(self, seen: Views, camera: Camera) -> Tensor:
        """Return renders as the teacher's samples "b *d", differentiable."""

    def sample(self, seen: Views, camera: Camera, cond: Cond) -> Sample:
        """Return renders as the teacher's samples, and the condition they are to be judged under."""
        return Sample(self.x0(seen, camera), self.told(camera, cond))

    @abstractmethod
    def pictures(self, samples: Tensor) -> Tensor:
        """Return samples as colours "b 3 h w" in [0, 1], an object's views below each other in the batch."""

    def cameras(self, rng: Rng, ranges: ViewRanges | None = None) -> Camera:
        """Return ``views`` cameras for every sample of ``rng``, drawn from ``ranges`` (None: its own)."""
        law = self.ranges if ranges is None else ranges
        if self.views == 1:
            return random_views(rng, law, self.size, self.size)
        return multi_view(rng, law, self.size, self.size, self.views)


class ViewJudge(Judge):
    """A view model that sees one picture at a time, in pixels."""

    views = 1

    def __init__(self, model: ViewModel) -> None:
        self.model, self.teacher = model, model.denoiser
        self.size, self.ranges = model.size, model.cameras
        self.shape = (3, model.size, model.size)

    def encode(self, texts: Sequence[str]) -> Cond:
        """Return the prompts as tokens."""
        return self.model.encode(texts)

    def told(self, camera: Camera, cond: Cond) -> Cond:
        """Return prompts and cameras."""
        return {**cond, **self.model.seen_from(camera)}

    def x0(self, seen: Views, camera: Camera) -> Tensor:
        """Return the colours in [-1, 1]."""
        return to_samples(seen.rgb)

    def pictures(self, samples: Tensor) -> Tensor:
        """Return the samples as colours."""
        return to_rgb(samples)


def repeated(cond: Cond, times: int) -> Cond:
    """Return every row of a condition ``times`` times, copies adjacent."""
    return {name: torch.repeat_interleave(value, times, dim=0) for name, value in cond.items()}
