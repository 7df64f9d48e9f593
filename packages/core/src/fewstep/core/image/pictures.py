"""Collections of pictures: in memory, or files of a folder read when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.damage import BadFiles
from fewstep.core.data.reading import UNREADABLE, image_files, read_image, shrink
from fewstep.core.errors import TrainingError

CACHE_BYTES = 512 * 2**20


@runtime_checkable
class Pictures(Protocol):
    """Pictures by index, each at least as large as the crops taken from it; ``classes`` is empty without labels."""

    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of pictures."""

    def get(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        """Return a picture in [0, 1] and its class (0 without labels)."""


class InMemory:
    """Pictures that are all there, with one class index each."""

    def __init__(self, images: Sequence[Tensor], labels: Sequence[int], classes: tuple[str, ...]) -> None:
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    def get(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        """Return a picture and its class."""
        return self.images[index], self.labels[index]


class Folder:
    """Image files under a folder; a file's class is its first subfolder, when every file lies in one.

    ``side``: pixels of the shorter side after resizing. A file that cannot be read is logged once, counted, and the
    next readable one takes its place; above ``max_bad_share`` of all files TrainingError is raised. Raises UserError
    for a folder that is missing, unreadable or empty.
    """

    def __init__(self, root: Path, channels: int, side: int, max_bad_share: float) -> None:
        self.root, self.channels, self.side = root, channels, side
        self.files = image_files(root)
        owners = [file.relative_to(root).parts[0] for file in self.files if file.parent != root]
        labelled = len(owners) == len(self.files)
        self.classes = tuple(sorted(set(owners))) if labelled else ()
        number = {name: index for index, name in enumerate(self.classes)}
        self.labels = [number[owner] for owner in owners] if labelled else [0] * len(self.files)
        self.bad = BadFiles(str(root), len(self.files), max_bad_share, "domain.data.max_bad_share")
        self._cache: dict[int, Tensor] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        """Return the number of image files, damaged ones included."""
        return len(self.files)

    def get(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        """Return a picture and its class; a damaged file's place is taken by the next readable one."""
        for step in range(len(self.files)):
            at = (index + step) % len(self.files)
            picture = self._read(at)
            if picture is not None:
                return picture, self.labels[at]
        raise TrainingError(f"{self.root}: none of its {len(self.files)} image files can be read")

    def _read(self, index: int) -> Tensor | None:
        if index in self.bad.indices:
            return None
        if index in self._cache:
            return self._cache[index]
        try:
            picture = shrink(read_image(self.files[index], self.channels), self.side)
        except UNREADABLE as error:
            self.bad.add(index, str(self.files[index]), error)
            return None
        size = picture.numel() * picture.element_size()
        if self._cached_bytes + size <= CACHE_BYTES:
            self._cache[index] = picture
            self._cached_bytes += size
        return picture


class Part:
    """Some of the pictures of a collection, by index."""

    def __init__(self, whole: Pictures, indices: Sequence[int]) -> None:
        self.whole, self.indices, self.classes = whole, indices, whole.classes

    def __len__(self) -> int:
        """Return the number of pictures in this part."""
        return len(self.indices)

    def get(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        """Return a picture and its class."""
        return self.whole.get(self.indices[index])


def digits() -> InMemory:
    """Return scikit-learn's 1797 handwritten digits, 8x8 gray, values 0..16 scaled to [0, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    return InMemory(list(images), [int(y) for y in data.target], tuple(str(digit) for digit in range(10)))


# pictures that come inside the scikit-image wheel: nothing is downloaded
PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "moon",
    "retina",
    "rocket",
)


def photos(channels: int, side: int) -> InMemory:
    """Return scikit-image's bundled photos, the shorter side of ``side`` pixels; every photo is a class."""
    import skimage.data

    from fewstep.core.data.reading import fit_channels

    images = []
    for name in PHOTOS:
        array = torch.from_numpy(getattr(skimage.data, name)()).float() / 255
        picture = array[None] if array.ndim == 2 else array.permute(2, 0, 1)
        images.append(shrink(fit_channels(picture, channels), side))
    return InMemory(images, list(range(len(PHOTOS))), PHOTOS)
