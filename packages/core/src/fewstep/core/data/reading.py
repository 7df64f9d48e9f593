"""Image files as tensors, whatever their mode: alpha, palettes, 16 bits, gray, CMYK, camera orientation."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from fewstep.core.errors import UserError, check

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2"})
MAX_PIXELS = 100_000_000

# what Pillow's decoders raise for damaged files
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(source: Path | io.BytesIO, channels: int) -> Float[Tensor, "c h w"]:
    """Return a picture in [0, 1] with 1 or 3 channels, upright.

    Alpha is composited on white, 16 bits keep their precision, CMYK and palettes become RGB, the first frame of an
    animation is taken. Raises ValueError or OSError (:data:`UNREADABLE`) for damaged, unknown or oversized files.
    """
    with Image.open(source) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{opened.width}x{opened.height} pixels are more than {MAX_PIXELS}")
        opened.load()
        picture = ImageOps.exif_transpose(opened)
    return fit_channels(_values(picture), channels)


def image_files(root: Path) -> list[Path]:
    """Return the image files anywhere under a folder, sorted; UserError when it is missing, unreadable or empty."""
    check(root.exists(), f"no folder {root}: give the path of a folder of images")
    check(root.is_dir(), f"{root} is a file: give the path of a folder of images")
    try:
        files = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    except PermissionError as error:
        raise UserError(f"{root}: {error.strerror}, change its permissions or give another folder") from error
    check(bool(files), f"{root} holds no images; read are {', '.join(sorted(SUFFIXES))}")
    return files


def _values(picture: Any) -> Tensor:
    """Return "c h w" in [0, 1], c = 1 for gray modes and 3 otherwise."""
    if picture.mode.startswith("I"):  # 16-bit gray, which some decoders widen to 32 bits
        return _scaled(np.asarray(picture).astype(np.float32) / np.float32(65535))
    if picture.mode == "F":
        return _scaled(np.array(picture, dtype=np.float32))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture).convert("RGB")
    elif picture.mode in ("1", "L"):
        return torch.from_numpy(np.array(picture.convert("L")))[None].float() / 255
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255


def _scaled(values: npt.NDArray[np.float32]) -> Tensor:
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError("values outside of 16 bits, or floating-point values outside of [0, 1]")
    return torch.from_numpy(values)[None]


def fit_channels(x: Float[Tensor, "c h w"], channels: int) -> Float[Tensor, "d h w"]:
    """Return the picture as gray (luma, ITU-R BT.601) or as three channels."""
    from kornia.color import rgb_to_grayscale

    if len(x) == channels:
        return x
    if channels == 3:
        return x.expand(3, -1, -1)
    gray: Tensor = rgb_to_grayscale(x)
    return gray


def shrink(x: Float[Tensor, "c h w"], side: int) -> Float[Tensor, "c k l"]:
    """Return the picture resized so that its shorter side has ``side`` pixels, without aliasing."""
    from kornia.geometry.transform import resize

    if min(x.shape[1:]) == side:
        return x
    small: Tensor = resize(x[None], side, interpolation="bilinear", side="short", antialias=True)[0]
    return small.clamp(0, 1)
