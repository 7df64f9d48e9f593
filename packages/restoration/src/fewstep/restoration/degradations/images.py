"""What every stage asks of its images: float, "b c h w", in [0, 1]."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check


def check_images(images: Tensor, *, colour: bool = False) -> None:
    """Raise UserError unless ``images`` is a float batch "b c h w" without an empty side, RGB if ``colour``."""
    shape = tuple(images.shape)
    check(images.dim() == 4, f"degradation: images must have the shape (batch, channels, height, width), got {shape}")
    check(images.is_floating_point(), f"degradation: images must be float in [0, 1], got {images.dtype}")
    check(min(shape) > 0, f"degradation: an image needs at least one pixel, got the shape {shape}")
    check(not colour or shape[1] == 3, f"degradation: images must have 3 channels (RGB), got {shape[1]}")


def to_8_bit(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return ``images`` clipped to [0, 1] and rounded to multiples of 1/255."""
    return (images.clamp(0, 1) * 255).round() / 255


def mod_crop(images: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b c h w"]:
    """Return ``images`` cropped at the bottom and right to multiples of ``scale``; UserError where nothing is left."""
    check_images(images)
    check(scale >= 1, f"scale: must be at least 1, got {scale}")
    height, width = (side // scale * scale for side in images.shape[-2:])
    check(min(height, width) > 0, f"degradation: an image of {tuple(images.shape[-2:])} is smaller than scale {scale}")
    return images[..., :height, :width]
