"""An image set beside the clips: the same pictures whatever the company, in the range and size of frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from fewstep.core.data.source import EncodedTexts, TextSource
from fewstep.core.errors import UserError
from fewstep.core.image.pictures import Folder
from fewstep.core.models.family import Size
from fewstep.core.rng import Rng
from fewstep.video.image_set import BlankPictures, WithImages
from fewstep.video.settings import ImageSetConfig

SIZE = Size(8, 12, 4)
CLIPS = TextSource(EncodedTexts(["a", "b", "c"], [0, 1, 2], {"prompt_embeds": torch.arange(3.0)[:, None]}, None))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))):
        Image.new("RGB", (20 + index, 30), colour).save(tmp_path / f"{index}.png")
    return tmp_path


def source(folder: Path, each: int = 3) -> WithImages:
    return WithImages(CLIPS, Folder(folder, 3, 12, 0.0), SIZE, each)


def test_every_clip_gets_its_number_of_pictures_of_a_frames_size_and_range(folder: Path) -> None:
    batch = source(folder).batch(Rng.for_batch(0, 0, 40), "cpu")
    images = batch.cond["images"]
    assert images.shape == (40, 3, 3, 8, 12)
    assert torch.equal(batch.cond["prompt_embeds"], CLIPS.batch(Rng.for_batch(0, 0, 40), "cpu").cond["prompt_embeds"])
    flat = images.flatten(0, 1)
    means = flat.mean((2, 3))
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])
    nearest = torch.cdist(means, colours)
    assert nearest.min(1).values.max() < 1e-5  # whole pictures of one colour, in [-1, 1]
    counts = nearest.argmin(1).bincount(minlength=4)
    assert counts.min() > 15  # 120 draws of four: 30 each, give or take


def test_a_samples_pictures_depend_on_seed_step_and_sample_alone(folder: Path) -> None:
    pictures = source(folder)
    whole = pictures.batch(Rng(3, 5, (0, 1, 2, 3), "data"), "cpu").cond["images"]
    part = pictures.batch(Rng(3, 5, (2, 3), "data"), "cpu").cond["images"]
    assert torch.equal(whole[2:], part)
    later = pictures.batch(Rng(3, 6, tuple(range(30)), "data"), "cpu").cond["images"]
    assert not torch.equal(later, pictures.batch(Rng(3, 7, tuple(range(30)), "data"), "cpu").cond["images"])


def test_blank_pictures_have_the_shape_alone() -> None:
    blank = WithImages(CLIPS, BlankPictures(SIZE), SIZE, 2).batch(Rng.for_batch(0, 0, 2), "cpu")
    assert blank.cond["images"].shape == (2, 2, 3, 8, 12)


@pytest.mark.parametrize(("entries", "word"), [({"each": 0}, "each"), ({"max_bad_share": 2.0}, "max_bad_share")])
def test_settings_out_of_range_are_refused(entries: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        ImageSetConfig(**entries)


def test_captions_come_with_their_pictures(folder: Path) -> None:
    told = WithImages(CLIPS, Folder(folder, 3, 12, 0.0), SIZE, 3, torch.arange(4.0)[:, None].expand(-1, 5))
    cond = told.batch(Rng.for_batch(0, 0, 8), "cpu").cond
    assert cond["image_caption"].shape == (8, 3, 5)
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])
    which = torch.cdist(cond["images"].mean((-2, -1)), colours).argmin(-1)
    assert torch.equal(which.float(), cond["image_caption"][..., 0])
    assert torch.equal(cond["images"], source(folder).batch(Rng.for_batch(0, 0, 8), "cpu").cond["images"])
