"""Labelled grids of images as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewstep.core.errors import check

TILE = 56  # pixels a sample has at least
GAP = 4
MARGIN = 12
INK = (40, 40, 40)
PAPER = (255, 255, 255)


def render_rows(rows: Sequence[tuple[str, Float[Tensor, "_ c h w"]]], stem: Path) -> Path:
    """Write rows of images in [-1, 1], each under its label, as ``stem.png``; returns the file.

    Small images are enlarged by a whole factor without smoothing, so that every pixel stays visible. Raises UserError
    when there is nothing to draw.
    """
    check(bool(rows) and all(len(images) > 0 for _, images in rows), "nothing to draw: every row needs an image")
    factor = max(1, math.ceil(TILE / rows[0][1].shape[-1]))
    tiles = [(label, [_tile(image, factor) for image in images]) for label, images in rows]
    size = tiles[0][1][0].size
    font = ImageFont.load_default(size=14)
    gutter = MARGIN + max(math.ceil(font.getlength(label)) for label, _ in tiles) + MARGIN
    columns = max(len(images) for _, images in tiles)
    width = gutter + columns * (size[0] + GAP) - GAP + MARGIN
    height = 2 * MARGIN + len(tiles) * (size[1] + GAP) - GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (label, images) in enumerate(tiles):
        top = MARGIN + row * (size[1] + GAP)
        draw.text((MARGIN, top + size[1] / 2), label, fill=INK, font=font, anchor="lm")
        for column, image in enumerate(images):
            sheet.paste(image, (gutter + column * (size[0] + GAP), top))
    file = stem.with_name(f"{stem.name}.png")  # not with_suffix: a stem such as step-0.5 has a dot of its own
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, optimize=True)
    return file


def to_bytes(image: Float[Tensor, "c h w"]) -> Image.Image:
    """Return an image in [-1, 1] as 8 bits per channel, values outside cut off."""
    values = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    return Image.fromarray(values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))


def _tile(image: Tensor, factor: int) -> Image.Image:
    picture = to_bytes(image).convert("RGB")
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
