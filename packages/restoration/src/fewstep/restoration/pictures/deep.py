"""PNG and TIFF with 16 bits per channel, which Pillow decodes to 8 bits unless they are gray, and writes only gray."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: gray, gray and alpha, RGB, RGBA (PNG specification, 11.2.1)
GRAY_ALPHA, RGBA = 4, 6
PAETH = 4
PLANAR_CONFIGURATION = 284  # TIFF 6.0, section 8
BAND_BYTES = 2**22


def deep_type(path: Path) -> int | None:
    """Return the colour type of a PNG file with 16 bits per channel, None for every other file."""
    with open(path, "rb") as file:
        head = file.read(26)
    is_deep = len(head) == 26 and head[:8] == SIGNATURE and head[12:16] == b"IHDR" and head[24] == 16
    return head[25] if is_deep else None


def read_deep(path: Path, colour_type: int) -> npt.NDArray[np.uint16]:
    """Return "h w c" of a 16-bit PNG of colour type 2, 4 or 6; raises what Pillow raises for damaged files."""
    if colour_type == GRAY_ALPHA:
        # the scan lines of gray and alpha of 16 bits are, byte for byte, those of RGBA of 8 bits
        data = bytearray(path.read_bytes())
        data[24:26] = bytes((8, RGBA))
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            pairs = np.ascontiguousarray(opened)
    else:
        with Image.open(path, formats=["PNG"]) as opened:
            pairs = _pairs(path, opened, ";16B", ";16L")
    return pairs.view(">u2").astype(np.uint16)


def tiff_order(opened: Any) -> str:
    """Return the order of bytes, N (native), L or B, in which Pillow reads a TIFF's colours of 16 bits a channel.

    It is empty for layouts that Pillow gives no second byte of: channels that lie apart, colours multiplied with alpha,
    CMYK.
    """
    if opened.tag_v2.get(PLANAR_CONFIGURATION, 1) != 1:
        return ""
    orders = {tile[3][0].partition(";16")[::2] for tile in map(tuple, opened.tile)}
    (name, order), *others = orders or {("", "")}
    return str(order) if name in ("RGB", "RGBA") and order in ("N", "L", "B") and not others else ""


def read_deep_tiff(path: Path, opened: Any) -> npt.NDArray[np.uint16]:
    """Return "h w c" of a TIFF that has a :func:`tiff_order`; raises what Pillow raises for damaged files."""
    order = tiff_order(opened)
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}[order]
    return _pairs(path, opened, f";16{order}", f";16{other}").view(">u2").astype(np.uint16)


def _pairs(path: Path, opened: Any, order: str, other: str) -> npt.NDArray[np.uint8]:
    """Return the two bytes of every value: Pillow keeps the high one, so the other order gives the low one."""
    high = _bytes(opened, order)
    with Image.open(path, formats=[opened.format]) as again:
        low = _bytes(again, other)
    return np.stack([high, low], axis=-1).reshape(*high.shape[:2], -1)


def _bytes(opened: Any, order: str) -> npt.NDArray[np.uint8]:
    """Return one of the two bytes of every value, that which comes first in the order asked for."""

    def ordered(how: Any) -> Any:
        return (ordered(how[0]), *how[1:]) if isinstance(how, tuple) else f"{how.partition(';')[0]}{order}"

    # named tuples, or plain ones before Pillow 11
    opened.tile = [getattr(tile, "_make", tuple)((*tile[:3], ordered(tile[3]))) for tile in opened.tile]
    opened.load()
    return np.asarray(opened)


def write_deep(path: Path, values: npt.NDArray[np.uint16], exif: bytes | None, icc: bytes | None) -> None:
    """Write "h w c" as a 16-bit PNG with 1 to 4 channels."""
    height, width, channels = values.shape
    with open(path, "wb") as file:
        file.write(SIGNATURE)
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0))
        if icc:
            _chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
        if exif:
            _chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
        packer = zlib.compressobj(6)
        for rows in _filtered(values):
            if packed := packer.compress(rows):
                _chunk(file, b"IDAT", packed)
        _chunk(file, b"IDAT", packer.flush())
        _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, name: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)))


def _filtered(values: npt.NDArray[np.uint16]) -> Iterator[bytes]:
    """Yield scan lines in bands, each line behind its filter type, all filtered with Paeth (PNG specification, 9.4)."""
    height, width, channels = values.shape
    step = 2 * channels
    above = np.zeros((1, step + width * step), dtype=np.uint8)
    band = max(1, BAND_BYTES // (width * step))
    for top in range(0, height, band):
        rows = values[top : top + band].astype(">u2").reshape(-1, width * channels).view(np.uint8)
        padded = np.concatenate([above, np.pad(rows, ((0, 0), (step, 0)))])
        a, b, c = (x.astype(np.int16) for x in (padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step]))
        pa, pb, pc = abs(b - c), abs(a - c), abs(a + b - 2 * c)
        guess = np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))
        lines = (rows - guess).astype(np.uint8)
        yield np.pad(lines, ((0, 0), (1, 0)), constant_values=PAETH).tobytes()
        above = padded[-1:]
