"""Pictures written whole or not at all, in the mode and depth they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import UserError, check
from fewstep.restoration.pictures.deep import write_deep
from fewstep.restoration.pictures.picture import Picture

# by suffix: Pillow's format, the modes it holds at 8 bits, and how it is written
FORMATS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    ".png": ("PNG", ("L", "LA", "RGB", "RGBA"), {}),
    ".jpg": ("JPEG", ("L", "RGB", "CMYK"), {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", ("L", "RGB", "CMYK"), {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", ("L", "LA", "RGB", "RGBA"), {"quality": 95}),
    ".tif": ("TIFF", ("L", "LA", "RGB", "RGBA", "CMYK"), {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", ("L", "LA", "RGB", "RGBA", "CMYK"), {"compression": "tiff_deflate"}),
}


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture in the format that the suffix names, values clamped to [0, 1] and rounded.

    16 bits are written as PNG, and as TIFF when gray. Raises UserError for a suffix that is unknown or whose format
    holds no such picture, for values that are not finite, and for places that cannot be written to.
    """
    suffix = path.suffix.lower()
    check(suffix in FORMATS, f"{path}: no format is called '{suffix}', valid: {', '.join(FORMATS)}")
    name, modes, settings = FORMATS[suffix]
    deep = name == "PNG" or (name == "TIFF" and picture.mode == "L")
    held = picture.mode in modes and (picture.bits == 8 or deep)
    check(held, f"{path}: {name} does not hold {picture.mode} of {picture.bits} bits, {_advice(picture)}")
    values = _values(path, picture)
    metadata: dict[str, bytes] = {}
    if picture.exif and name != "TIFF":
        metadata["exif"] = picture.exif
    if picture.icc:
        metadata["icc_profile"] = picture.icc

    def write(aside: Path) -> None:
        if picture.bits == 16 and name == "PNG":
            write_deep(aside, values, picture.exif, picture.icc)
            return
        image = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
        if picture.bits == 8 and image.mode != picture.mode:
            image = image.convert(picture.mode)
        image.save(aside, format=name, **settings, **metadata)

    try:
        write_whole(path, write)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path} cannot be written ({reason}): give another place or format") from error


def _advice(picture: Picture) -> str:
    return "write .tif or .jpg" if picture.mode == "CMYK" else "write .png"


def _values(path: Path, picture: Picture) -> npt.NDArray[Any]:
    """Return "h w c" as unsigned integers of the depth of the picture."""
    parts = [picture.colours] if picture.alpha is None else [picture.colours, picture.alpha]
    x = torch.cat([part.detach().cpu().float() for part in parts])
    check(bool(x.isfinite().all()), f"{path}: the picture to write holds values that are not finite, try float32")
    most = 2**picture.bits - 1
    steps = (x.clamp(0, 1) * most).round().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(steps.astype(np.uint8 if picture.bits == 8 else np.uint16))
