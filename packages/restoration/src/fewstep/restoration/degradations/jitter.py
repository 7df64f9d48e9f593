"""Colours changed as GFPGAN changes those of its bad pictures (arXiv 2101.04061, section 4.1): two kinds of jitter."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.rng import Rng
from fewstep.restoration.degradations.config import JitterConfig
from fewstep.restoration.degradations.draws import chance, draw
from fewstep.restoration.degradations.images import check_images
from fewstep.restoration.degradations.noise import LUMA


def luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return the luma (BT.601)."""
    return torch.einsum("c,bchw->bhw", images.new_tensor(LUMA), images)[:, None]


def _towards(images: Tensor, other: Tensor, factor: float) -> Tensor:
    return (other + factor * (images - other)).clamp(0, 1)


def adjust(images: Float[Tensor, "b 3 h w"], kind: str, amount: float) -> Float[Tensor, "b 3 h w"]:
    """Return images with one property changed, in [0, 1].

    Brightness is a factor; contrast and saturation a factor of what differs from the mean luma and from gray, 1 changes
    nothing; hue a part of a full turn.
    """
    if kind == "hue":
        from kornia.enhance import adjust_hue

        turned: Tensor = adjust_hue(images, 2 * math.pi * amount)
        return turned.clamp(0, 1)
    if kind == "brightness":
        return (images * amount).clamp(0, 1)
    gray = luma(images)
    return _towards(images, gray.mean((-2, -1), keepdim=True) if kind == "contrast" else gray, amount)


def jitter(images: Float[Tensor, "1 3 h w"], config: JitterConfig, rng: Rng) -> Float[Tensor, "1 3 h w"]:
    """Return one image, in [0, 1], with its channels shifted and its colours adjusted in an order that is drawn."""
    check_images(images, colour=True)
    if bool(chance(rng, "shifted", config.shift_probability)):
        shift = (2 * rng.uniform("shift", (3,)).cpu() - 1) * config.shift / 255
        images = (images + shift.to(images)[:, :, None, None]).clamp(0, 1)
    if bool(chance(rng, "adjusted", config.adjust_probability)):
        bounds = {
            "brightness": config.brightness,
            "contrast": config.contrast,
            "saturation": config.saturation,
            "hue": config.hue,
        }
        order = rng.uniform("order", (len(bounds),)).cpu()[0].argsort().tolist()
        for kind in (list(bounds)[place] for place in order):
            images = adjust(images, kind, float(draw(rng, kind, bounds[kind])))
    return images
