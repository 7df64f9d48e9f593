"""Text-to-image pipelines as teachers: they see one render at a time, and hear of its view in the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.models.loading import Teacher
from fewstep.threed.cameras import Camera, ViewRanges, orbit_angles
from fewstep.threed.judges import Judge
from fewstep.threed.teachers.directions import DirectionConfig, direction_of, perp_neg_blend
from fewstep.threed.teachers.spaces import Latents
from fewstep.threed.teachers.texts import EMPTY, PipelineTexts
from fewstep.threed.views import Views


class LatentJudge(Judge):
    """A pipeline of :mod:`fewstep.core.models` that judges latents of renders.

    The prompts' part of its condition holds every entry on axis 1 once per direction, then for the prompt without one,
    then for the negative prompt, if there is one. What :meth:`told` makes of it is in the form of
    :mod:`fewstep.core.guidance`: the entries of a camera's direction, ``fake/...`` without direction (as
    ProlificDreamer's critic is told, arXiv 2305.16213), and ``negative/...``. ``size``: pixels of renders (0: the
    pipeline's own).
    """

    views = 1

    def __init__(
        self,
        teacher: Teacher,
        directions: DirectionConfig,
        ranges: ViewRanges,
        *,
        negative: str = "",
        size: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.texts, self.space = PipelineTexts(teacher), Latents.of_teacher(teacher, size)
        self.teacher = teacher.denoiser(self.texts.null, dtype)
        check(
            not (negative and directions.perp_neg),
            "domain.judge.negative and .directions.perp_neg are both negative prompts: use one of them",
        )
        self.directions, self.negative, self.ranges = directions, negative, ranges
        self.size, self.shape = self.space.size, self.space.shape

    def encode(self, texts: Sequence[str]) -> Cond:
        """Return the prompts in every direction, "b k *"."""
        check(all(text.strip() for text in texts), EMPTY)
        more = [self.negative] if self.negative else []
        found = self.texts([each for text in texts for each in [*self.directions.texts(text), *more]])
        return {name: value.reshape(len(texts), -1, *value.shape[1:]) for name, value in found.items()}

    def told(self, camera: Camera, cond: Cond) -> Cond:
        """Return the prompts in the cameras' directions."""
        none = len(self.directions.words)
        plain = {name: value[:, none] for name, value in cond.items()}
        apart = {f"negative/{name}": value[:, none + 1 :] for name, value in cond.items()} if self.negative else {}
        if not self.directions.words:
            return plain | apart
        azimuth, elevation, _ = orbit_angles(camera)
        apart |= {f"fake/{name}": value for name, value in plain.items()}
        if not self.directions.perp_neg:
            which = direction_of(azimuth, elevation, self.directions)
            return {name: _picked(value, which[:, None])[:, 0] for name, value in cond.items()} | apart
        blend = perp_neg_blend(azimuth, elevation, self.directions)
        told = {name: _blended(_picked(value, blend.pair), blend.share) for name, value in cond.items()}
        negative = {f"negative/{name}": _picked(value, blend.negative) for name, value in cond.items()}
        return told | negative | {"negative/weights": blend.weights} | apart

    def x0(self, seen: Views, camera: Camera) -> Tensor:
        """Return the renders' latents."""
        return self.space.of(seen, camera)

    def pictures(self, samples: Tensor) -> Tensor:
        """Return what latents decode to."""
        return self.space.pictures(samples)


def _picked(value: Tensor, which: Tensor) -> Tensor:
    """Return of "b k *" those of axis 1 that "b n" names, "b n *"."""
    rows = torch.arange(len(value), device=value.device)[:, None]
    return value[rows, which.to(value.device)]


def _blended(pair: Tensor, share: Tensor) -> Tensor:
    """Return the mean of "b 2 *" with the first's share; of masks, what either has."""
    if not pair.is_floating_point():
        return torch.maximum(pair[:, 0], pair[:, 1])
    weight = share.to(pair).reshape(-1, *[1] * (pair.ndim - 2))
    return weight * pair[:, 0] + (1 - weight) * pair[:, 1]
