"""Image files read as they are: mode, depth, alpha, EXIF and colour profile kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fewstep.core.data.reading import MAX_PIXELS, UNREADABLE
from fewstep.core.errors import UserError, check
from fewstep.restoration.pictures.deep import deep_type, read_deep, read_deep_tiff, tiff_order
from fewstep.restoration.pictures.picture import Picture

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
# a file may claim so many pixels at any size, and so many more for each of its bytes: real pictures stay far below
FREE_PIXELS = 2**24
PIXELS_PER_BYTE = 4096
ORIENTATION = 0x0112  # EXIF 2.32, table 4
IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE = 0x0100, 0x0101, 0x0102  # TIFF 6.0, section 8
GRAYS = ("1", "L", "LA", "La")

# what Pillow's parsers raise besides on damaged headers
DAMAGED = (*UNREADABLE, KeyError, IndexError, TypeError, OverflowError, MemoryError)


def read_picture(path: Path) -> Picture:
    """Return the picture of a file, upright; what it is, is told by its content and never by its name.

    Palettes become RGB or RGBA, black and white becomes gray, the first frame of an animation is taken. CMYK is turned
    into RGB without its profile, which is dropped. Raises UserError for files that are missing, empty, truncated, not
    images, larger than :data:`MAX_PIXELS` or far larger than their bytes can fill, and for unusual TIFF of 16 bits.
    """
    with _opened(path) as opened:
        return _picture(path, opened)


@dataclass(frozen=True)
class Header:
    """What a file says of its picture before it is unpacked: mode and bits as of `Picture`, height and width."""

    mode: str
    bits: int
    size: tuple[int, int]


def read_header(path: Path) -> Header:
    """Return what :func:`read_picture` will find, without unpacking pixels; raises what it raises for bad headers."""
    with _opened(path) as opened:
        deep, wide = deep_type(path), opened.mode[0] in "IF" or _deep_tiff(opened)
        gray = deep in (0, 4) if deep is not None else opened.mode[0] in "IF" or opened.mode in GRAYS
        mode = "CMYK" if opened.mode == "CMYK" else ("L" if gray else "RGB") + "A" * opened.has_transparency_data
        size = opened.height, opened.width
        if opened.format == "TIFF":  # some Pillows give its size as it is shown, others as it lies in the file
            size = opened.tag_v2[IMAGE_LENGTH], opened.tag_v2[IMAGE_WIDTH]
        turned = _exif(opened)[0] in (5, 6, 7, 8)
        return Header(mode, 8 if deep is None and not wide else 16, size[::-1] if turned else size)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        size = path.stat().st_size
        check(path.is_file(), f"{path} is a folder: give an image file")
        check(size > 0, f"{path} is empty: give a whole image file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes are checked here, and what cannot be read raises
            with Image.open(path, formats=FORMATS) as opened:
                _check_size(path, opened, size)
                yield opened
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image; read are {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:  # Pillow's own bound, before a size is known here
        raise UserError(f"{path} claims more pixels than the {MAX_PIXELS} that are read: cut it into parts") from error
    except DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({reason or type(error).__name__}): give a whole image file") from error


def _check_size(path: Path, opened: Any, size: int) -> None:
    pixels = opened.width * opened.height
    claims = f"{path} claims {opened.width}x{opened.height} pixels"
    check(pixels <= MAX_PIXELS, f"{claims}, more than {MAX_PIXELS}: cut it into parts")
    check(pixels <= FREE_PIXELS + PIXELS_PER_BYTE * size, f"{claims} in {size} bytes: give a whole image file")
    if _deep_tiff(opened):
        layout = f"{path} is a TIFF of {max(opened.tag_v2[BITS_PER_SAMPLE])} bits in an unusual layout: save it as"
        check(bool(tiff_order(opened)), f"{layout} 16-bit PNG, or as TIFF of interleaved RGB or RGBA")


def _deep_tiff(opened: Any) -> bool:
    """Return whether a file is a TIFF with colours of more than 8 bits, which Pillow would cut to 8."""
    depths = opened.tag_v2.get(BITS_PER_SAMPLE, (8,)) if opened.format == "TIFF" else (8,)
    return len(depths) > 1 and max(depths) > 8


def _picture(path: Path, opened: Any) -> Picture:
    values, bits = _values(path, opened)
    orientation, exif = _exif(opened)
    x = upright(torch.from_numpy(values).permute(2, 0, 1), orientation).contiguous()
    has_alpha = len(x) in (2, 4)
    mode = "CMYK" if opened.mode == "CMYK" else ("L" if len(x) < 3 else "RGB") + "A" * has_alpha
    return Picture(
        colours=x[:-1] if has_alpha else x,
        mode=mode,
        bits=bits,
        alpha=x[-1:] if has_alpha else None,
        exif=exif,
        icc=None if mode == "CMYK" else opened.info.get("icc_profile"),
    )


def _values(path: Path, opened: Any) -> tuple[npt.NDArray[np.float32], int]:
    """Return "h w c" in [0, 1] and the bits of a channel."""
    deep = deep_type(path)
    if deep in (2, 4, 6):
        return _keyed(read_deep(path, deep), opened.info.get("transparency")), 16
    if _deep_tiff(opened):
        return _keyed(read_deep_tiff(path, opened), None), 16
    opened.load()
    if opened.mode.startswith("I"):  # 16-bit gray, which some decoders widen to 32 bits
        steps = np.asarray(opened)
        if steps.min() < 0 or steps.max() > 65535:
            raise ValueError("values outside of 16 bits")
        return _keyed(steps[..., None].astype(np.uint16), opened.info.get("transparency")), 16
    if opened.mode == "F":
        levels = np.array(opened, dtype=np.float32)[..., None]
        if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= 1):
            raise ValueError("floating-point values outside of [0, 1]")
        return levels, 16
    gray = opened.mode in GRAYS
    alpha = "A" if opened.has_transparency_data else ""
    values: npt.NDArray[np.float32] = np.array(opened.convert(("L" if gray else "RGB") + alpha), dtype=np.float32)
    values /= 255
    return np.atleast_3d(values), 8


def _keyed(values: npt.NDArray[np.uint16], key: Any) -> npt.NDArray[np.float32]:
    """Return the values in [0, 1], with alpha when one colour of them stands for transparency."""
    x: npt.NDArray[np.float32] = values.astype(np.float32) / np.float32(65535)
    if key is None or values.shape[-1] in (2, 4):
        return x
    alpha = (values != np.asarray(key)).any(axis=-1, keepdims=True)
    return np.concatenate([x, alpha.astype(np.float32)], axis=-1)


def _exif(opened: Any) -> tuple[int, bytes | None]:
    """Return the orientation and the rest of the EXIF data; damaged EXIF data does not make a picture unreadable."""
    try:
        exif = opened.getexif()
        orientation = exif.pop(ORIENTATION, 1)
        # the tags of a TIFF describe its own layout
        kept = exif.tobytes() if "exif" in opened.info and opened.format != "TIFF" and len(exif) else None
    except DAMAGED:
        return 1, None
    return orientation, kept


def upright(x: Float[Tensor, "c h w"], orientation: int) -> Float[Tensor, "c k l"]:
    """Return the picture turned and mirrored as its EXIF orientation (1 to 8) asks; other values change nothing."""
    if orientation in (5, 6, 7, 8):
        x = x.transpose(1, 2)
    if orientation in (2, 3, 6, 7):
        x = x.flip(2)
    if orientation in (3, 4, 7, 8):
        x = x.flip(1)
    return x
