"""Pictures: every mode of file, damaged files, epochs, crops, splits."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fewstep.core.data.crops import crop_at
from fewstep.core.data.epochs import epoch_indices
from fewstep.core.data.reading import MAX_PIXELS, read_image, shrink
from fewstep.core.domain import DataSource
from fewstep.core.errors import TrainingError, UserError
from fewstep.core.image.data import DataConfig, ImageSource, load_data, split
from fewstep.core.image.pictures import PHOTOS, Folder, digits, photos
from fewstep.core.rng import Rng

COLOUR = np.array([[[255, 0, 0], [0, 128, 0]], [[0, 0, 64], [255, 255, 255]]], dtype=np.uint8)


def truth() -> torch.Tensor:
    return torch.from_numpy(COLOUR).permute(2, 0, 1).float() / 255


def save(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


# reading


def test_rgb_is_exact(tmp_path):
    assert_close(read_image(save(Image.fromarray(COLOUR), tmp_path / "a.png"), 3), truth())


def test_alpha_is_composited_on_white(tmp_path):
    rgba = np.concatenate([COLOUR, np.array([[[255], [0]], [[51], [255]]], dtype=np.uint8)], 2)
    alpha = torch.tensor([[1.0, 0.0], [0.2, 1.0]])
    expected = alpha * truth() + (1 - alpha)
    assert_close(read_image(save(Image.fromarray(rgba), tmp_path / "a.png"), 3), expected, atol=3e-3, rtol=0)
    gray = save(Image.fromarray(rgba).convert("LA"), tmp_path / "la.png")
    assert read_image(gray, 1)[0, 0, 1] == 1


def test_a_palette_with_a_transparent_colour_is_composited_on_white(tmp_path):
    palette = Image.fromarray(COLOUR).quantize(4)
    hidden = int(np.asarray(palette)[0, 0])
    picture = read_image(save(palette, tmp_path / "a.gif", transparency=hidden), 3)
    assert_close(picture[:, 0, 0], torch.ones(3))
    assert_close(picture[:, 0, 1], truth()[:, 0, 1], atol=0.02, rtol=0)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_keep_their_precision(tmp_path, suffix):
    values = np.array([[0, 1, 257], [40000, 65534, 65535]], dtype=np.uint16)
    picture = read_image(save(Image.fromarray(values), tmp_path / f"a.{suffix}"), 1)
    assert_close(picture[0], torch.from_numpy(values.astype(np.float32) / 65535), atol=1e-7, rtol=0)


def test_gray_one_bit_and_float_files(tmp_path):
    gray = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    picture = read_image(save(Image.fromarray(gray), tmp_path / "a.png"), 3)
    assert_close(picture, (torch.from_numpy(gray).float() / 255).expand(3, 2, 2))
    bits = read_image(save(Image.fromarray(gray > 150), tmp_path / "b.png"), 1)
    assert_close(bits[0], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    unit = np.array([[0.25, 1.0]], dtype=np.float32)
    assert_close(read_image(save(Image.fromarray(unit), tmp_path / "c.tiff"), 1)[0], torch.from_numpy(unit))
    with pytest.raises(ValueError, match="outside"):
        read_image(save(Image.fromarray(unit * 7), tmp_path / "d.tiff"), 1)


def test_cmyk_becomes_rgb(tmp_path):
    picture = read_image(save(Image.fromarray(COLOUR).convert("CMYK"), tmp_path / "a.tiff"), 3)
    assert_close(picture, truth(), atol=0.01, rtol=0)
    assert read_image(save(Image.fromarray(COLOUR).convert("CMYK"), tmp_path / "a.jpg"), 3).shape == (3, 2, 2)


def test_camera_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter, as a phone writes it
    upright = read_image(save(Image.fromarray(COLOUR), tmp_path / "a.png", exif=exif), 3)
    assert_close(upright, truth().rot90(-1, (1, 2)))


def test_colour_to_gray_is_luma_and_sides_shrink_without_aliasing(tmp_path):
    gray = read_image(save(Image.fromarray(COLOUR), tmp_path / "a.png"), 1)
    assert_close(gray[0], (truth() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0), atol=1e-4, rtol=0)
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 32, 32)
    assert shrink(stripes, 8).std() < 0.02
    assert shrink(torch.rand(1, 40, 20, generator=torch.Generator().manual_seed(0)), 10).shape == (1, 20, 10)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_oversized_file_is_refused(tmp_path):
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="pixels"):
        read_image(tmp_path / "a.png", 1)


# folders


def make_folder(root: Path, count: int = 6, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for index in range(count):
        folder = root / classes[index % len(classes)] if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 9, 3), 20 * index, dtype=np.uint8)).save(folder / f"{index}.png")
    return root


def test_classes_of_a_folder_are_its_first_subfolders(tmp_path):
    folder = Folder(make_folder(tmp_path), 3, 8, 0.0)
    assert folder.classes == ("cat", "dog")
    assert [folder.get(i)[1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert folder.get(0)[0].shape[1:] == (10, 8) or folder.get(0)[0].shape[1:] == (11, 8)
    Image.fromarray(COLOUR).save(tmp_path / "loose.png")
    assert Folder(tmp_path, 3, 8, 0.0).classes == ()


def test_a_missing_or_empty_folder_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        Folder(tmp_path / "absent", 3, 8, 0.0)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no images"):
        Folder(tmp_path, 3, 8, 0.0)
    with pytest.raises(UserError, match="is a file"):
        Folder(tmp_path / "notes.txt", 3, 8, 0.0)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def test_a_damaged_file_is_skipped_counted_and_named_once(tmp_path, caplog):
    folder = Folder(make_folder(tmp_path, classes=()), 3, 8, max_bad_share=0.5)
    damage(tmp_path / "2.png")
    with caplog.at_level(logging.WARNING):
        assert_close(folder.get(2)[0], folder.get(3)[0])
        folder.get(2)
    assert [record.getMessage().count("2.png") for record in caplog.records] == [1]
    assert folder.bad.indices == {2}


def test_too_many_damaged_files_stop_the_run(tmp_path):
    folder = Folder(make_folder(tmp_path, classes=()), 3, 8, max_bad_share=0.2)
    damage(tmp_path / "1.png")
    (tmp_path / "3.png").write_bytes(b"not an image")
    folder.get(1)
    with pytest.raises(TrainingError, match=r"2 of 6 images.*max_bad_share=0\.2.*3\.png"):
        folder.get(3)


def test_a_truncated_jpeg_counts_as_damaged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(TrainingError, match=r"a\.jpg"):
        Folder(tmp_path, 3, 8, 0.0).get(0)


# epochs and batches


def test_an_epoch_shows_every_sample_once_whatever_the_batch():
    for batch in (4, 7):
        seen = [i for step in range(21) for i in epoch_indices(Rng.for_batch(3, step, batch), 21)]
        for start in range(0, len(seen) - 20, 21):
            assert sorted(seen[start : start + 21]) == list(range(21))
        assert seen[:21] != seen[21:42]
        assert seen[:21] != sorted(seen[:21])


def test_a_batch_is_a_function_of_seed_step_and_sample():
    source = load_data(DataConfig()).source
    assert isinstance(source, DataSource)
    rng = Rng.for_batch(1, 5, 8)
    whole = source.batch(rng, "cpu")
    source.batch(rng.at_step(9), "cpu")
    part = source.batch(rng.select(3, 6), "cpu")
    assert torch.equal(part.x0, whole.x0[3:6])
    assert torch.equal(part.cond["label"], whole.cond["label"][3:6])
    assert not torch.equal(source.batch(Rng.for_batch(2, 5, 8), "cpu").x0, whole.x0)


def test_crops_stay_inside_reach_both_ends_and_flip_half():
    picture = torch.arange(30.0).reshape(1, 5, 6)
    corners = {(0.0, 0.0): 0.0, (0.999, 0.999): 15.0, (0.5, 0.4): 7.0}
    for corner, first in corners.items():
        crop = crop_at(picture, 3, corner)
        assert crop.shape == (1, 3, 3)
        assert crop[0, 0, 0] == first
    source = ImageSource(_Ramp(), 4, flip=True)
    batch = source.batch(Rng.for_batch(0, 0, 400), "cpu")
    falling = (batch.x0[:, 0, 0, 0] > batch.x0[:, 0, 0, -1]).float().mean()
    assert 0.4 < falling < 0.6
    assert batch.cond == {}


class _Ramp:
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 3

    def get(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.linspace(0, 1, 4).expand(1, 4, 4), 0


# the shipped sources


def test_digits_are_all_there_in_range_and_split_once():
    data = load_data(DataConfig(holdout=0.2))
    assert data.reference.shape == (1797, 1, 8, 8)
    assert data.reference.min() == -1
    assert data.reference.max() == 1
    assert sorted(set(data.labels.tolist())) == list(range(10))
    assert len(data.source) == 1438
    held, kept = split(1797, 0.2)
    assert sorted(held + kept) == list(range(1797))
    assert torch.equal(data.reference[0], digits().images[held[0]] * 2 - 1)
    assert data.shape == (1, 8, 8)


def test_photos_come_without_a_download_and_each_is_a_class():
    found = photos(3, 16)
    assert len(found) == len(PHOTOS) == 12
    assert all(min(image.shape[1:]) == 16 and image.shape[0] == 3 for image in found.images)
    data = load_data(DataConfig(source="photos", size=8, channels=3, resize=16, flip=True), most=24)
    assert data.reference.shape == (24, 3, 8, 8)
    assert data.labels.bincount().tolist() == [2] * 12


def test_a_folder_with_held_out_pictures(tmp_path):
    make_folder(tmp_path, count=10)
    data = load_data(DataConfig(source="folder", path=str(tmp_path), size=8, channels=3, holdout=0.3))
    assert len(data.source) == 7
    assert data.reference.shape == (10, 3, 8, 8)
    assert data.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"channels": 2}, "channels"),
        ({"size": 16}, "8x8"),
        ({"path": "x"}, "path"),
        ({"source": "folder"}, "path"),
        ({"holdout": 1.0}, "holdout"),
        ({"source": "photos", "holdout": 0.1}, "holdout"),
        ({"source": "photos", "size": 16, "resize": 8}, "resize"),
        ({"max_bad_share": 2.0}, "max_bad_share"),
    ],
)
def test_settings_that_cannot_be_are_named(wrong, named):
    with pytest.raises(UserError, match=named):
        DataConfig(**wrong)
