"""PNG with 16 bits per channel, which Pillow decodes to 8 bits unless it is gray, and writes only gray."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: gray, gray and alpha, RGB, RGBA (PNG specification, 11.2.1)
GRAY_ALPHA, RGBA = 4, 6
PAETH = 4
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
        high, low = _bytes(path, ";16B"), _bytes(path, ";16L")
        pairs = np.stack([high, low], axis=-1).reshape(*high.shape[:2], -1)
    return pairs.view(">u2").astype(np.uint16)


def _bytes(path: Path, order: str) -> npt.NDArray[np.uint8]:
    """Return one of the two bytes of every value: Pillow keeps the high one, so the other order gives the low one."""
    with Image.open(path, formats=["PNG"]) as opened:
        opened.tile = [(*tile[:3], f"{tile[3].partition(';')[0]}{order}") for tile in map(tuple, opened.tile)]
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
