"""Pairs of degradations: the harsher one knows nothing but the milder."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.restoration.degradations import (
    FaceConfig,
    TwoStageConfig,
    degrade,
    imresize,
    nested_pair,
    preset,
    resize,
    to_8_bit,
)

RNG = Rng.for_batch(3, 1, 2)


def pictures(size: int = 64) -> torch.Tensor:
    coarse = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(7))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")


@pytest.mark.parametrize(("scale", "milder_scale"), [(4, 2), (8, 4), (8, 2), (4, 1)])
def test_the_harsher_picture_is_the_milder_one_made_smaller(scale, milder_scale):
    config = preset("realesrgan")
    harsher, milder = nested_pair(pictures(), config, RNG, scale, milder_scale)
    assert torch.equal(milder, degrade(pictures(), config, RNG, milder_scale))
    assert harsher.shape == (2, 3, 64 // scale, 64 // scale)
    assert_close(harsher, to_8_bit(imresize(milder, milder_scale / scale)))


def test_what_goes_back_to_size_does_so_twice():
    for config in (preset("osediff"), FaceConfig()):
        harsher, milder = nested_pair(pictures(), config, RNG, 4, 2)
        assert milder.shape == harsher.shape == (2, 3, 64, 64)
        small = to_8_bit(imresize(milder, 1 / 4))
        assert_close(harsher, resize(small, (64, 64), "bicubic").clamp(0, 1))
        assert (harsher - milder).abs().max() > 0.01


def test_what_follows_may_be_another_degradation_with_noise_of_its_own():
    further = preset("realesrgan")
    harsher, milder = nested_pair(pictures(), preset("bicubic-matlab"), RNG, 4, 2, further=further)
    assert torch.equal(harsher, degrade(milder, further, RNG.fork("nested"), 2))
    one = nested_pair(pictures()[1:], preset("bicubic-matlab"), RNG.select(1, 2), 4, 2, further=further)
    assert torch.equal(one[0], harsher[1:])  # a function of picture and sample alone


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scale": 2, "milder_scale": 2}, "proper divisor of the scale 2"),
        ({"scale": 4, "milder_scale": 3}, "proper divisor of the scale 4"),
        ({"scale": 4, "milder_scale": 0}, "proper divisor"),
        ({"scale": 128, "milder_scale": 2}, "64x64 is not a multiple of the scale 128"),
        ({"scale": 4, "milder_scale": 2, "further": TwoStageConfig(back_to_size=True)}, "must change the size"),
    ],
)
def test_scales_that_do_not_nest_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        nested_pair(pictures(), preset("bicubic-matlab"), RNG, **given)
