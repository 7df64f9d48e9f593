"""LiDiff's loss: what it is on a surface, where only noise along the normal can be told."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import UserError
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.diffusion import Diffusion, DiffusionConfig
from fewstep.core.rng import Rng
from fewstep.lidar.process import scene_process
from fewstep.lidar.recipes.lidiff import LiDiff, LiDiffConfig, noise_moments


class Plane(Denoiser):
    """The best predictor of noise around the dense plane z = 0."""

    process = scene_process()

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, cond: Cond) -> Prediction:
        sigma = self.process.coefficients(t).sigma[:, None]
        zero = torch.zeros_like(x_t[..., 0])
        return Prediction(torch.stack([zero, zero, x_t[..., 2] / sigma], -1), Kind.EPS)

    def null(self, cond: Cond) -> Cond:
        return cond


def plane(n: int) -> Batch:
    flat = torch.rand(2, n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 40 - 20
    flat[..., 2] = 0
    return Batch(2, {"anchor": flat}, flat)


def actors() -> Actors:
    return Actors({"student": Plane()}, Plane.process, (50_000, 3), dtype=torch.float64)


def test_the_floor_on_a_plane_is_two_thirds_and_the_moments_pull_away_from_it():
    recipe = LiDiff(LiDiffConfig(), actors())
    terms = recipe.loss("denoise", plane(50_000), Rng.for_batch(0, 0, 2), 0)
    assert terms.terms["denoise"] == pytest.approx([2 / 3] * 2, abs=0.01)
    assert 5 * terms.terms["moments"] == pytest.approx([5 * (math.sqrt(1 / 3) - 1) ** 2] * 2, abs=0.02)
    torch.testing.assert_close(terms.total(), terms.terms["denoise"] + 5 * terms.terms["moments"])


def test_without_the_regulariser_it_is_plain_denoising():
    batch, rng = plane(500), Rng.for_batch(3, 7, 2)
    mine = LiDiff(LiDiffConfig(reg_weight=0.0), actors()).loss("denoise", batch, rng, 0)
    plain = Diffusion(DiffusionConfig(label_dropout=0.1), actors()).loss("denoise", batch, rng, 0)
    assert torch.equal(mine.total(), plain.total())
    with pytest.raises(UserError, match="reg_weight"):
        LiDiffConfig(reg_weight=-1.0)


def test_moments_vanish_for_unit_noise_only():
    noise = torch.randn(1, 100_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert noise_moments(noise).item() < 1e-4
    assert noise_moments(noise + 0.5).item() == pytest.approx(0.25, abs=0.01)
    assert noise_moments(3 * noise).item() == pytest.approx(4, abs=0.05)
