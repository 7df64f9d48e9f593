"""LiDiff's training of a teacher (arXiv 2403.13470): denoising, with the moments of the predicted noise held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.prediction import Prediction, decompose
from fewstep.core.recipe import Batch, LossTerms
from fewstep.core.recipes.diffusion import Diffusion, DiffusionConfig
from fewstep.core.rng import Rng
from fewstep.core.tensors import precise


@dataclass(frozen=True, kw_only=True)
class LiDiffConfig(DiffusionConfig):
    """Settings of LiDiff; defaults of the paper.

    ``reg_weight``: of the squared distance of the predicted noise's mean from 0 and standard deviation from 1. It pulls
    away from the best prediction: on a surface only noise along the normal can be told, with a standard deviation of
    ``sqrt(1/3)`` over all coordinates, and a mean squared error of 2/3.
    """

    reg_weight: float = 5.0
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.reg_weight >= 0, f"reg_weight must not be negative, got {self.reg_weight:g}")


def noise_moments(eps: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """Return ``mean(eps)^2 + (std(eps) - 1)^2`` per sample; the released code takes both over the whole batch."""
    flat = precise(eps).flatten(1)
    return flat.mean(1).square() + (flat.std(1) - 1).square()


class LiDiff(Diffusion):
    """Denoising with held moments; conditions are dropped scan by scan, the released code drops whole batches."""

    name: ClassVar[str] = "lidiff"
    paper: ClassVar[str] = "2403.13470"
    summary: ClassVar[str] = "LiDiff's teacher of scene completion: denoising with regularised noise"
    config_type: ClassVar[type] = LiDiffConfig
    config: LiDiffConfig

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the denoising loss and the distance of the moments."""
        answer = self.answer(batch, rng, step)
        process = self.actors.denoiser("student").process
        prediction: Prediction = answer.prediction
        eps = decompose(prediction, answer.x_t, answer.t, process, answer.anchor).eps
        terms = {"denoise": self.denoise(answer), "moments": noise_moments(eps)}
        return LossTerms(terms, {"moments": self.config.reg_weight})
