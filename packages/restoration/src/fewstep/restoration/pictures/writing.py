"""Pictures written whole or not at all, in the mode and depth they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import UserError, check
from fewstep.restoration.pictures.deep import write_deep
from fewstep.restoration.pictures.picture import Picture, Raster, quantized

# by suffix: Pillow's format, the modes it holds at 8 bits, and how it is written
FORMATS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    ".png": ("PNG", ("L", "LA", "RGB", "RGBA"), {}),
    ".jpg": ("JPEG", ("L", "RGB", "CMYK"), {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", ("L", "RGB", "CMYK"), {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", ("L", "LA", "RGB", "RGBA"), {"quality": 95}),
    ".tif": ("TIFF", ("L", "LA", "RGB", "RGBA", "CMYK"), {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", ("L", "LA", "RGB", "RGBA", "CMYK"), {"compression": "tiff_deflate"}),
}


MOST_PIXELS = {"JPEG": 65500, "WEBP": 16383}  # a side, of libjpeg and of the WebP container


def write_picture(path: Path, picture: Picture | Raster) -> None:
    """Write a picture in the format that the suffix names, values clamped to [0, 1] and rounded.

    16 bits are written as PNG, and as TIFF when gray. Raises UserError for a suffix that is unknown or whose format
    holds no such picture, for values that are not finite, and for places that cannot be written to.
    """
    check_holds(path, picture.mode, picture.bits, picture.size)
    raster = picture if isinstance(picture, Raster) else _raster(path, picture)
    name, _, settings = FORMATS[path.suffix.lower()]
    metadata: dict[str, bytes] = {}
    if raster.exif and name != "TIFF":
        metadata["exif"] = raster.exif
    if raster.icc:
        metadata["icc_profile"] = raster.icc

    def write(aside: Path) -> None:
        values = raster.values
        if raster.bits == 16 and name == "PNG":
            write_deep(aside, values, raster.exif, raster.icc)
            return
        image = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
        if raster.bits == 8 and image.mode != raster.mode:
            image = image.convert(raster.mode)
        image.save(aside, format=name, **settings, **metadata)

    try:
        write_whole(path, write)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path} cannot be written ({reason}): give another place or format") from error


def holds(suffix: str, mode: str, bits: int) -> bool:
    """Return whether files of a suffix hold pictures of a mode and depth; False for an unknown suffix."""
    if suffix.lower() not in FORMATS:
        return False
    name, modes, _ = FORMATS[suffix.lower()]
    deep = name == "PNG" or (name == "TIFF" and mode == "L")
    return mode in modes and (bits == 8 or deep)


def check_holds(path: Path, mode: str, bits: int, size: tuple[int, int]) -> None:
    """Raise UserError when the format that the suffix names is unknown or holds no picture of mode, depth and size."""
    suffix = path.suffix.lower()
    check(suffix in FORMATS, f"{path}: no format is called '{suffix}', valid: {', '.join(FORMATS)}")
    name = FORMATS[suffix][0]
    advice = "write .tif or .jpg" if mode == "CMYK" else "write .png"
    check(holds(suffix, mode, bits), f"{path}: {name} does not hold {mode} of {bits} bits, {advice}")
    most = MOST_PIXELS.get(name, 2**31 - 1)
    check(max(size) <= most, f"{path}: {name} holds sides of at most {most} pixels, got {max(size)}: {advice}")


def _raster(path: Path, picture: Picture) -> Raster:
    parts = [picture.colours] if picture.alpha is None else [picture.colours, picture.alpha]
    x = torch.cat([part.detach().cpu().float() for part in parts])
    check(bool(x.isfinite().all()), f"{path}: the picture to write holds values that are not finite, try float32")
    return Raster(values=quantized(x, picture.bits), mode=picture.mode, exif=picture.exif, icc=picture.icc)
