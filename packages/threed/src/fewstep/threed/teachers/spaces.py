"""What teachers see of renders: pixels, latents of an autoencoder, maps of geometry; all with gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from fewstep.core.errors import check
from fewstep.core.models.family import Family
from fewstep.core.models.loading import Teacher
from fewstep.core.tensors import precise
from fewstep.threed.cameras import Camera
from fewstep.threed.teachers.view_model import to_rgb, to_samples
from fewstep.threed.views import Views


class Space(ABC):
    """Where a teacher's samples live. ``size``: pixels along a side of renders; ``shape``: of one view's sample."""

    size: int
    shape: tuple[int, ...]

    @abstractmethod
    def of(self, seen: Views, camera: Camera) -> Float[Tensor, "b *d"]:
        """Return views as samples, one each, differentiable."""

    @abstractmethod
    def pictures(self, samples: Float[Tensor, "b *d"]) -> Float[Tensor, "b 3 s s"]:
        """Return samples as colours in [0, 1], as large as renders."""


def resized(pictures: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c s s"]:
    """Return pictures of another size, smoothed where they shrink; unchanged ones of that size."""
    if tuple(pictures.shape[-2:]) == (size, size):
        return pictures
    return interpolate(pictures, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


class Pixels(Space):
    """Colours in [-1, 1], of ``side`` pixels; ``size``: of renders (0: the same)."""

    def __init__(self, side: int, size: int = 0) -> None:
        self.side, self.size, self.shape = side, size or side, (3, side, side)

    def of(self, seen: Views, camera: Camera) -> Tensor:
        """Return the colours."""
        return to_samples(resized(seen.rgb, self.side))

    def pictures(self, samples: Tensor) -> Tensor:
        """Return the samples as colours."""
        return resized(to_rgb(samples), self.size)


class Latents(Space):
    """Latents of an autoencoder: the means of its posterior, scaled as ``family`` does; ``side``: pixels it sees.

    ``shape``: of one latent; ``size``: of renders (0: ``side``).
    """

    def __init__(self, vae: Any, family: Family, side: int, shape: Sequence[int], size: int = 0) -> None:
        self.vae, self.family, self.side = vae.requires_grad_(False), family, side
        self.size, self.shape = size or side, tuple(shape)

    @classmethod
    def of_teacher(cls, teacher: Teacher, size: int = 0) -> Latents:
        """Return those of a pipeline; UserError for one whose pictures are not square."""
        pixels = teacher.size
        check(
            pixels.height == pixels.width,
            f"renders are square, and the teacher is opened at {pixels.height}x{pixels.width}: set domain.model.height "
            "and .width alike",
        )
        return cls(teacher.vae().vae, teacher.family, pixels.height, teacher.shape, size)

    def of(self, seen: Views, camera: Camera) -> Tensor:
        """Return the latents; the gradient goes through the autoencoder."""
        pixels = to_samples(resized(seen.rgb, self.side))
        return precise(self.family.to_latents(self.vae.to(pixels.device), pixels))

    @torch.no_grad()
    def pictures(self, samples: Tensor) -> Tensor:
        """Return what latents decode to."""
        pixels = self.family.to_pixels(self.vae.to(samples.device), samples)
        return resized(to_rgb(precise(pixels)), self.size)
