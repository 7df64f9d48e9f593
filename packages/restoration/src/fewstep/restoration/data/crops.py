"""Crops of pictures and pairs: random ones that show something, fixed ones to evaluate on, mirrored and turned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.rng import Rng
from fewstep.restoration.data.examples import Example, Pixels, to_float
from fewstep.restoration.data.settings import DataConfig
from fewstep.restoration.degradations.noise import LUMA
from fewstep.restoration.degradations.resize import imresize

CENTRE = (0.5, 0.5)


def _mirrored(length: int, out: int) -> Tensor:
    """Positions of a side continued to ``out`` by mirroring, edge pixels repeated, as often as it takes."""
    index = torch.arange(out) % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def extended(picture: Pixels, height: int, width: int) -> Pixels:
    """Return a picture of at least this size: what is missing below and to the right is its mirror image.

    Not enlarged, which would teach that good pictures are blurred. Edge pixels are repeated, so that both pictures of a
    pair stay aligned.
    """
    h, w = int(picture.shape[1]), int(picture.shape[2])
    if h < height:
        picture = picture.index_select(1, _mirrored(h, height))
    if w < width:
        picture = picture.index_select(2, _mirrored(w, width))
    return picture


def gradient(crop: Float[Tensor, "3 h w"]) -> float:
    """Return how much the luma changes from a pixel to the next, on average over both directions; 0 for one pixel."""
    luma = torch.einsum("c,chw->hw", crop.new_tensor(LUMA), crop)
    steps = [luma.diff(dim=axis).abs().mean() for axis in (0, 1) if luma.shape[axis] > 1]
    return float(torch.stack(steps).mean()) if steps else 0.0


def crop_example(example: Example, size: int, corner: Sequence[float], scale: int = 1) -> Example:
    """Return the ``size`` x ``size`` crop, float in [0, 1], whose place is given by two fractions; pairs stay aligned.

    ``scale``: of a pair, which ``size`` is a multiple of; 1 for a single picture. Pictures too small are mirrored.
    """
    hr = extended(example.hr, size, size)
    small = size // scale
    top, left = (
        min(int(f * (whole // scale - small + 1)), whole // scale - small)
        for f, whole in zip(corner, hr.shape[1:], strict=True)
    )
    large = to_float(hr[:, scale * top : scale * top + size, scale * left : scale * left + size])
    if example.lq is None:
        return example._replace(hr=large)
    lq = extended(example.lq, small, small)
    return example._replace(hr=large, lq=to_float(lq[:, top : top + small, left : left + small]))


def random_crop(example: Example, config: DataConfig, rng: Rng, scale: int = 1) -> Example:
    """Return a random crop, mirrored, turned and recoloured as ``config`` allows; ``rng``: of this one sample.

    Of the places drawn, the first whose crop is not flat is taken, or the least flat one. With ``config.shrink`` it is
    the crop of a picture made smaller by up to that factor.
    """
    first, *others = rng.uniform("corner", (config.tries, 2))[0].tolist()
    size = _shrunk_side(example, config, rng)
    best = crop_example(example, size, first, scale)
    most = gradient(best.hr) if others else 1.0
    for corner in others:
        if most >= config.min_gradient:
            break
        crop = crop_example(example, size, corner, scale)
        if (found := gradient(crop.hr)) > most:
            best, most = crop, found
    if size > config.crop:  # the crop alone is made smaller: the same as a crop of all of it, but for its border
        smaller = imresize(best.hr[None], config.crop / size)[0, :, : config.crop, : config.crop]
        best = best._replace(hr=smaller.clamp(0, 1))
    mirror = config.flip and float(rng.uniform("flip")[0]) < 0.5
    turns = int(rng.integers("turns", 4)[0]) if config.rotate else 0
    lq = None if best.lq is None else moved(best.lq, mirror, turns)
    best = best._replace(hr=moved(best.hr, mirror, turns), lq=lq)
    return jittered(best, config.jitter, rng) if config.jitter else best


def _shrunk_side(example: Example, config: DataConfig, rng: Rng) -> int:
    """Return the side of what is made smaller to a crop; no picture is mirrored for it, and pairs keep their size."""
    if config.shrink == 1 or example.lq is not None:
        return config.crop
    most = min(config.shrink, max(1.0, min(example.hr.shape[1:]) / config.crop))
    factor: float = most ** float(rng.uniform("shrink")[0])
    return round(config.crop * factor)


def moved(x: Float[Tensor, "3 h w"], mirror: bool, turns: int) -> Float[Tensor, "3 k l"]:
    """Return a picture mirrored from left to right, then turned by quarters."""
    x = x.flip(2) if mirror else x
    return torch.rot90(x, turns, (1, 2)).contiguous()


def jittered(example: Example, strength: float, rng: Rng) -> Example:
    """Return a picture, or a pair, with its channels in a random order and its contrast lowered by up to ``strength``.

    The contrast is taken about a level drawn for each channel, which tints; values in [0, 1] stay there. It is one
    linear map of every pixel, so that what a pair's low-quality picture was made with still holds if that was linear.
    """
    order = rng.uniform("jitter/order", (3,))[0].argsort()
    lost = strength * float(rng.uniform("jitter/contrast")[0])
    level = rng.uniform("jitter/level", (3, 1, 1))[0]

    def recoloured(x: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        return torch.lerp(x[order], level.to(x), lost)

    lq = None if example.lq is None else recoloured(to_float(example.lq))
    return example._replace(hr=recoloured(to_float(example.hr)), lq=lq)
