"""Words for the view: the right ones at every angle, and Perp-Neg's blends without a jump between them."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.errors import UserError
from fewstep.threed.teachers.directions import (
    BACK,
    FRONT,
    OVERHEAD,
    SIDE,
    DirectionConfig,
    direction_of,
    perp_neg_blend,
)

F64 = torch.float64


def deg(*values: float):
    return torch.tensor(values, dtype=F64)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "direction"),
    [
        (0, 0, FRONT),
        (44, 0, FRONT),
        (-44, 0, FRONT),
        (370, 0, FRONT),
        (46, 0, SIDE),
        (90, 0, SIDE),
        (-90, 30, SIDE),
        (270, 0, SIDE),
        (134, 0, SIDE),
        (136, 0, BACK),
        (180, 0, BACK),
        (-180, 59, BACK),
        (0, 61, OVERHEAD),
        (180, 80, OVERHEAD),
        (0, -80, FRONT),
    ],
)
def test_every_angle_has_its_direction(azimuth, elevation, direction):
    assert direction_of(deg(azimuth), deg(elevation), DirectionConfig()).tolist() == [direction]


def test_thresholds_are_settings():
    config = DirectionConfig(front=30.0, back=60.0, overhead=20.0)
    assert direction_of(deg(35, 125, 0), deg(0, 0, 25), config).tolist() == [SIDE, BACK, OVERHEAD]


def by_direction(azimuth, elevation=0.0):
    """Shares of the blended prompt and weights of negative ones, "b 4" each, by direction."""
    blend = perp_neg_blend(deg(*azimuth), torch.full((len(azimuth),), elevation, dtype=F64), DirectionConfig())
    told, negative = torch.zeros(2, len(azimuth), 4, dtype=F64)
    told.scatter_add_(1, blend.pair, torch.stack([blend.share, 1 - blend.share], 1))
    negative.scatter_add_(1, blend.negative, blend.weights)
    return told, negative


def test_perp_neg_tells_the_direction_one_looks_from_and_denies_the_others():
    told, negative = by_direction([0, 90, 180])
    assert torch.equal(told.argmax(1), torch.tensor([FRONT, SIDE, BACK]))
    assert torch.allclose(told.amax(1), torch.ones(3, dtype=F64))
    # the curves of the sheet: 4 exp(-r/2) - 2.426 between front and side, exp(-r/2) + 0.967 against the front behind
    assert torch.allclose(negative[:, FRONT], deg(0, -1.574, -1.967), atol=1e-3)
    assert torch.allclose(negative[:, SIDE], deg(-1.574, 0, -0.394), atol=1e-3)
    assert not negative[:, [BACK, OVERHEAD]].any()


def test_perp_neg_is_continuous_symmetric_and_never_positive():
    azimuth = torch.linspace(-180, 180, 1441, dtype=F64).tolist()
    told, negative = by_direction(azimuth)
    assert torch.allclose(told, told.flip(0))
    assert torch.allclose(negative, negative.flip(0))
    assert bool((negative <= 0).all())
    assert torch.allclose(told.sum(1), torch.ones(len(told), dtype=F64))
    # a quarter of a degree: the steepest curve moves by 4/2/90/4
    assert float((told[1:] - told[:-1]).abs().max()) < 0.003
    assert float((negative[1:] - negative[:-1]).abs().max()) < 0.0065


def test_from_overhead_perp_neg_denies_nothing():
    told, negative = by_direction([0, 100], elevation=70.0)
    assert torch.equal(told[:, OVERHEAD], torch.ones(2, dtype=F64))
    assert not negative.any()


def test_words_are_put_behind_the_prompt():
    assert DirectionConfig().texts("a cat")[SIDE] == "a cat, side view"
    assert DirectionConfig(words=()).texts("a cat") == ["a cat"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"words": ("front",)}, "four"),
        ({"words": ("a", "b", "c", " ")}, "four"),
        ({"front": 100.0, "back": 100.0}, "overlap"),
        ({"words": (), "perp_neg": True}, "needs words"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, why):
    with pytest.raises(UserError, match=why):
        DirectionConfig(**settings)
