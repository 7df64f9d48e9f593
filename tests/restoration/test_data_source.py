"""Batches of pairs: a sample is a function of seed, step and place; pairs fit; scales take turns; bad settings."""

from __future__ import annotations

import pytest
import torch
from restoration.data_bed import REAL, config, make_pairs, photos
from torch.testing import assert_close

from fewstep.core.errors import TrainingError, UserError
from fewstep.core.rng import Rng
from fewstep.restoration.data.examples import Files, Photos
from fewstep.restoration.data.folder import folder_entries
from fewstep.restoration.data.pairs import pair_entries
from fewstep.restoration.data.source import Pairs, RestorationSource
from fewstep.restoration.degradations import imresize, sharpen, to_8_bit
from fewstep.restoration.degradations.resize import resize


def source(scales=(4,), *, milder_scale=0, examples=None, factor=4, **settings) -> RestorationSource:
    return RestorationSource(examples or photos(), config(**settings), scales, factor, milder_scale)


def rows(pairs: Pairs) -> list[list[torch.Tensor]]:
    """Everything about each sample."""
    whole = [pairs.hr, pairs.up, pairs.scale] + ([] if pairs.milder is None else [pairs.milder])
    return [[x[i] for x in whole] + [pairs.lq[i]] for i in range(len(pairs))]


def same(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(x, y) for a, b in pairs for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scales": (2, 4), "rotate": True},
        {"degradation": "resshift", "scales": (2, 4)},
        {"degradation": "gfpgan"},
        {"milder_scale": 2, "degradation": "realesrgan"},
    ],
)
def test_a_sample_is_a_function_of_seed_step_and_place(settings):
    def draw(seed: int, step: int, *ids: int):
        return rows(source(**settings).pairs(Rng(seed, step, ids, batch=6)))

    state = torch.get_rng_state()
    whole = draw(1, 7, 0, 1, 2, 3, 4, 5)
    assert torch.equal(state, torch.get_rng_state())
    assert same(draw(1, 7, 0, 1) + draw(1, 7, 2, 3, 4, 5), whole)
    assert same(draw(1, 7, 5, 4, 3, 2, 1, 0)[::-1], whole)
    used = source(**settings)
    for step in (3, 9, 7):
        again = rows(used.pairs(Rng(1, step, (0, 1, 2, 3, 4, 5), batch=6)))
    assert same(again, whole)
    assert not same(draw(2, 7, 0, 1), whole[:2])
    assert not same(draw(1, 8, 0, 1), whole[:2])


def test_files_and_their_cache_change_nothing(tmp_path):
    make_pairs(tmp_path, count=5)
    entries = pair_entries(tmp_path, 4)
    made = []
    for cache in (0, 1, 64):
        pairs = source(examples=Files(entries, "x", scale=4, cache=cache))
        pairs.pairs(Rng(0, cache, (1, 2), batch=4))
        made.append(rows(pairs.pairs(Rng(0, 3, (0, 1, 2, 3), batch=4))))
    assert same(made[0], made[1])
    assert same(made[0], made[2])


def test_pairs_of_files_show_the_same_place(tmp_path):
    make_pairs(tmp_path, count=5)
    files = Files(pair_entries(tmp_path, 4), "x", scale=4)
    made = source(examples=files, flip=False).pairs(Rng.for_batch(0, 0, 8))
    assert torch.equal(made.lq_batch(), made.hr[..., ::4, ::4])
    assert torch.equal(made.up, resize(made.lq_batch(), (16, 16), "bicubic"))


def test_an_epoch_shows_every_picture_once():
    shown = Photos([(str(i), torch.full((3, 20, 20), i / 16)) for i in range(12)])
    for epoch in range(2):
        steps = [source(examples=shown).pairs(Rng.for_batch(0, 3 * epoch + i, 4)) for i in range(3)]
        levels = torch.cat([step.hr[:, 0, 0, 0] for step in steps]) * 16
        assert sorted(levels.int().tolist()) == list(range(12))


def test_bad_pictures_are_bicubic_ones_of_the_good():
    made = source((2, 4)).pairs(Rng.for_batch(0, 0, 12))
    assert set(made.scale.tolist()) == {2, 4}
    assert made.lq_batch() is None
    for hr, lq, up, scale in zip(made.hr, made.lq, made.up, made.scale.tolist(), strict=True):
        assert torch.equal(lq, to_8_bit(imresize(hr[None], 1 / scale))[0])
        assert torch.equal(up, resize(lq[None], (16, 16), "bicubic")[0])
    assert made.milder is None


def test_good_pictures_are_sharpened_before_they_are_degraded_and_never_held_out_ones():
    sharp, plain = source(sharpen=True), source()
    made, before = sharp.pairs(Rng.for_batch(0, 0, 4)), plain.pairs(Rng.for_batch(0, 0, 4))
    assert_close(made.hr, sharpen(before.hr))
    assert not torch.equal(made.hr, before.hr)
    assert torch.equal(made.lq_batch(), to_8_bit(imresize(made.hr, 1 / 4)))
    assert torch.equal(sharp.held_pairs(3).hr, plain.held_pairs(3).hr)


def test_scales_are_drawn_equally_often():
    scales = torch.cat([source((1, 2, 4)).pairs(Rng.for_batch(0, step, 30)).scale for step in range(10)])
    assert all(70 < int((scales == scale).sum()) < 130 for scale in (1, 2, 4))


def test_the_milder_picture_is_what_the_bad_one_was_made_of():
    for degradation in ("bicubic-matlab", "resshift"):
        made = source((4, 8), milder_scale=2, degradation=degradation).pairs(Rng.for_batch(0, 0, 6))
        alone = source((2,), degradation=degradation).pairs(Rng.for_batch(0, 0, 6))
        assert torch.equal(made.hr, alone.hr)
        assert torch.equal(made.milder, alone.up)
        for less, lq, scale in zip(alone.lq, made.lq, made.scale.tolist(), strict=True):
            assert torch.equal(lq, to_8_bit(imresize(less[None], 2 / scale))[0])


@pytest.mark.parametrize("degradation", ["osediff", "gfpgan"])
def test_degradations_that_keep_the_size_need_no_enlarging(degradation):
    made = source(degradation=degradation).pairs(Rng.for_batch(0, 0, 3))
    assert made.lq_batch().shape == made.hr.shape
    assert torch.equal(made.up, made.lq_batch())


def test_held_out_pairs_are_fixed_and_begin_with_the_middles():
    held = source((2, 4)).held_pairs(12)
    assert same(rows(source((2, 4)).held_pairs(7)), rows(held)[:7])
    pictures = photos()
    for i in range(5):
        assert torch.equal(held.hr[i], pictures.example(i).hr[:, 12:28, 18:34])
    for i in range(5, 10):  # other places, and the other scale
        assert not torch.equal(held.hr[i], held.hr[i - 5])
        assert held.scale[i] != held.scale[i - 5]
    assert source().held_pairs(2, 32).hr.shape == (2, 3, 32, 32)
    with pytest.raises(UserError, match="the size of held-out pictures=30 must be a multiple of 4"):
        source().held_pairs(2, 30)
    with pytest.raises(UserError, match="at least one"):
        source().held_pairs(0)


def test_pairs_move_to_a_device():
    moved = source((8,), milder_scale=2).pairs(Rng.for_batch(0, 0, 2)).to("meta")
    assert all(x.device.type == "meta" for x in (moved.hr, moved.up, moved.scale, moved.milder, *moved.lq))


def test_damaged_pictures_make_way_for_the_next_whatever_ran_before(tmp_path):
    make_pairs(tmp_path, count=6)
    (tmp_path / "LR" / "02.png").write_bytes(b"broken")
    entries = pair_entries(tmp_path, 4)

    def fresh(share: float) -> RestorationSource:
        return source(examples=Files(entries, "x", scale=4, max_bad_share=share))

    one, other = fresh(0.2), fresh(0.2)
    other.pairs(Rng.for_batch(0, 5, 6))
    assert same(rows(one.pairs(Rng.for_batch(0, 0, 6))), rows(other.pairs(Rng.for_batch(0, 0, 6))))
    with pytest.raises(TrainingError, match="1 of 6 images"):
        fresh(0.1).pairs(Rng.for_batch(0, 0, 6))


@pytest.mark.parametrize(
    ("scales", "settings", "message"),
    [
        ((3,), {}, r"domain.data.crop=16 must be a multiple of 12, for the scales 3 and the space's factor 4"),
        ((2, 8), {"crop": 20}, "multiple of 8"),
        ((2,), {"crop": 18}, "multiple of 4"),
        ((), {}, "domain.scales must be"),
        ((0,), {}, "domain.scales must be"),
        ((64,), {}, "domain.scales must be"),
        ((4,), {"milder_scale": 4}, "domain.milder_scale=4 must be smaller"),
        ((2, 4), {"milder_scale": 2}, "must be smaller"),
        ((4,), {"milder_scale": 3}, "divide it"),
        ((4,), {"milder_scale": -2}, "must be smaller"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(scales, settings, message):
    with pytest.raises(UserError, match=message):
        source(scales, **settings)


def test_pairs_have_one_scale(tmp_path):
    files = Files(pair_entries(make_pairs(tmp_path), 4), "x", scale=4)
    for scales, milder in (((2,), 0), ((4, 8), 0), ((2, 4), 0)):
        with pytest.raises(UserError, match="the pairs are of scale 4 alone"):
            source(scales, milder_scale=milder, examples=files)
    with pytest.raises(UserError, match="pairs are of one scale"):
        source((4,), milder_scale=2, examples=files)


@pytest.mark.skipif(not REAL.is_dir(), reason="no photos here")
@pytest.mark.parametrize("degradation", ["bicubic-matlab", "resshift"])
def test_real_photos_make_pairs(degradation):
    files = Files(folder_entries(REAL), "photos")
    made = source(examples=files, crop=96, degradation=degradation).pairs(Rng.for_batch(0, 0, 4))
    assert made.hr.shape == made.up.shape == (4, 3, 96, 96)
    assert made.lq_batch().shape == (4, 3, 24, 24)
    assert made.hr.min() >= 0
    assert made.hr.max() <= 1
    if degradation == "bicubic-matlab":
        coarse = [torch.nn.functional.avg_pool2d(x, 8) for x in (made.hr, made.up)]
        assert_close(*coarse, atol=0.05, rtol=0)  # aligned: what is coarse stays
