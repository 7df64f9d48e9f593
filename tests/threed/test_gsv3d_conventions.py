"""SV3D's conventions: v-prediction as diffusers' Euler has it, guidance per view, the order and the sides of views."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import UserError
from fewstep.core.prediction import Kind, Prediction, decompose
from fewstep.core.process import EDM, CosineVP, Process, times
from fewstep.threed.cameras import orbit_angles
from fewstep.threed.orbit.convention import orbit_azimuths, orbit_cameras, orbit_condition, triangular_guidance
from fewstep.threed.orbit.reading import KarrasV, PerViewGuided, karras_process

SVD = EDM(sigma_min=0.002, sigma_max=700.0, sigma_data=1.0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("process", [SVD, CosineVP(0.01, 0.99)])
def test_the_target_read_back_is_the_clean_sample_at_any_noise(process: Process) -> None:
    x0, eps = normal(5, 3, 4, 2, 2), normal(5, 3, 4, 2, 2, seed=1)
    t = process.unit_to_time(torch.linspace(0.05, 1.0, 5, dtype=torch.float64))
    reading = KarrasV()
    x = process.add_noise(x0, eps, t)
    assert torch.allclose(reading.output(reading.target(x0, eps, t, process), x, t, process).value, x0, atol=1e-9)


def test_the_raw_output_is_v_on_the_unit_circle() -> None:
    raw, x = normal(3, 6), normal(3, 6, seed=1)
    t = times([0.1, 1.0, 30.0], 3)
    v = Prediction(raw * (1 + t**2).sqrt()[:, None], Kind.V)
    assert torch.allclose(KarrasV().output(raw, x, t, SVD).value, decompose(v, x, t, SVD).x0, atol=1e-12)


def test_diffusers_euler_scheduler_reads_the_same_network_alike() -> None:
    from diffusers import EulerDiscreteScheduler

    settings = {"sigma_min": 0.002, "sigma_max": 700.0, "prediction_type": "v_prediction", "use_karras_sigmas": True}
    euler = EulerDiscreteScheduler(timestep_type="continuous", timestep_spacing="leading", **settings)
    process = karras_process({"_class_name": "EulerDiscreteScheduler", **settings})
    euler.set_timesteps(6)
    x, raw = normal(1, 4, 3, 3).float(), normal(1, 4, 3, 3, seed=1).float()
    for sigma, step in zip(euler.sigmas[:-1], euler.timesteps, strict=True):
        t = sigma.double()[None]
        seen, time = KarrasV().inputs(x, t, process)
        assert torch.allclose(euler.scale_model_input(x, step), seen, rtol=1e-5)
        assert torch.allclose(step.double(), time[0], atol=1e-5)
        theirs = euler.step(raw, step, x).pred_original_sample
        assert torch.allclose(theirs, KarrasV().output(raw, x, t, process).value, rtol=1e-4, atol=1e-4)


def test_a_scheduler_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="DDIMScheduler with prediction_type 'epsilon'"):
        karras_process({"_class_name": "DDIMScheduler", "prediction_type": "epsilon"})
    with pytest.raises(UserError, match="no sigma_min and sigma_max"):
        karras_process({"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction"})


def test_guidance_of_21_frames_rises_in_ten_steps_and_falls_in_eleven() -> None:
    scales = triangular_guidance()
    assert len(scales) == 21
    assert float(scales[-1]) == 1.0
    assert int(scales.argmax()) == 9
    assert float(scales[9]) == 2.5
    rise = torch.arange(1, 11, dtype=torch.float64) * 0.15 + 1
    fall = 2.5 - torch.arange(1, 12, dtype=torch.float64) * 1.5 / 11
    assert torch.allclose(scales, torch.cat([rise, fall]), atol=1e-12)


@pytest.mark.parametrize("views", [2, 3, 8, 21])
def test_guidance_is_greatest_where_the_orbit_is_furthest_from_the_picture(views: int) -> None:
    scales, away = triangular_guidance(views), (orbit_azimuths(views) - 180).abs()
    assert float(away[scales.argmax()]) == pytest.approx(float(away.min()))
    assert bool((scales > 1)[:-1].all())


class Affine(Denoiser):
    """Predicts what its condition says, plus a hundredth of its input; the null condition says 0."""

    process = SVD

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
        return Prediction(x_t / 100 + cond["image"][:, None], Kind.X0)

    def null(self, cond: Cond) -> Cond:
        return {"image": torch.zeros_like(cond["image"])}


def test_each_view_is_guided_by_its_own_scale_and_ones_are_the_conditional_model() -> None:
    x, cond = normal(2, 8, 3, 2, 2), {"image": normal(2, 3, 2, 2, seed=1)}
    scales, t = triangular_guidance(8), times(1.0, 2)
    plain = Affine().x0(x, t, cond)
    guided = PerViewGuided(Affine(), scales).x0(x, t, cond)
    expected = x / 100 + scales.reshape(1, 8, 1, 1, 1) * cond["image"][:, None]
    assert torch.allclose(guided, expected, atol=1e-12)
    assert torch.equal(PerViewGuided(Affine(), torch.ones(8)).x0(x, t, cond), plain)
    with pytest.raises(UserError, match="21 guidance scales for 8 views"):
        PerViewGuided(Affine(), triangular_guidance()).x0(x, t, cond)


def test_the_last_view_is_the_picture_and_views_go_around_counter_clockwise() -> None:
    azimuths = orbit_azimuths()
    assert float(azimuths[-1]) == 0
    assert float(azimuths[0]) == pytest.approx(360 / 21)
    cond = orbit_condition(torch.tensor([20.0], dtype=torch.float64), 8)
    camera = orbit_cameras(cond["azimuth"], cond["polar"], 16, distance=3.2, fov_y_deg=24)
    _, elevation, _ = orbit_angles(camera)
    assert torch.allclose(elevation, torch.full_like(elevation, 20.0))
    assert torch.allclose(
        camera.position[-1], 3.2 * torch.tensor([0, math.sin(0.34906585), math.cos(0.34906585)]).double()
    )
    # three balls: what is in front, to the right and behind; a quarter turn on, the right one is in front
    balls = torch.tensor([[0.0, 0, 0.5], [0.5, 0, 0], [0, 0, -0.5]], dtype=torch.float64)
    _, depth = camera.project(balls)
    assert int(depth[-1].argmin()) == 0
    assert int(depth[1].argmin()) == 1
    assert int(depth[3].argmin()) == 2
    mirrored = orbit_cameras(cond["azimuth"], cond["polar"], 16, distance=3.2, fov_y_deg=24, clockwise=True)
    assert torch.allclose(mirrored.position[:, 0], -camera.position[:, 0], atol=1e-12)
