"""Batches of prompts and pictures: functions of (seed, step, sample), pairs intact, memory bounded."""

from __future__ import annotations

import pytest
import torch
from core.caption_bed import caption, make_folder, png, truth
from core.model_bed import teacher

from fewstep.core.data.captioned import open_captioned
from fewstep.core.data.crops import cover
from fewstep.core.data.prepare import prepare
from fewstep.core.data.prepared import Prepared
from fewstep.core.data.source import EncodedPictures, EncodedTexts, TextSource, encode_texts
from fewstep.core.domain import DataSource
from fewstep.core.errors import TrainingError, UserError
from fewstep.core.models.family import Size
from fewstep.core.rng import Rng

PROMPTS = [f"prompt {i % 4}" for i in range(6)]


def pixels(crop):
    """In place of an autoencoder: latents are the pixels."""
    return crop


@pytest.fixture(scope="module")
def prompts():
    return TextSource(encode_texts(teacher("sd"), PROMPTS))


@pytest.fixture
def pictures(tmp_path):
    """Six pictures as pixels, each with the number of its caption as its condition."""
    found = open_captioned(make_folder(tmp_path / "data", 6), max_bad_share=0.5)
    texts = EncodedTexts(["0", "1", "2"], [i % 3 for i in range(6)], {"c": torch.arange(3)[:, None]}, None)
    return TextSource(texts, EncodedPictures(found, pixels, Size(8, 12), flip=True))


def test_captions_are_encoded_once_and_each_sample_has_its_own(prompts, monkeypatch):
    family, seen = type(teacher("sd").family), []
    whole = family.encode

    def encode(self, pipe, some, negative, size):
        seen.extend(some)
        return whole(self, pipe, some, negative, size)

    monkeypatch.setattr(family, "encode", encode)
    many = [f"prompt {i % 20}" for i in range(60)]
    texts = encode_texts(teacher("sd"), many)
    assert sorted(seen) == sorted(set(many))
    assert [texts.captions[row] for row in texts.rows] == many
    plain = teacher("sd").encode(list(dict.fromkeys(many)))
    assert torch.equal(texts.cond["prompt_embeds"], plain.cond["prompt_embeds"])
    assert torch.equal(texts.null["prompt_embeds"], plain.null["prompt_embeds"])


def test_an_epoch_shows_every_sample_once(prompts):
    assert isinstance(prompts, DataSource)
    assert len(prompts) == 6
    cond = prompts.texts.cond["prompt_embeds"]
    seen = torch.cat([prompts.batch(Rng.for_batch(0, step, 4), "cpu").cond["prompt_embeds"] for step in range(3)])
    number = [next(i for i in range(4) if torch.equal(row, cond[i])) for row in seen]
    assert sorted(number[:6]) == sorted(number[6:]) == [0, 0, 1, 1, 2, 3]
    batch = prompts.batch(Rng.for_batch(0, 0, 4), "cpu")
    assert batch.x0 is None
    assert batch.size == 4


def test_one_prompt_is_a_constant_condition():
    source = TextSource(encode_texts(teacher("sd"), ["a fox"]))
    batch = source.batch(Rng.for_batch(0, 3, 5), "cpu")
    assert torch.equal(batch.cond["prompt_embeds"], source.texts.cond["prompt_embeds"].expand(5, -1, -1))


@pytest.mark.parametrize("kind", ["prompts", "pictures"])
def test_a_batch_is_a_function_of_seed_step_and_sample(kind, request):
    source = request.getfixturevalue(kind)
    rng = Rng.for_batch(1, 5, 8)
    whole = source.batch(rng, "cpu")
    source.batch(rng.at_step(9), "cpu")
    for start, stop in ((0, 3), (3, 8)):  # as two processes would share it
        part = source.batch(rng.select(start, stop), "cpu")
        assert all(torch.equal(part.cond[name], whole.cond[name][start:stop]) for name in whole.cond)
        assert part.x0 is whole.x0 is None or torch.equal(part.x0, whole.x0[start:stop])
    other = source.batch(Rng.for_batch(2, 5, 8), "cpu")
    assert any(not torch.equal(other.cond[name], whole.cond[name]) for name in whole.cond)


def same_picture(crop, index):
    """Whether a crop in [-1, 1] is somewhere in a picture, mirrored or not."""
    picture = cover(truth(index), 8, 12) * 2 - 1
    windows = picture.unfold(1, 8, 1).unfold(2, 12, 1).permute(1, 2, 0, 3, 4)
    return bool(((windows - crop).abs().amax((2, 3, 4)) < 1e-5).any())


def test_crops_come_from_the_picture_of_their_caption(pictures):
    mirrored, places = [], set()
    for step in range(8):
        batch = pictures.batch(Rng.for_batch(0, step, 6), "cpu")
        assert batch.x0.shape == (6, 3, 8, 12)
        for crop, number in zip(batch.x0, batch.cond["c"][:, 0].tolist(), strict=True):
            plain = any(same_picture(crop, index) for index in (number, number + 3))
            flipped = any(same_picture(crop.flip(-1), index) for index in (number, number + 3))
            assert plain or flipped
            mirrored.append(flipped)
            places.add(float(crop[0, 0, 0]))
    assert 0.25 < sum(mirrored) / len(mirrored) < 0.75
    assert len(places) > 12, "crops lie in more than one place"


def test_a_damaged_picture_gives_its_place_and_its_caption_to_the_next(tmp_path):
    root = make_folder(tmp_path / "data", 6)
    (root / "1.png").write_bytes(png(1)[:50])
    found = open_captioned(root, max_bad_share=0.5)
    texts = EncodedTexts(["0", "1", "2"], [i % 3 for i in range(6)], {"c": torch.arange(3)[:, None]}, None)
    source = TextSource(texts, EncodedPictures(found, pixels, Size(8, 12)))
    batch = source.batch(Rng.for_batch(0, 0, 6), "cpu")
    assert sorted(batch.cond["c"][:, 0].tolist()) == [0, 0, 1, 2, 2, 2]
    for crop, number in zip(batch.x0, batch.cond["c"][:, 0].tolist(), strict=True):
        assert any(same_picture(crop, index) for index in (number, number + 3))
    for file in root.glob("*.png"):
        file.write_bytes(b"x")
    gone = EncodedPictures(open_captioned(root, max_bad_share=1.0), pixels, Size(8, 12))
    with pytest.raises(TrainingError, match="none of the 6 pictures"):
        gone.latents([0], Rng.for_batch(0, 0, 1))


@pytest.mark.parametrize("side", [(5, 9), (40, 30), (8, 12), (300, 7)])
def test_covering_keeps_the_aspect_and_fits_the_crop_exactly_on_one_side(side):
    picture = torch.rand(3, *side, generator=torch.Generator().manual_seed(0))
    covered = cover(picture, 8, 12)
    _, height, width = covered.shape
    assert height >= 8
    assert width >= 12
    assert height == 8 or width == 12
    scale = max(8 / side[0], 12 / side[1])
    assert abs(height - scale * side[0]) <= 0.5
    assert abs(width - scale * side[1]) <= 0.5
    assert float(covered.min()) >= 0
    assert float(covered.max()) <= 1


def test_prepared_data_gives_the_batches_of_its_samples(tmp_path):
    data = open_captioned(make_folder(tmp_path / "data", 6))
    prepare(teacher("sd"), data, tmp_path / "out", samples_per_shard=4)
    found = Prepared(tmp_path / "out", teacher("sd"))
    batch = TextSource(found, found).batch(Rng.for_batch(0, 1, 6), "cpu")
    assert batch.x0.shape == (6, *teacher("sd").shape)
    assert batch.x0.dtype == torch.float32
    _, whole = found.latents(range(6))
    for x0, cond in zip(batch.x0, batch.cond["prompt_embeds"], strict=True):
        sample = next(i for i in range(6) if torch.equal(x0, whole[i]))
        assert found.captions[found.rows[sample]] == caption(sample)
        assert torch.equal(cond, found.conditions([found.rows[sample]])["prompt_embeds"][0])


def test_memory_is_bounded_before_everything_is_encoded(monkeypatch):
    many = [f"prompt {i}" for i in range(40)]
    seen: list[int] = []
    with pytest.raises(UserError, match=r"40 encoded prompts take .* more than 1e-05: run `fewstep image prepare") as e:
        encode_texts(teacher("sd"), many, max_gib=1e-5, done=seen.append)
    assert "\n" not in str(e.value)
    assert max(seen) == 16
    exact = 40 * teacher("sd").encode(many[:1]).cond["prompt_embeds"].nbytes / 2**30
    encode_texts(teacher("sd"), many, max_gib=exact * 1.001, done=seen.append)
    assert seen[-1] == 40


def test_nothing_to_train_on_is_said(tmp_path):
    with pytest.raises(UserError, match="no prompts"):
        encode_texts(teacher("sd"), [])
    with pytest.raises(UserError, match="no samples"):
        TextSource(EncodedTexts([], [], {}, None))
    with pytest.raises(UserError, match="no 4 frames"):
        EncodedPictures(open_captioned(make_folder(tmp_path)), pixels, Size(8, 8, 4))
