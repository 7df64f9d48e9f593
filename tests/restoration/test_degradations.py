"""The pipelines: every preset's size and range, randomness by (seed, step, sample) alone, limits, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.restoration.degradations import (
    PRESETS,
    BicubicConfig,
    FaceConfig,
    KernelConfig,
    NoiseConfig,
    StageConfig,
    TwoStageConfig,
    degrade,
    imresize,
    preset,
)
from fewstep.restoration.degradations.pipeline import run_stage

SIZE = {"realesrgan": 16, "resshift": 16, "osediff": 64, "gfpgan": 64, "gfpgan-colour": 64, "bicubic-matlab": 16}


def pictures(batch: int, height: int = 64, width: int = 64) -> torch.Tensor:
    """Soft pictures, each another one."""
    coarse = torch.rand(batch, 3, 6, 6, generator=torch.Generator().manual_seed(7))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_give_their_size_in_8_bit(name):
    out = degrade(pictures(4), preset(name), Rng.for_batch(0, 0, 4), 4)
    assert out.shape == (4, 3, SIZE[name], SIZE[name])
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1
    if name != "osediff":  # enlarged after rounding
        assert_close(out * 255, (out * 255).round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_sample_depends_on_seed_step_and_id_alone(name):
    images, config = pictures(5, 32, 48), preset(name)
    rng = Rng.for_batch(11, 3, 5)
    state = torch.get_rng_state()
    whole = degrade(images, config, rng, 4)
    assert torch.equal(state, torch.get_rng_state())
    parts = [degrade(images[a:b], config, rng.select(a, b), 4) for a, b in ((0, 2), (2, 5))]
    assert torch.equal(torch.cat(parts), whole)
    backwards = Rng(11, 3, (4, 3, 2, 1, 0))
    assert torch.equal(degrade(images.flip(0), config, backwards, 4).flip(0), whole)
    if name != "bicubic-matlab":
        same = images[:1].expand(5, -1, -1, -1)
        different = [degrade(same, config, r, 4) for r in (rng, Rng.for_batch(12, 3, 5), rng.at_step(4))]
        rows = torch.cat(different).flatten(1)
        assert len(rows.unique(dim=0)) == 15


def test_bicubic_is_matlabs_rounded_to_8_bit():
    images, rng = pictures(2), Rng.for_batch(0, 0, 2)
    exact = degrade(images, BicubicConfig(round=False), rng, 4)
    assert_close(exact, imresize(images, 0.25))
    assert (degrade(images, BicubicConfig(), rng, 4) - exact).abs().max() <= 0.5001 / 255


def harmless() -> TwoStageConfig:
    """Every stage switched off but for JPEG, at its best."""
    kernel = KernelConfig(sizes=(1, 1), padded=1)
    stage = StageConfig(kernel=kernel, resize_mix=(0, 0, 1), noise=NoiseConfig(gaussian=1, sigma=(0, 0)))
    best = (100.0, 100.0)
    return TwoStageConfig(first=stage, second=stage, first_jpeg=best, final_jpeg=best, final_sinc=0, final_sizes=(1, 1))


def test_with_every_stage_off_the_picture_stays():
    images = pictures(4)[:, :1].expand(-1, 3, -1, -1)  # gray: no chroma to be halved
    out = degrade(images, harmless(), Rng.for_batch(0, 0, 4), 1)
    assert (out - images).abs().mean() < 0.6 / 255  # two JPEGs of quality 100 and 8 bit


def test_each_part_does_harm():
    images, rng = pictures(4), Rng.for_batch(0, 0, 4)
    config = harmless()
    blurred = KernelConfig(sizes=(21, 21), sinc=0, sigma=(3, 3))
    noisy = NoiseConfig(gaussian=1, sigma=(20, 20))
    changes = [
        replace(config, first=replace(config.first, kernel=blurred)),
        replace(config, first=replace(config.first, noise=noisy)),
        replace(config, second=replace(config.second, noise=noisy)),
        replace(config, first=replace(config.first, resize_mix=(0, 1, 0), resize=(0.1, 1))),
        replace(config, first_jpeg=(5, 5)),
        replace(config, final_jpeg=(5, 5)),
        replace(config, final_sinc=1, final_sizes=(13, 13)),
    ]
    base = degrade(images, config, rng, 1)
    sharp = images.clone()
    sharp[..., ::2] *= 0.6  # something for the sincs to take away
    for change in changes:
        assert (degrade(images, change, rng, 1) - base).abs().mean() > 0.5 / 255 or (
            degrade(sharp, change, rng, 1) - degrade(sharp, config, rng, 1)
        ).abs().mean() > 2 / 255
    never = replace(changes[2], second_probability=0)
    assert torch.equal(degrade(images, never, rng, 1), degrade(images, replace(config, second_probability=0), rng, 1))


def test_the_second_stages_sizes_are_relative_to_the_size_asked_for():
    stage, rng = harmless().first, Rng.for_batch(0, 0, 1)
    assert run_stage(pictures(1), stage, rng, (10, 12)).shape[-2:] == (10, 12)
    larger = replace(stage, resize_mix=(1, 0, 0), resize=(1, 1.5))
    sizes = {run_stage(pictures(1), larger, rng.at_step(s), (100, 100)).shape[-1] for s in range(12)}
    assert min(sizes) >= 100
    assert max(sizes) <= 150
    assert len(sizes) > 6


def test_faces_come_back_at_their_size_or_the_one_asked_for():
    images, rng = pictures(1), Rng.for_batch(0, 0, 1)
    small = degrade(images, FaceConfig(back_to_size=False, gray=1), rng, 4)
    assert small.shape[-2:] == (16, 16)
    assert_close(small, small[:, :1].expand_as(small))


def test_tiny_pictures_go_through():
    for name in PRESETS:
        assert degrade(pictures(3, 4, 8), preset(name), Rng.for_batch(0, 0, 3), 4).shape[0] == 3


def run(images: torch.Tensor, batch: int = 1, scale: int = 4) -> torch.Tensor:
    return degrade(images, BicubicConfig(), Rng.for_batch(0, 0, batch), scale)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: preset("realesgran"), "unknown; did you mean 'realesrgan'"),
        (lambda: run(torch.zeros(1, 3, 30, 32)), "30x32 is not a multiple of the scale 4"),
        (lambda: run(torch.zeros(1, 1, 32, 32)), "3 channels"),
        (lambda: run(torch.zeros(1, 3, 32, 32), batch=2), "random numbers for 2 samples"),
        (lambda: run(torch.zeros(1, 3, 32, 32), scale=0), "scale: must be at least 1"),
        (lambda: KernelConfig(sizes=(7, 20)), "must be odd"),
        (lambda: KernelConfig(sizes=(7, 23)), "smaller than the size 23"),
        (lambda: KernelConfig(sizes=(9, 7)), "ascending pair"),
        (lambda: KernelConfig(mix=(0.5, 0.5)), "6 probabilities of sum 1"),
        (lambda: KernelConfig(sinc=1.5), r"probability in \[0, 1\]"),
        (lambda: KernelConfig(sigma=(0, 1)), "kernel.sigma"),
        (lambda: KernelConfig(beta_plateau=(2, 3)), "must hold 1"),
        (lambda: NoiseConfig(sigma=(-1, 3)), "noise.sigma"),
        (lambda: NoiseConfig(poisson_scale=(float("nan"), 3)), "noise.poisson_scale"),
        (lambda: StageConfig(resize_mix=(0.5, 0.5, 0.5)), "3 probabilities of sum 1"),
        (lambda: StageConfig(resize=(1.1, 1.5)), "must hold 1"),
        (lambda: TwoStageConfig(final_jpeg=(0, 95)), "final_jpeg"),
        (lambda: TwoStageConfig(final_sizes=(6, 13)), "final_sizes"),
        (lambda: FaceConfig(kernel_size=40), "kernel_size: odd"),
        (lambda: FaceConfig(downscale=(0, 8)), "downscale"),
    ],
)
def test_bad_values_are_refused(call, match):
    with pytest.raises(UserError, match=match) as error:
        call()
    assert "\n" not in str(error.value)
