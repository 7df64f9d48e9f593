"""Many clips in one video: a row of them beside each label, playing together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from fewstep.core.errors import check
from fewstep.video.writing.strips import GAP, INK, MARGIN, PAPER, TILE

Rows = Sequence[tuple[str, UInt8[Tensor, "_ f 3 h w"]]]


class Sheet:
    """Labelled rows of clips of one size as the frames of one video, ``size`` (height, width).

    Small clips are enlarged by a whole factor without smoothing, large ones shrunk until the longer side of the clips
    together is at most ``side``. Clips may differ in length: the last frame waits for the others. Raises UserError
    when there is nothing to show and for clips of different sizes.
    """

    def __init__(self, rows: Rows, side: int = 1280) -> None:
        check(bool(rows) and all(clips.numel() > 0 for _, clips in rows), "nothing to show: every row needs a clip")
        height, width = rows[0][1].shape[-2:]
        for label, clips in rows:
            check(clips.shape[-2:] == (height, width), f"'{label}' is of another size than '{rows[0][0]}'")
        self.rows, self.frames = rows, max(clips.shape[1] for _, clips in rows)
        columns = max(len(clips) for _, clips in rows)
        scale: float = max(1, math.ceil(TILE / min(height, width)))
        scale = min(scale, side / max(columns * width, len(rows) * height))
        self.scale = scale if scale < 1 else int(scale)
        self.tile = tuple(max(1, round(each * self.scale)) for each in (height, width))
        font = ImageFont.load_default(size=14)
        self.left = MARGIN + max(math.ceil(font.getlength(label)) for label, _ in rows) + MARGIN
        down, across = (each + GAP for each in self.tile)
        self.size = (2 * MARGIN + len(rows) * down - GAP, self.left + columns * across - GAP + MARGIN)
        blank = Image.new("RGB", self.size[::-1], PAPER)
        draw = ImageDraw.Draw(blank)
        for row, (label, _) in enumerate(rows):
            place = (MARGIN, MARGIN + row * down + self.tile[0] / 2)
            draw.text(place, label, fill=INK, font=font, anchor="lm")
        self.blank = torch.from_numpy(np.array(blank)).permute(2, 0, 1)

    def draw(self) -> Iterator[UInt8[Tensor, "1 3 h w"]]:
        """Return the frames, one at a time."""
        height, width = self.tile
        for frame in range(self.frames):
            sheet = self.blank.clone()
            for row, (_, clips) in enumerate(self.rows):
                tiles = self._scaled(clips[:, min(frame, clips.shape[1] - 1)])
                top = MARGIN + row * (height + GAP)
                for column, tile in enumerate(tiles):
                    left = self.left + column * (width + GAP)
                    sheet[:, top : top + height, left : left + width] = tile
            yield sheet[None]

    def _scaled(self, pictures: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 v u"]:
        if self.scale == 1:
            return pictures
        mode = "nearest" if self.scale > 1 else "area"
        return functional.interpolate(pictures.float(), self.tile, mode=mode).round().byte()
