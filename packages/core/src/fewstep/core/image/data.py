"""Data of the image domain: scikit-learn's digits, crops of scikit-image's photos, or a folder of images.

All are given as [-1, 1], shape "c h w". A batch is a function of (seed, step): epochs are permutations of the pictures,
crops and flips are drawn from the run's generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.data.crops import crop_at
from fewstep.core.data.epochs import epoch_indices, permutation
from fewstep.core.errors import check
from fewstep.core.image.pictures import Folder, Part, Pictures, digits, photos
from fewstep.core.recipe import Batch
from fewstep.core.rng import Rng

REFERENCE_SEED = 20_231_118  # of the split and of the reference crops: fixed, so that numbers compare across runs


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where pictures come from.

    ``source``: ``digits`` (8x8, gray, 10 classes), ``photos`` (crops of 12 photos, one class each) or ``folder``.
    For text-to-image teachers: a file of ``prompts``, pictures with ``captions`` (a folder, or webdataset archives), a
    folder ``prepared`` by `fewstep image prepare`, or digits and photos with the ``caption`` "a photo of {}"; pictures
    are cropped to the teacher's size. ``path``: the file or folder; the first subfolders of a ``folder`` are its
    classes. ``column``: of a table of prompts or captions. ``size``: pixels of the square crops. ``channels``: 1 or 3.
    ``resize``: pixels of the shorter side before cropping (0: the same as ``size``). ``flip``: mirror half of the
    crops. ``holdout``: share of the pictures never trained on. ``max_bad_share``: share of unreadable files that stops
    a run.
    """

    source: Literal["digits", "photos", "folder", "prompts", "captions", "prepared"] = "digits"
    path: str = ""
    column: str = ""
    caption: str = "a picture of {}"
    size: int = 8
    channels: int = 1
    resize: int = 0
    flip: bool = False
    holdout: float = 0.0
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        check(self.channels in (1, 3), f"domain.data.channels must be 1 or 3, got {self.channels}")
        check(self.size >= 1, f"domain.data.size must be positive, got {self.size}")
        check(
            self.resize == 0 or self.resize >= self.size, "domain.data.resize must be at least domain.data.size, or 0"
        )
        check(0 <= self.holdout < 1, f"domain.data.holdout must be in [0, 1), got {self.holdout:g}")
        check(0 <= self.max_bad_share <= 1, f"domain.data.max_bad_share must be in [0, 1], got {self.max_bad_share:g}")
        builtin = self.source in ("digits", "photos")
        check(builtin or bool(self.path), f"domain.data.path is missing: source={self.source} needs it")
        check(not builtin or not self.path, f"domain.data.path: source={self.source} reads no files, leave it empty")
        check(
            self.source != "photos" or self.holdout == 0, "photos are cropped: domain.data.holdout must be 0 for them"
        )
        exact = self.source != "digits" or (self.size, self.channels) == (8, 1)
        check(exact, "digits are 8x8 and gray: domain.data.size must be 8 and domain.data.channels 1")


class ImageSource:
    """Random crops of pictures with their classes: the DataSource of the image domain."""

    def __init__(self, pictures: Pictures, size: int, flip: bool) -> None:
        self.pictures, self.size, self.flip = pictures, size, flip

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pictures)

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return crops "b c h w" in [-1, 1] and, with classes, ``cond['label']``."""
        corners = rng.uniform("crop", (2,)).tolist()
        mirrored = (rng.uniform("flip") < 0.5).tolist() if self.flip else [False] * len(rng.ids)
        crops, labels = [], []
        for index, corner, mirror in zip(epoch_indices(rng, len(self)), corners, mirrored, strict=True):
            picture, label = self.pictures.get(index)
            crop = crop_at(picture, self.size, corner)
            crops.append(crop.flip(-1) if mirror else crop)
            labels.append(label)
        cond = {"label": torch.tensor(labels, device=device)} if self.pictures.classes else {}
        return Batch(len(crops), cond, (torch.stack(crops) * 2 - 1).to(device), device)


@dataclass(frozen=True)
class ImageData:
    """A source to train on and the fixed reference its results are compared with.

    ``reference``: "n c h w" in [-1, 1]; ``labels``: "n", or None without classes.
    """

    source: ImageSource
    reference: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"] | None
    classes: tuple[str, ...]
    about: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of one sample."""
        _, c, h, w = self.reference.shape
        return c, h, w


def split(count: int, holdout: float) -> tuple[list[int], list[int]]:
    """Return the indices held out (in random order) and those trained on, the same for every run."""
    order = permutation(REFERENCE_SEED, 0, count).tolist()
    held = round(holdout * count)
    return order[:held], sorted(order[held:])


def load_data(config: DataConfig, most: int = 2000) -> ImageData:
    """Return the data of a config; ``most`` bounds the reference of photos and folders.

    Digits: the reference is all of them. Photos: ``most`` crops at fixed random places. Folder: central crops of at
    most ``most`` pictures, the held-out ones first.
    """
    check(
        config.source in ("digits", "photos", "folder"),
        f"domain.data.source '{config.source}' is for text-to-image teachers, and this one takes no text",
    )
    side = config.resize or config.size
    if config.source == "photos":
        source = ImageSource(photos(config.channels, side), config.size, config.flip)
        crops = source.batch(Rng.for_batch(REFERENCE_SEED, 0, most), "cpu")
        return _data(source, crops, f"{most} crops of the photos bundled with scikit-image")
    whole: Pictures = digits()
    if config.source == "folder":
        whole = Folder(Path(config.path).expanduser(), config.channels, side, config.max_bad_share)
    held, kept = split(len(whole), config.holdout)
    check(bool(kept), "domain.data.holdout leaves no picture to train on")
    source = ImageSource(Part(whole, kept), config.size, config.flip)
    chosen = held + kept if config.source == "digits" else permutation(REFERENCE_SEED, 0, len(whole)).tolist()[:most]
    rows = [whole.get(index) for index in chosen]
    x0 = torch.stack([crop_at(picture, config.size, (0.5, 0.5)) for picture, _ in rows]) * 2 - 1
    cond = {"label": torch.tensor([label for _, label in rows])} if whole.classes else {}
    about = f"{len(chosen)} of {len(whole)} {config.source} pictures, {len(held)} held out from training"
    return _data(source, Batch(len(rows), cond, x0), about)


def _data(source: ImageSource, reference: Batch, about: str) -> ImageData:
    x0 = reference.clean_samples("evaluation")
    return ImageData(source, x0, reference.cond.get("label"), source.pictures.classes, about)
