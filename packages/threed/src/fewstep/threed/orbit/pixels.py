"""Pixels and latents of orbits: nothing is lost between them, and a user's picture on the way in."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.errors import UserError, check

MOST_PIXELS = 2**26  # of a picture that is opened
EMPTY = 1e-3  # share of covered pixels below which there is nothing to see
FILLS = 0.7  # of the frame's side, by an object that is fitted into it


def to_latents(rgb: Float[Tensor, "*b 3 h w"], factor: int = 4) -> Float[Tensor, "*b c h w"]:
    """Return pixels in [0, 1] as blocks of channels in [-1, 1]."""
    return F.pixel_unshuffle(2 * rgb - 1, factor)


def to_pixels(latents: Float[Tensor, "*b c h w"], factor: int = 4) -> Float[Tensor, "*b 3 h w"]:
    """Return the pixels of latents: the inverse of :func:`to_latents`."""
    return (F.pixel_shuffle(latents, factor) + 1) / 2


def read_picture(path: Path) -> Float[Tensor, "4 h w"]:
    """Return a picture's colours and alpha in [0, 1]; UserError when it cannot be read or has no alpha."""
    from PIL import Image, UnidentifiedImageError

    check(path.is_file(), f"{path}: no such file; give a picture")
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            check(width * height <= MOST_PIXELS, f"{path}: {width}x{height} pixels are too many; make it smaller")
            has_alpha = "A" in opened.getbands() or "transparency" in opened.info
            check(has_alpha, f"{path}: no alpha; cut the object out and save it as a PNG with transparency")
            import numpy as np

            values = np.array(opened.convert("RGBA"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({str(error).splitlines()[0]})") from error
    return torch.from_numpy(values).movedim(-1, 0).float() / 255


def prepare(picture: Float[Tensor, "4 h w"], size: int, *, fit: bool = False, name: str = "image") -> Tensor:
    """Return what a network of ``size`` pixels sees: the picture over white, "3 size size".

    Its frame is kept, so it must be square; ``fit``: the object is cut out by its alpha and put into the middle, its
    longer side :data:`FILLS` of the frame's. Raises UserError for a picture without alpha, with nothing or no
    background in it, or smaller than the network's.
    """
    check(
        picture.ndim == 3 and picture.shape[0] == 4,
        f"{name}: {tuple(picture.shape)} is no picture of four channels, the last its alpha; save it with transparency",
    )
    check(bool(picture.isfinite().all()), f"{name}: has numbers that are not finite")
    alpha = picture[3]
    check(float(alpha.mean()) > EMPTY, f"{name}: nothing in it, its alpha is 0; cut the object out again")
    check(float(alpha.min()) < 0.5, f"{name}: no background, its alpha is 1 everywhere; cut the object out")
    over = torch.cat([picture[:3] * alpha + 1 - alpha, alpha[None]])
    if fit:
        over = _fitted(over)
    height, width = over.shape[1:]
    check(height == width, f"{name}: {width}x{height} pixels are not square; make it square, or ask for fit")
    check(height >= size, f"{name}: {width}x{height} pixels are too few, the network sees {size}x{size}")
    return F.interpolate(over[None, :3], size=(size, size), mode="area")[0]


def _fitted(over: Float[Tensor, "4 h w"]) -> Float[Tensor, "4 s s"]:
    rows, columns = ((over[3] > 0.5).any(axis).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows):  # everything is half transparent
        rows, columns = ((over[3] > 0).any(axis).nonzero()[:, 0] for axis in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    side = round(max(bottom - top, right - left) / FILLS)
    out = over.new_ones(4, side, side)
    out[3] = 0
    down, across = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    out[:, down : down + bottom - top, across : across + right - left] = over[:, top:bottom, left:right]
    return out
