"""Clips as strips of frames in one picture, a row for each, under the frames' numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewstep.core.errors import check
from fewstep.video.writing.clips import write_or_refuse

TILE = 64  # pixels a frame's shorter side has at least
GAP, MARGIN = 4, 12
INK, PAPER = (40, 40, 40), (255, 255, 255)
MAX_PIXELS = 2**27  # of the picture


def draw_strip(path: Path, rows: Sequence[tuple[str, UInt8[Tensor, "_ 3 h w"]]], *, frames: int = 8) -> None:
    """Write a .png of clips, each in a row beside its label: up to ``frames`` of its frames, first and last among them.

    Small frames are enlarged by a whole factor without smoothing. Clips may differ in length, not in size: the numbers
    above are the first one's frames, counted from 0. Raises UserError for what cannot be drawn or written.
    """
    check(path.suffix.lower() == ".png", f"{path}: a strip is a picture; name it .png")
    check(bool(rows) and frames >= 1, f"{path}: a strip needs a clip and a frame of it at least")
    height, width = rows[0][1].shape[-2:]
    for label, clip in rows:
        check(len(clip) > 0, f"{path}: '{label}' has no frames to draw")
        check(clip.shape[-2:] == (height, width), f"{path}: '{label}' is of another size than '{rows[0][0]}'")
    factor = max(1, math.ceil(TILE / min(height, width)))
    font = ImageFont.load_default(size=14)
    gutter = MARGIN + max(math.ceil(font.getlength(label)) for label, _ in rows) + MARGIN
    across, down = width * factor + GAP, height * factor + GAP
    columns = max(len(spread(len(clip), frames)) for _, clip in rows)
    size = (gutter + columns * across - GAP + MARGIN, 3 * MARGIN + len(rows) * down)
    check(size[0] * size[1] <= MAX_PIXELS, f"{path}: a strip of {size[0]}x{size[1]} pixels is too large; draw fewer")
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, frame in enumerate(spread(len(rows[0][1]), frames)):
        middle = gutter + column * across + width * factor / 2
        draw.text((middle, MARGIN), str(frame), fill=INK, font=font, anchor="mm")
    for row, (label, clip) in enumerate(rows):
        top = 2 * MARGIN + row * down
        draw.text((MARGIN, top + height * factor / 2), label, fill=INK, font=font, anchor="lm")
        for column, frame in enumerate(spread(len(clip), frames)):
            image = np.ascontiguousarray(clip[frame].detach().cpu().permute(1, 2, 0).numpy())
            tile = Image.fromarray(image.repeat(factor, 0).repeat(factor, 1))
            sheet.paste(tile, (gutter + column * across, top))
    write_or_refuse(path, lambda aside: sheet.save(aside, format="PNG", optimize=True))


def spread(total: int, count: int) -> list[int]:
    """Return up to ``count`` different indices of 0..total-1, evenly spread, the first and the last among them."""
    if count == 1 or total == 1:
        return [0]
    count = min(count, total)
    return [round(index * (total - 1) / (count - 1)) for index in range(count)]
