"""Crops: pairs stay aligned, flat places are avoided, small pictures are mirrored, never enlarged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from restoration.data_bed import config, noise
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.restoration.data.crops import crop_example, extended, gradient, moved, random_crop
from fewstep.restoration.data.examples import Example


def pair(height: int, width: int, scale: int) -> Example:
    """A bad picture of which no two pixels are alike, and the good one of it, every pixel ``scale`` times a side."""
    lq = torch.from_numpy(noise(height, width)).permute(2, 0, 1)
    return Example(lq.repeat_interleave(scale, 1).repeat_interleave(scale, 2), lq)


@given(
    height=st.integers(1, 12), width=st.integers(1, 12), scale=st.integers(1, 4), small=st.integers(1, 9),
    step=st.integers(0, 50), flip=st.booleans(), rotate=st.booleans(),
)  # fmt: skip
def test_crops_of_pairs_stay_aligned(height, width, scale, small, step, flip, rotate):
    settings = config(crop=small * scale, flip=flip, rotate=rotate)
    crop = random_crop(pair(height, width, scale), settings, Rng(0, step, (0,)), scale)
    assert crop.lq.shape == (3, small, small)
    assert crop.hr.dtype == crop.lq.dtype == torch.float32
    assert torch.equal(crop.hr, crop.lq.repeat_interleave(scale, 1).repeat_interleave(scale, 2))


@given(h=st.integers(1, 9), w=st.integers(1, 9), height=st.integers(1, 40), width=st.integers(1, 40))
def test_small_pictures_are_mirrored_with_their_edges_repeated(h, w, height, width):
    pixels = noise(h, w)
    out = extended(torch.from_numpy(pixels).permute(2, 0, 1), height, width)
    grow = ((0, max(0, height - h)), (0, max(0, width - w)), (0, 0))
    assert torch.equal(out.permute(1, 2, 0), torch.from_numpy(np.pad(pixels, grow, mode="symmetric")))


def test_every_place_is_reached_and_none_beyond():
    picture = Example(torch.from_numpy(noise(5, 6)).permute(2, 0, 1))
    corners = [(a, b) for a in np.linspace(0, 0.9999, 40) for b in np.linspace(0, 0.9999, 40)]
    found = {crop_example(picture, 4, corner).hr.numpy().tobytes() for corner in corners}
    assert len(found) == 2 * 3
    middle = crop_example(Example(picture.hr[:, :, :4].repeat(1, 1, 2)), 4, (0.5, 0.5))
    assert middle.hr.shape == (3, 4, 4)


def test_the_gradient_is_the_mean_step_of_luma():
    ramp = torch.arange(8.0).expand(3, 4, 8) / 100  # 0.01 a column, nothing from row to row
    assert gradient(ramp) == pytest.approx(0.005)
    assert gradient(ramp.transpose(1, 2)) == pytest.approx(0.005)
    assert gradient(torch.full((3, 5, 5), 0.7)) == 0
    assert gradient(torch.rand(3, 1, 1)) == 0
    assert gradient(ramp[:, :1]) == pytest.approx(0.01)
    shifted = ramp + torch.tensor([0.587, -0.299, 0.0])[:, None, None]  # colour alone
    assert gradient(shifted) == pytest.approx(0.005, abs=1e-6)


def spot() -> Example:
    """A flat picture but for its left quarter."""
    hr = torch.full((3, 32, 128), 128, dtype=torch.uint8)
    hr[:, :, :32] = torch.from_numpy(noise(32, 32)).permute(2, 0, 1)
    return Example(hr)


def test_flat_places_are_avoided_and_the_best_is_kept():
    def lively(**settings) -> float:
        made = [gradient(random_crop(spot(), config(**settings), Rng(0, step, (0,))).hr) for step in range(200)]
        return float(np.mean([value > 0.005 for value in made]))

    chance = 32 / 113  # of the places of a crop of 16 pixels, those that touch what is not flat
    assert lively(tries=1) == pytest.approx(chance, abs=0.1)
    assert lively(min_gradient=0) == lively(tries=1)
    assert lively(tries=8) == pytest.approx(1 - (1 - chance) ** 8, abs=0.07)
    # a threshold nothing reaches: the liveliest of all places drawn
    rng = Rng(3, 1, (0,))
    best = random_crop(spot(), config(tries=6, min_gradient=0.99, flip=False), rng)
    drawn = [crop_example(spot(), 16, corner).hr for corner in rng.uniform("corner", (6, 2))[0].tolist()]
    assert torch.equal(best.hr, max(drawn, key=gradient))


def test_flips_and_turns_are_the_eight_symmetries_equally_often():
    picture = torch.from_numpy(noise(16, 16)).permute(2, 0, 1)
    eight = {moved(picture.float() / 255, m, k).numpy().tobytes(): 0 for m in (False, True) for k in range(4)}
    assert len(eight) == 8
    for step in range(400):
        crop = random_crop(Example(picture), config(rotate=True), Rng(0, step, (0,)))
        eight[crop.hr.numpy().tobytes()] += 1
    assert min(eight.values()) > 25  # of 50
    still = random_crop(Example(picture), config(flip=False), Rng(0, 0, (0,))).hr
    assert_close(still, picture.float() / 255)


def test_a_single_pixel_becomes_a_crop():
    crop = random_crop(Example(torch.tensor([[[10]], [[20]], [[30]]], dtype=torch.uint8)), config(), Rng(0, 0, (0,)))
    assert crop.hr.shape == (3, 16, 16)
    assert torch.equal(crop.hr.flatten(1).unique(dim=1)[:, 0] * 255, torch.tensor([10.0, 20, 30]))


def waves(size: int = 400) -> torch.Tensor:
    """A slow wave in both directions, "3 h w" in [0, 1]."""
    place = torch.arange(size, dtype=torch.float64) * 2 * math.pi / 40
    return (0.5 + 0.2 * place.sin()[:, None] + 0.2 * place.cos()[None, :]).float().expand(3, -1, -1).contiguous()


def test_shrunk_crops_are_those_of_a_smaller_picture() -> None:
    settings = config(crop=48, shrink=3.0, flip=False, min_gradient=0.0)
    lengths = []
    for step in range(60):
        crop = random_crop(Example(waves()), settings, Rng(0, step, (0,))).hr
        assert crop.shape == (3, 48, 48)
        row = crop[0].double() - crop[0].double().mean(0)  # the wave from top to bottom
        slope = row.diff(dim=0).square().mean().sqrt() / row.square().mean().sqrt()
        lengths.append(2 * math.pi / float(slope))
    # periods of 40 pixels divided by a factor whose logarithm is uniform up to log 3
    assert min(lengths) > 40 / 3 * 0.8
    assert max(lengths) < 40 * 1.6
    factors = sorted(40 / length for length in lengths)
    assert abs(factors[30] - 3**0.5) < 0.35


def test_shrinking_stops_where_a_picture_would_have_to_be_mirrored_and_leaves_pairs_alone() -> None:
    settings = config(crop=48, shrink=3.0, flip=False, min_gradient=0.0)
    small = torch.rand((3, 48, 60), generator=torch.Generator().manual_seed(0))
    plain = config(crop=48, flip=False, min_gradient=0.0)
    for step in range(5):
        rng = Rng(0, step, (0,))
        assert torch.equal(random_crop(Example(small), settings, rng).hr, random_crop(Example(small), plain, rng).hr)
        both = Example(waves(), waves(100))
        assert torch.equal(random_crop(both, settings, rng, 4).hr, random_crop(both, plain, rng, 4).hr)
    with pytest.raises(UserError, match="shrink"):
        config(shrink=0.5)


def test_jitter_is_one_linear_map_of_every_pixel_that_keeps_the_range_and_permutes_channels() -> None:
    picture = torch.rand((3, 16, 16), generator=torch.Generator().manual_seed(1))
    plain, lost, orders = config(flip=False, min_gradient=0.0), [], set()
    for step in range(200):
        rng = Rng(0, step, (0,))
        crop = random_crop(Example(picture), config(flip=False, min_gradient=0.0, jitter=0.6), rng).hr
        before = random_crop(Example(picture), plain, rng).hr
        assert float(crop.min()) >= 0
        assert float(crop.max()) <= 1
        order = tuple(int(torch.corrcoef(torch.stack([c.flatten(), *before.flatten(1)]))[0, 1:].argmax()) for c in crop)
        slope = (crop[0].max() - crop[0].min()) / (before[order[0]].max() - before[order[0]].min())
        offset = crop.mean((1, 2), keepdim=True) - slope * before[list(order)].mean((1, 2), keepdim=True)
        assert_close(crop, slope * before[list(order)] + offset, rtol=0, atol=1e-6)
        lost.append(1 - float(slope))
        orders.add(order)
    assert len(orders) == 6
    assert -1e-6 < min(lost) < 0.02  # uniform from none to all of the share
    assert 0.58 < max(lost) < 0.6 + 1e-6
    assert abs(sum(lost) / len(lost) - 0.3) < 0.05


def test_jitter_recolours_both_pictures_of_a_pair_alike() -> None:
    for step in range(20):
        crop = random_crop(pair(9, 7, 2), config(jitter=0.5), Rng(0, step, (0,)), 2)
        assert torch.equal(crop.hr, crop.lq.repeat_interleave(2, 1).repeat_interleave(2, 2))
    for strength in (-0.1, 1.0):
        with pytest.raises(UserError, match="jitter"):
            config(jitter=strength)
