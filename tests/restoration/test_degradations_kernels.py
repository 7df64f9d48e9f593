"""Blur kernels: sums, moments and closed forms, and the filter they go through."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.restoration.degradations import KernelConfig, blur, gaussian_kernel, pulse_kernel, sinc_kernel
from fewstep.restoration.degradations.draws import choice, draw_final_kernels, draw_kernels
from fewstep.restoration.degradations.kernels import pad_kernel, reflected


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def covariance(kernel: torch.Tensor) -> torch.Tensor:
    """Second moments in (x, y) of one kernel of sum 1 and mean 0."""
    grid = torch.arange(kernel.shape[-1], dtype=torch.float64) - kernel.shape[-1] // 2
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    assert_close(torch.stack([(kernel * x).sum(), (kernel * y).sum()]), f64(0, 0), atol=1e-12, rtol=0)
    xy = (kernel * x * y).sum()
    return torch.stack([(kernel * x * x).sum(), xy, xy, (kernel * y * y).sum()]).view(2, 2)


def test_gaussian_has_the_covariance_it_claims():
    angle, sx, sy = 0.7, 2.0, 1.0
    rotation = f64(math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)).view(2, 2)
    kernels = gaussian_kernel(31, f64(sx, 1.5), f64(sy, 1.5), f64(angle, 0.3))
    assert_close(covariance(kernels[0]), rotation @ torch.diag(f64(sx**2, sy**2)) @ rotation.T, atol=1e-6, rtol=0)
    assert_close(covariance(kernels[1]), 2.25 * torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)
    assert_close(kernels[1], gaussian_kernel(31, f64(1.5))[0])


@pytest.mark.parametrize("profile", ["generalized", "plateau"])
def test_profiles_fall_off_as_written(profile):
    beta, sx, sy = 1.7, 2.5, 1.5
    kernel = gaussian_kernel(9, f64(sx), f64(sy), f64(0), f64(beta), profile)[0]
    for dx, dy in ((1, 0), (0, 2), (3, -2)):
        q = ((dx / sx) ** 2 + (dy / sy) ** 2) ** beta
        expected = math.exp(-q / 2) if profile == "generalized" else 1 / (1 + q)
        assert float(kernel[4 + dy, 4 + dx] / kernel[4, 4]) == pytest.approx(expected, rel=1e-12)


def test_generalized_at_beta_1_is_the_gaussian():
    args = f64(2), f64(1), f64(0.4)
    assert_close(gaussian_kernel(15, *args, f64(1), "generalized"), gaussian_kernel(15, *args))


def j1(x: np.ndarray) -> np.ndarray:
    """Bessel's integral; the trapezoid rule is exact to rounding for a periodic integrand."""
    tau = 2 * np.pi * np.arange(128) / 128
    return np.cos(tau - x[..., None] * np.sin(tau)).mean(-1)


def test_sinc_is_the_closed_form():
    w = np.array([math.pi / 5, math.pi / 2, math.pi])[:, None, None]
    grid = np.arange(-6, 7)
    r = np.hypot(grid[:, None], grid[None, :])[None]
    r[0, 6, 6] = 1e-6  # the limit at the centre, approached
    expected = w * j1(w * r) / (2 * np.pi * r)
    expected /= expected.sum((1, 2), keepdims=True)
    # torch's own J1 is good to some 1e-7
    assert_close(sinc_kernel(13, f64(*w.ravel())), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_sinc_passes_below_its_cutoff_and_not_above():
    cutoff = math.pi / 3
    kernel = sinc_kernel(99, f64(cutoff))[0]
    grid = torch.arange(99, dtype=torch.float64) - 49
    response = [float((kernel * torch.cos(w * grid)[None]).sum()) for w in (cutoff / 2, cutoff * 2)]
    assert response[0] > 0.9
    assert abs(response[1]) < 0.05


def test_drawn_kernels_have_sum_1_and_are_negative_only_where_sinc():
    rng = Rng.for_batch(3, 0, 64)
    kernels = draw_kernels(KernelConfig(sizes=(3, 19), sinc=0), rng)
    assert kernels.shape == (64, 21, 21)
    assert_close(kernels.sum((1, 2)), torch.ones(64, dtype=torch.float64))
    assert kernels.min() >= 0
    assert_close(kernels, kernels.flip((1, 2)))  # even about the centre
    sincs = draw_kernels(KernelConfig(sizes=(7, 21), sinc=1), rng)
    assert_close(sincs.sum((1, 2)), torch.ones(64, dtype=torch.float64))
    assert (sincs.amin((1, 2)) < 0).all()
    sizes = {int((k.abs().sum(0) > 0).sum()) for k in kernels}
    assert sizes <= set(range(3, 20, 2))
    assert len(sizes) > 4


def test_final_kernels_are_sincs_or_pulses_at_their_odds():
    kernels = draw_final_kernels((7, 21), 0.8, Rng.for_batch(0, 0, 400))
    pulses = int((kernels == pulse_kernel(21)).all(-1).all(-1).sum())
    assert pulses / 400 == pytest.approx(0.2, abs=0.06)  # 3 standard deviations


def test_choice_follows_its_mix():
    mix = (0.45, 0.25, 0.12, 0.03, 0.15)
    drawn = choice(Rng.for_batch(1, 0, 4000), "kind", mix)
    assert [drawn.count(i) / 4000 for i in range(5)] == pytest.approx(mix, abs=0.024)


@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_edges_arereflected_as_often_as_it_takes(length):
    expected = np.pad(np.arange(length), 10, mode="reflect")
    assert reflected(length, 10, torch.device("cpu")).tolist() == expected.tolist()


def test_blur_uses_each_samples_own_kernel_and_keeps_constants():
    images = torch.zeros(2, 3, 15, 15, dtype=torch.float64)
    images[..., 7, 7] = 1
    kernels = torch.cat([pulse_kernel(9), gaussian_kernel(9, f64(1.2), f64(0.8), f64(0.5))])
    out = blur(images, kernels)
    assert_close(out[0], images[0])
    assert_close(out[1, 1, 3:12, 3:12], kernels[1])
    tiny = torch.full((1, 3, 2, 3), 0.3, dtype=torch.float64)
    assert_close(blur(tiny, gaussian_kernel(21, f64(3))), tiny)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: gaussian_kernel(8, f64(1)), "must be odd"),
        (lambda: gaussian_kernel(7, f64(0)), "sigma: must be positive"),
        (lambda: gaussian_kernel(7, f64(1), beta=f64(0), profile="plateau"), "beta: must be positive"),
        (lambda: gaussian_kernel(7, f64(1), profile="plateau"), "give it for generalized and plateau"),
        (lambda: gaussian_kernel(7, f64(1), beta=f64(1), profile="box"), "unknown 'box'"),
        (lambda: sinc_kernel(7, f64(4)), "cutoff"),
        (lambda: pad_kernel(pulse_kernel(9), 7), "does not fit"),
        (lambda: blur(torch.zeros(2, 3, 8, 8), pulse_kernel(3)), "1 kernels for 2 images"),
    ],
)
def test_bad_kernels_are_refused(call, match):
    with pytest.raises(UserError, match=match) as error:
        call()
    assert "\n" not in str(error.value)
