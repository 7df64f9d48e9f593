"""Photos that come with scikit-image and scikit-learn, split once: those measured on are never trained on."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

HELD_OUT = ("astronaut", "coffee", "chelsea")
TRAINING = (
    "rocket", "motorcycle_left", "motorcycle_right", "camera", "brick", "grass", "gravel", "coins", "hubble_deep_field",
    "immunohistochemistry", "retina", "moon", "page", "china", "flower",
)  # fmt: skip

Photo = tuple[str, Float[Tensor, "3 h w"]]


def training() -> list[Photo]:
    """Return names and photos "3 h w" in [0, 1] to train on."""
    return [(name, photo(name)) for name in TRAINING]


def held_out() -> list[Photo]:
    """Return names and photos "3 h w" in [0, 1] to measure with."""
    return [(name, photo(name)) for name in HELD_OUT]


@cache
def photo(name: str) -> Float[Tensor, "3 h w"]:
    """Return one of the photos in [0, 1]; gray ones have three equal channels. Not to be written to."""
    picture = torch.from_numpy(np.array(_values(name))).float() / 255
    return picture[None].repeat(3, 1, 1) if picture.ndim == 2 else picture.permute(2, 0, 1)[:3].contiguous()


def _values(name: str) -> np.ndarray:
    import skimage.data
    from sklearn.datasets import load_sample_image

    if name in ("china", "flower"):
        return np.asarray(load_sample_image(f"{name}.jpg"))
    if name.startswith("motorcycle"):
        left, right, _ = skimage.data.stereo_motorcycle()
        return np.asarray(left if name.endswith("left") else right)
    return np.asarray(getattr(skimage.data, name)())
