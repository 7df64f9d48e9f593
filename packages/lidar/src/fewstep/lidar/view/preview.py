"""Scenes from above in rows, for the report of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewstep.core.errors import check
from fewstep.lidar.view.raster import INK, PAPER, picture, points, save, shared_look

TILE = 208  # pixels
SCENES = 5  # in a row, at most
GAP, MARGIN = 4, 12


def bev_rows(rows: Sequence[tuple[str, Float[Tensor, "n p 3"]]], stem: Path, max_range: float | None = None) -> Path:
    """Write rows of scenes seen from above, each under its label, as ``stem.png``; returns the file.

    A row shows its first five clouds; range and colours are those of :func:`shared_look` for all of them. Raises
    UserError when there is nothing to draw or a point is not finite.
    """
    check(bool(rows) and all(len(scenes) > 0 for _, scenes in rows), "nothing to draw: every row needs a scene")
    shown = [
        (label, [points(label, xyz.detach().double().cpu().numpy()) for xyz in scenes[:SCENES]])
        for label, scenes in rows
    ]
    look = shared_look([xyz for _, scenes in shown for xyz in scenes], max_range)
    font = ImageFont.load_default(size=14)
    gutter = MARGIN + max(math.ceil(font.getlength(label)) for label, _ in shown) + MARGIN
    columns = max(len(scenes) for _, scenes in shown)
    width = gutter + columns * (TILE + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, 2 * MARGIN + len(shown) * (TILE + GAP) - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (label, scenes) in enumerate(shown):
        top = MARGIN + row * (TILE + GAP)
        draw.text((MARGIN, top + TILE / 2), label, fill=INK, font=font, anchor="lm")
        for column, xyz in enumerate(scenes):
            sheet.paste(picture(xyz, "top", TILE, look), (gutter + column * (TILE + GAP), top))
    file = stem.with_name(f"{stem.name}.png")  # not with_suffix: a stem such as step-0.5 has a dot of its own
    save(sheet, file)
    return file
