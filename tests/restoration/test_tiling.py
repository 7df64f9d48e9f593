"""Tiles add up to the picture: constants, ramps and local functions come out as on the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.restoration.tiling import (
    Tiles,
    blend_weights,
    free_bytes,
    in_tiles,
    side_within,
    tile_starts,
    window,
)

SIZES = [(1, 1), (5, 9), (32, 32), (33, 32), (70, 101), (1, 80)]
GRIDS = [
    Tiles(side=32, overlap=8),
    Tiles(side=32, overlap=16, halo=5),
    Tiles(side=31, overlap=0),
    Tiles(side=64, overlap=32),
]


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def enlarged(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def smoothed(x: Tensor) -> Tensor:
    """A local function of radius 3 with zeros beyond the border of what it is given, and an edge of its own."""
    kernel = torch.tensor([1.0, -2.0, 3.0, 5.0, 3.0, -2.0, 1.0]) / 9
    x = functional.conv2d(x, kernel.view(1, 1, 1, 7), padding=(0, 3))
    return functional.conv2d(x, kernel.view(1, 1, 7, 1), padding=(3, 0)).tanh()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiles", GRIDS)
def test_the_identity_returns_the_picture(size, tiles):
    x = noise(2, 3, *size)
    assert_close(in_tiles(lambda tile: tile, x, tiles), x, atol=1e-6, rtol=0)
    assert_close(in_tiles(lambda tile: tile, x[0], tiles), x[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiles", GRIDS)
def test_a_constant_and_a_ramp_come_out_exactly(size, tiles):
    height, width = size
    ramp = (torch.arange(height)[:, None] / height - torch.arange(width) / width).expand(1, 1, -1, -1)
    for x in (torch.full((1, 1, height, width), 0.7), ramp):
        assert_close(in_tiles(enlarged, x, tiles, scale=2), enlarged(x), atol=1e-6, rtol=0)


def test_a_bilinear_ramp_is_exact_where_tiles_have_a_halo():
    def bilinear(x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)

    x = (torch.arange(80)[:, None] / 100 + torch.arange(90) / 300).expand(1, 1, -1, -1)
    found = in_tiles(bilinear, x, Tiles(side=32, overlap=8, halo=1), scale=4)
    assert_close(found, bilinear(x), atol=1e-6, rtol=0)


def test_a_local_function_within_the_halo_has_no_seams_at_all():
    x = noise(1, 1, 90, 75)
    found = in_tiles(smoothed, x, Tiles(side=32, overlap=12, halo=3))
    assert_close(found, smoothed(x), atol=2e-6, rtol=0)


def test_seams_of_a_local_function_stay_below_one_step_of_8_bits_without_a_halo():
    x = noise(1, 1, 200, 170)
    found = in_tiles(smoothed, x, Tiles(side=64, overlap=24))
    off = (found - smoothed(x)).abs().max()
    assert 0 < off < 1 / 255


def test_tiling_is_linear_in_the_function():
    x, tiles = noise(1, 2, 50, 41), Tiles(side=16, overlap=6)
    both = in_tiles(lambda tile: 2 * tile.flip(3) + tile**2, x, tiles)
    parts = 2 * in_tiles(lambda tile: tile.flip(3), x, tiles) + in_tiles(lambda tile: tile**2, x, tiles)
    assert_close(both, parts)


@pytest.mark.parametrize("side", [1, 2, 7, 64])
def test_the_window_is_symmetric_and_positive(side):
    weights = window(side)
    assert_close(weights, weights.flip(0))
    assert weights.min() > 0


def test_starts_cover_the_length_once():
    assert tile_starts(10, 16, 4) == [0]
    assert tile_starts(16, 16, 4) == [0]
    assert tile_starts(17, 16, 4) == [0, 1]
    assert tile_starts(28, 16, 4) == [0, 12]
    assert tile_starts(41, 16, 4) == [0, 12, 24, 25]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 500])
@pytest.mark.parametrize("tiles", GRIDS)
def test_weights_add_up_to_one(length, tiles):
    total = torch.zeros(length * 3, dtype=torch.float64)
    for start, weight in blend_weights(length, tiles, 3):
        assert weight.min() >= 0
        total[start * 3 : start * 3 + len(weight)] += weight
    assert_close(total, torch.ones_like(total), atol=2e-7, rtol=0)


def test_half_precision_tiles_are_added_in_single_precision():
    found = in_tiles(lambda tile: tile.half(), torch.full((1, 1, 60, 60), 0.5), Tiles(side=16, overlap=8))
    assert found.dtype == torch.float32
    assert_close(found, torch.full_like(found, 0.5), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("x: can't allocate memory: you tried"), MemoryError()]
)
def test_tiles_are_halved_until_memory_suffices(error):
    x, sides = noise(1, 1, 100, 90), []

    def limited(tile: Tensor) -> Tensor:
        sides.append(max(tile.shape[2:]))
        if len(sides) in (1, 3):  # the second time after a tile that was fine
            raise error
        return tile

    assert_close(in_tiles(limited, x, Tiles(side=80, overlap=8)), x, atol=1e-6, rtol=0)
    assert sides[0] == 80
    assert sides[-1] == 20


def test_memory_that_never_suffices_is_told_in_one_line():
    def full(tile: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(UserError, match="tiles of 32 pixels at an overlap of 16") as caught:
        in_tiles(full, noise(1, 1, 100, 90), Tiles(side=64, overlap=16))
    assert "\n" not in str(caught.value)


def test_other_errors_and_wrong_sizes_are_not_hidden():
    def broken(tile: Tensor) -> Tensor:
        raise RuntimeError("a fault of the network")

    with pytest.raises(RuntimeError, match="a fault"):
        in_tiles(broken, noise(1, 1, 9, 9), Tiles())
    with pytest.raises(ValueError, match="at scale 2 became"):
        in_tiles(lambda tile: tile, noise(1, 1, 9, 9), Tiles(), scale=2)


@pytest.mark.parametrize("wrong", [{"side": 0}, {"overlap": 257}, {"overlap": -1}, {"halo": 33}])
def test_tiles_that_leave_gaps_are_refused(wrong):
    with pytest.raises(UserError, match=f"tile {next(iter(wrong))}"):
        Tiles(**wrong)


def test_the_side_follows_the_budget():
    assert side_within(2 * 1000 * 64**2, 1000) == 64
    assert side_within(2 * 1000 * 64**2 - 1000, 1000) == 56
    assert side_within(10**15, 1000, most=1000) == 1000
    assert free_bytes(torch.device("cpu")) > 0
    with pytest.raises(UserError, match="too small"):
        side_within(1000, 1000)
