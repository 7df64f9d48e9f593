"""Pictures enlarged in bands of tiles are those enlarged at once, in the mode and depth they came in."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from restoration.restorer_bed import StandIn, bicubic, bilinear, half_blind, nearest, smoothed
from torch import Tensor
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.restoration import bands, upscaling
from fewstep.restoration.bands import Plan, enlarged_rows, fixed_rows, restored_rows
from fewstep.restoration.colour import FIXES, fix_colour
from fewstep.restoration.pictures.picture import COLOURS, Picture
from fewstep.restoration.tiling import Tiles, even_weights
from fewstep.restoration.upscaling import UpscaleConfig, Upscaled, tiles_for, upscale

STEP = 1.01 / 65535  # of 16 bits, in which results are compared
SIZES = [(1, 1), (1, 37), (41, 1), (24, 24), (25, 24), (70, 101)]
MODES = ["L", "LA", "RGB", "RGBA"]


@pytest.fixture(autouse=True)
def _small_bands(monkeypatch):
    """Several bands even of small pictures."""
    monkeypatch.setattr(bands, "PIXELS", 1)
    monkeypatch.setattr(bands, "LEAST", 17)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def smooth(channels: int, height: int, width: int) -> Tensor:
    """A picture inside of the range, so that no result is clamped."""
    x = bicubic(noise(1, channels, height // 4 + 1, width // 4 + 1), 4)[0, :, :height, :width]
    return 0.3 + 0.4 * x.clamp(0, 1)


def deep(colours: Tensor, alpha: Tensor | None = None) -> Picture:
    mode = ("L" if len(colours) == 1 else "RGB") + "A" * (alpha is not None)
    return Picture(colours=colours, alpha=alpha, mode=mode, bits=16)


def colours(done: Upscaled) -> Tensor:
    return done.raster.picture().colours


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fix", FIXES)
def test_a_constant_stays_that_constant(size, fix):
    picture = deep(torch.tensor([0.2, 0.5, 0.7]).view(3, 1, 1).expand(3, *size))
    for restorer in (StandIn(nearest), StandIn(bilinear, radius=1), StandIn(half_blind, grid=4)):
        done = upscale(picture, restorer, UpscaleConfig(scale=3, tile=16, colour_fix=fix))
        expected = picture.colours[:, :1, :1].expand(3, size[0] * 3, size[1] * 3)
        assert_close(colours(done), expected, atol=1e-4 if fix == "lab" else 2 * STEP, rtol=0)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_ramp_is_enlarged_exactly_and_so_are_its_sides(scale):
    height, width = 45, 60
    ramp = 0.1 + torch.arange(height)[:, None] / 100 + torch.arange(width) / 200
    picture = deep(ramp.expand(1, -1, -1))
    done = upscale(picture, StandIn(bilinear, radius=1), UpscaleConfig(scale=scale, tile=20, colour_fix="none"))
    assert done.raster.size == (height * scale, width * scale)
    assert done.tiles == 12
    at = [((torch.arange(n * scale) + 0.5) / scale - 0.5).clamp(0, n - 1) for n in (height, width)]
    assert_close(colours(done)[0], 0.1 + at[0][:, None] / 100 + at[1] / 200, atol=STEP, rtol=0)


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("size", [(70, 101), (130, 33), (1, 90)])
def test_a_local_restorer_has_the_result_of_the_whole_picture_with_every_fix(size, fix):
    picture = deep(smooth(3, *size))
    restorer = StandIn(lambda x, s: 0.3 + 0.2 * smoothed(x, s), radius=3)
    done = upscale(picture, restorer, UpscaleConfig(scale=2, tile=24, colour_fix=fix))
    assert done.tiles > 2
    whole = 0.3 + 0.2 * smoothed(picture.colours[None], 2)
    expected = fix_colour(whole, bicubic(picture.colours[None], 2), fix)[0].clamp(0, 1)
    # what waits for statistics is rounded to twice the step, then stretched
    assert_close(colours(done), expected, atol=(20 if fix == "adain" else 1) * STEP, rtol=0)


def test_a_restorer_on_a_grid_sees_the_grid_of_the_whole_picture():
    picture = deep(smooth(3, 70, 101))
    config = UpscaleConfig(scale=2, colour_fix="none")
    tiled, whole = (
        upscale(picture, StandIn(half_blind, radius=4, grid=4), replace(config, tile=tile)) for tile in (21, 0)
    )
    assert tiled.tiles > whole.tiles == 1
    assert_close(colours(tiled), colours(whole), atol=STEP, rtol=0)


def test_seams_of_a_restorer_that_sees_its_borders_are_below_a_step_of_8_bits():
    picture = deep(smooth(3, 150, 170))
    restorer = StandIn(smoothed)
    tiled = upscale(picture, restorer, UpscaleConfig(scale=2, tile=64, overlap=24))
    whole = upscale(picture, restorer, UpscaleConfig(scale=2, tile=0))
    off = (colours(tiled) - colours(whole)).abs().max()
    assert 0 < off < 1 / 255


def test_results_with_noise_at_absolute_places_do_not_depend_on_tiles():
    picture = deep(smooth(3, 60, 75))
    found = [
        colours(upscale(picture, StandIn(bilinear, radius=1, grid=m, noise=0.05), UpscaleConfig(scale=2, tile=tile)))
        for tile, m in ((0, 1), (16, 1), (23, 1), (32, 8))
    ]
    for other in found[1:]:
        assert_close(other, found[0], atol=STEP, rtol=0)
    quiet = colours(upscale(picture, StandIn(bilinear, radius=1), UpscaleConfig(scale=2)))
    assert (found[0] - quiet).abs().max() > 0.04


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("fix", FIXES)
def test_mode_depth_and_what_belongs_to_the_picture_stay(mode, bits, fix):
    x = smooth(COLOURS[mode] + 1, 40, 33)
    alpha = x[-1:] if mode.endswith("A") else None
    picture = Picture(colours=x[:-1], alpha=alpha, mode=mode, bits=bits, exif=b"e", icc=b"i")
    raster = upscale(picture, StandIn(bicubic, radius=2), UpscaleConfig(scale=2, tile=16, colour_fix=fix)).raster
    assert (raster.mode, raster.bits, raster.exif, raster.icc) == (mode, bits, b"e", b"i")
    found, step = raster.picture(), 1 / (2**bits - 1)
    tolerance = max(step, {"lab": 1e-4, "adain": 4 * STEP}.get(fix, 0))
    assert_close(found.colours, bicubic(x[None, :-1], 2)[0], atol=tolerance, rtol=0)
    if alpha is not None:
        assert_close(found.alpha, bicubic(alpha[None], 2)[0].clamp(0, 1), atol=step / 1.9, rtol=0)


def test_alpha_does_not_go_through_the_restorer_and_overshoot_is_clamped():
    alpha = (torch.arange(20) >= 10).float().expand(1, 12, 20)
    picture = deep(torch.full((3, 12, 20), 0.5), alpha)
    found = upscale(picture, StandIn(lambda x, s: nearest(x, s) * 0 + 0.5), UpscaleConfig()).raster.picture().alpha
    assert (found.min(), found.max()) == (0, 1)
    assert_close((found[0, 0] > 0.5).sum(), torch.tensor(40))


def test_gray_is_restored_as_three_equal_channels_and_comes_back_by_its_luma():
    picture = deep(smooth(1, 20, 20))
    gains = torch.tensor([0.5, 1.0, 1.5]).view(3, 1, 1)

    def tinted(x: Tensor, scale: int) -> Tensor:
        assert torch.equal(x[:, 0], x[:, 2])
        return bicubic(x, scale) * gains

    done = upscale(picture, StandIn(tinted), UpscaleConfig(scale=2, colour_fix="none"))
    luma = 0.5 * 0.299 + 0.587 + 1.5 * 0.114
    assert_close(colours(done), bicubic(picture.colours[None], 2)[0] * luma, atol=STEP, rtol=0)


def test_tiles_that_are_not_finite_are_done_again_by_the_spare_restorer():
    picture = deep(smooth(3, 40, 40))

    def broken(x: Tensor, scale: int) -> Tensor:
        y = bilinear(x, scale)
        y[..., 3, 3] = float("nan") if len(restorer.sides) == 2 else 0.5
        return y

    restorer, spare = StandIn(broken, radius=1), StandIn(bilinear, radius=1)
    config = UpscaleConfig(scale=2, tile=24)
    upscale(picture, restorer, config, spare=lambda: spare)
    assert (len(restorer.sides), len(spare.sides)) == (4, 1)
    restorer.sides.clear()
    with pytest.raises(UserError, match=r"row 0, column \d+ is not finite: try fp32"):
        upscale(picture, restorer, config)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("x: not enough memory: y")])
def test_tiles_are_halved_until_memory_suffices(error):
    def limited(x: Tensor, scale: int) -> Tensor:
        if max(x.shape[2:]) > 40:
            raise error
        return bilinear(x, scale)

    picture = deep(smooth(3, 100, 90))
    done = upscale(picture, StandIn(limited, radius=1), UpscaleConfig(scale=2, colour_fix="none"))
    assert 20 < done.side <= 26
    assert_close(colours(done), bilinear(picture.colours[None], 2)[0], atol=STEP, rtol=0)
    with pytest.raises(UserError, match="out of memory with tiles of 100 pixels"):
        upscale(picture, StandIn(limited), UpscaleConfig(scale=2, overlap=26))


def test_faults_of_the_restorer_are_not_hidden():
    def broken(x: Tensor, scale: int) -> Tensor:
        raise RuntimeError("a fault of the network")

    with pytest.raises(RuntimeError, match="a fault"):
        upscale(deep(smooth(3, 9, 9)), StandIn(broken), UpscaleConfig())
    with pytest.raises(ValueError, match="at scale 4 became"):
        upscale(deep(smooth(3, 9, 9)), StandIn(lambda x, s: x), UpscaleConfig())


@pytest.mark.parametrize("wrong", [{"scale": 0}, {"scale": 5}, {"tile": -1}, {"overlap": -1}, {"colour_fix": "lap"}])
def test_what_no_picture_can_be_enlarged_with_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", " ")):
        UpscaleConfig(**wrong)


def test_scales_tiles_and_sizes_that_do_not_fit_are_refused(monkeypatch):
    picture = deep(smooth(3, 40, 40))
    with pytest.raises(UserError, match="scale 2: the model was made for 4"):
        upscale(picture, StandIn(scales=(4,)), UpscaleConfig(scale=2))
    with pytest.raises(UserError, match="tile 16: too small for overlaps of 10 pixels; at least 20"):
        upscale(picture, StandIn(radius=2), UpscaleConfig(tile=16, overlap=10))
    monkeypatch.setattr(upscaling, "free_bytes", lambda device: 80_000)
    with pytest.raises(UserError, match="the result of 160x160 pixels takes"):
        upscale(picture, StandIn(), UpscaleConfig())


def test_automatic_tiles_follow_memory_and_overlaps_the_restorer(monkeypatch):
    cpu = torch.device("cpu")
    size = (3000, 2000)
    known = tiles_for(StandIn(radius=10, grid=8), UpscaleConfig(), size, None, cpu)
    assert (known.overlap, known.halo) == (24, 10)
    unknown = tiles_for(StandIn(grid=8), UpscaleConfig(), size, None, cpu)
    assert (unknown.overlap, unknown.halo) == (64, 0)
    assert unknown.side % 8 == 0
    assert unknown.side**2 * 16_000 <= upscaling.HOST_BUDGET / 2 < (unknown.side + 8) ** 2 * 16_000
    monkeypatch.setattr(upscaling, "free_bytes", lambda device: 16_000 * 2 * 104**2)
    assert tiles_for(StandIn(grid=8), UpscaleConfig(), size, None, cpu).side == 104
    far = tiles_for(StandIn(radius=200), UpscaleConfig(), size, None, cpu)
    assert (far.side, far.overlap, far.halo) == (104, 52, 0), "what reaches too far is blended"
    assert tiles_for(StandIn(), UpscaleConfig(), (60, 70), None, cpu) == Tiles(side=70, overlap=0)


@pytest.mark.parametrize("length", [1, 7, 24, 25, 100, 1000, 4096])
@pytest.mark.parametrize(("side", "overlap", "multiple"), [(24, 8, 8), (24, 0, 8), (448, 48, 16), (512, 64, 1)])
def test_even_tiles_are_few_aligned_and_of_weight_one(length, side, overlap, multiple):
    along = even_weights(length, Tiles(side=side, overlap=overlap, halo=overlap // 2), 2, multiple)
    total = torch.zeros(2 * length, dtype=torch.float64)
    for start, weight in along:
        assert start % multiple == 0
        assert len(weight) <= 2 * max(side, 1)
        total[2 * start : 2 * start + len(weight)] += weight
    assert_close(total, torch.ones_like(total), atol=2e-7, rtol=0)
    assert len(along) == max(-(-(length - overlap) // (side - overlap)), 1)
    done = sum(len(weight) for _, weight in along) / 2
    assert done == length + overlap * (len(along) - 1), "nothing but the overlaps is done twice"


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_rows_of_the_enlarged_picture_are_those_of_the_whole(scale):
    x = noise(2, 11, 7)
    whole = bicubic(x[None], scale)[0]
    for start in range(0, 11 * scale, 5):
        stop = min(start + 9, 11 * scale)
        assert_close(enlarged_rows(x, scale, start, stop), whole[:, start:stop], atol=1e-6, rtol=0)


def test_rows_wait_until_what_their_colours_depend_on_is_there():
    x = smooth(3, 90, 20)
    plan = Plan((90, 20), Tiles(side=24, overlap=6, halo=3), 2, 1)
    rows = restored_rows(lambda tile, top, left: smoothed(tile, 2), x, plan)
    found = torch.cat([part.clone() for part in fixed_rows(rows, x, plan, "wavelet")], dim=1)
    assert_close(found, fix_colour(smoothed(x[None], 2), bicubic(x[None], 2), "wavelet")[0], atol=1e-6, rtol=0)


def test_progress_counts_every_tile():
    seen = []
    done = upscale(
        deep(smooth(3, 50, 50)),
        StandIn(radius=2),
        UpscaleConfig(tile=24, scale=2),
        progress=lambda i, n: seen.append((i, n)),
    )
    assert seen == [(i, done.tiles) for i in range(1, done.tiles + 1)]
    assert done.tiles == 9


def test_nothing_is_as_large_as_the_result_but_its_integers():
    """Arrays of numpy are traced; torch's tensors never are as large as ``quantized`` makes them."""
    height, width = 300, 20
    picture = Picture(colours=smooth(3, height, width), mode="RGB")
    result = height * width * 3 * 64
    upscale(picture, StandIn(nearest), UpscaleConfig(scale=8, tile=20))
    tracemalloc.start()
    done = upscale(picture, StandIn(nearest), UpscaleConfig(scale=8, tile=20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(done.raster.values, np.ndarray)
    assert result <= peak < 1.25 * result
