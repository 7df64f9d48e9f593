"""Crops: where they lie, and pictures made large enough for them."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


def crop_at(
    picture: Float[Tensor, "c h w"], size: int | tuple[int, int], corner: Sequence[float]
) -> Float[Tensor, "c k l"]:
    """Return the crop of ``size`` (height, width) whose place is given by two fractions; (0.5, 0.5) is central."""
    sides = (size, size) if isinstance(size, int) else size
    top, left = (
        min(int(f * (whole - side + 1)), whole - side)
        for f, side, whole in zip(corner, sides, picture.shape[1:], strict=True)
    )
    return picture[:, top : top + sides[0], left : left + sides[1]]


def cover(picture: Float[Tensor, "c h w"], height: int, width: int) -> Float[Tensor, "c k l"]:
    """Return the picture resized, without aliasing, to the smallest size a crop of ``height`` x ``width`` fits in."""
    from kornia.geometry.transform import resize

    scale = max(height / picture.shape[1], width / picture.shape[2])
    sides = (max(height, round(scale * picture.shape[1])), max(width, round(scale * picture.shape[2])))
    if sides == tuple(picture.shape[1:]):
        return picture
    made: Tensor = resize(picture[None], sides, interpolation="bilinear", antialias=True)[0]
    return made.clamp(0, 1)
