"""LiDiff's diffusion of scenes: exact with an exact network in any number of steps, biased in its released form."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import Guided
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.rng import Rng
from fewstep.lidar.process import sample_scene, scene_process

F64 = torch.float64
PROCESS = scene_process()
# 1/sqrt(abar) at the last time the released sampler evaluates at, times an offset of 0.3
RELEASED = {1: 1.74874, 2: 0.46857, 4: 0.33617, 8: 0.30903, 50: 0.30033}


class Clouds(Denoiser):
    """Exact for points that are one of ``truth`` "g 3" each; with nothing scanned, of ``truth`` moved by ``apart``."""

    def __init__(self, truth: torch.Tensor, apart: float = 0.0) -> None:
        self.process, self.truth, self.apart = PROCESS, truth, apart

    def predict(self, x_t, t, cond):
        sigma = PROCESS.coefficients(t).sigma[:, None, None]
        squares = (x_t[..., None, :] - self.truth).square().sum(-1)
        weights = torch.softmax(-squares / (2 * sigma**2), -1)
        x0 = weights @ self.truth
        if "scan" in cond:
            x0 = torch.where((cond["scan"] == 0)[:, None, None], x0 + self.apart, x0)
        return Prediction((x_t - x0) / sigma, Kind.EPS)

    def null(self, cond):
        return {**cond, "scan": torch.zeros_like(cond["scan"])}


def unit_noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, n, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)


def rng(seed: int = 0) -> Rng:
    return Rng(seed, 0, (0,), "test", batch=1)


def completed(steps: int, official: bool, d: float = 0.3, at: float = 7.0) -> torch.Tensor:
    """The offsets from the anchor, of points whose truth is ``d`` away from it in every coordinate."""
    anchor = torch.full((1, 5, 3), at, dtype=F64)
    teacher = Clouds(torch.full((1, 3), at + d, dtype=F64))
    return sample_scene(teacher, {"anchor": anchor}, unit_noise(5), rng(), steps=steps, official=official) - anchor


@pytest.mark.parametrize("steps", [1, 2, 8, 50])
def test_an_exact_network_completes_exactly_at_any_number_of_steps(steps):
    assert_close(completed(steps, official=False), torch.full((1, 5, 3), 0.3, dtype=F64), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("steps", "value"), RELEASED.items())
def test_the_released_sampler_overshoots_as_published(steps, value):
    assert_close(completed(steps, official=True), torch.full((1, 5, 3), value, dtype=F64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("official", [False, True])
def test_where_the_scene_lies_does_not_matter(official):
    assert_close(completed(4, official, at=7.0), completed(4, official, at=-31.0), rtol=0, atol=1e-8)


def test_noising_adds_and_never_scales():
    x0 = 30 * unit_noise(40_000, 1)
    eps = unit_noise(40_000, 2)
    for t, sigma in ((0, 0.005916), (500, 0.76817), (999, 0.98518)):
        at = torch.tensor([t], dtype=F64)
        added = PROCESS.add_noise(x0, eps, at, torch.zeros_like(x0)) - x0
        assert float(added.std()) == pytest.approx(sigma, rel=0.01)
        assert abs(float(added.mean())) < 0.01 * sigma
        for anchor in (torch.zeros_like(x0), 5 + x0):  # sampling's start plays no part in noising
            moved = PROCESS.add_noise(x0 + 12.5, eps, at, anchor) - (x0 + 12.5)
            assert_close(moved, added, rtol=0, atol=1e-12)
    assert PROCESS.t_max == 999
    assert float(PROCESS.coefficients(torch.tensor(999.0)).alpha) == 1


def test_on_a_plane_the_least_loss_is_two_thirds():
    """Noise along a surface cannot be told from the surface: only what is across it can be predicted."""
    eps = unit_noise(100_000, 3)
    predicted = eps * torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    assert float((predicted - eps).square().mean()) == pytest.approx(2 / 3, abs=0.01)
    assert 5 * (float(predicted.mean()) ** 2 + (float(predicted.std()) - 1) ** 2) == pytest.approx(0.893, abs=0.02)
    spread = torch.linspace(-4, 4, 41, dtype=F64)
    sheet = torch.cartesian_prod(spread, spread, torch.zeros(1, dtype=F64))
    at = torch.tensor([100.0], dtype=F64)
    sigma = PROCESS.coefficients(at).sigma
    few = unit_noise(200, 4)
    around = torch.tensor([0.3, -0.2, 0.0], dtype=F64) + sigma * few  # far from the sheet's edge
    found = Clouds(sheet).predict(around, at, {}).value
    assert_close(found[..., 2], few[..., 2])  # what a network on a dense sheet says: exactly the part across it
    assert float(found[..., :2].abs().max()) < 0.2


def test_guidance_is_from_the_unconditional_prediction_to_the_conditional_one():
    teacher = Clouds(torch.full((1, 3), 1.0, dtype=F64), apart=1.0)
    x, at, cond = unit_noise(6), torch.tensor([400.0], dtype=F64), {"scan": torch.ones(1)}
    with_scan, without = teacher.eps(x, at, cond), teacher.eps(x, at, teacher.null(cond))
    assert float((with_scan - without).abs().min()) > 0.1
    assert_close(Guided(teacher, 1.0).eps(x, at, cond), with_scan)
    assert_close(Guided(teacher, 0.0).eps(x, at, cond), without)
    assert_close(Guided(teacher, 6.0).eps(x, at, cond), without + 6 * (with_scan - without))


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_two_scenes_in_sequence_are_each_alone(official, steps):
    truth = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.5, 0.0]], dtype=F64)

    def complete(x: float) -> torch.Tensor:
        anchor = torch.full((1, 4, 3), x, dtype=F64)
        return sample_scene(Clouds(truth), {"anchor": anchor}, unit_noise(4), rng(), steps=steps, official=official)

    alone = complete(0.4)
    complete(-3.0)
    assert torch.equal(complete(0.4), alone)


def test_two_scenes_at_once_are_each_alone():
    truth = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.5, 0.0]], dtype=F64)
    noise = torch.cat([unit_noise(4, 5), unit_noise(4, 6)])
    anchor = torch.tensor([0.4, -0.6], dtype=F64)[:, None, None].expand(2, 4, 3)

    def complete(rows: list[int]) -> torch.Tensor:
        own = Rng(0, 0, tuple(rows), "test", batch=2)
        return sample_scene(Clouds(truth), {"anchor": anchor[rows]}, noise[rows], own, steps=3, official=False)

    together = complete([0, 1])
    for i in (0, 1):
        assert_close(complete([i])[0], together[i], rtol=0, atol=1e-12)
