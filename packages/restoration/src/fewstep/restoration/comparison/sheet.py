"""A sheet of labelled pictures of the same region, as one PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import UserError
from fewstep.restoration.comparison.panels import Panels

SIDE = 480  # pixels that a small region is magnified to, in whole steps
MOST = 1536  # pixels a side of a panel: larger ones are shrunk
COLUMNS = 4
SQUARE = 8  # pixels of the checkerboard
INK, SOFT, PAPER = (32, 36, 44), (102, 112, 133), (255, 255, 255)
CHECKS = (255, 216)  # gray levels


def draw_sheet(panels: Panels, path: Path) -> Path:
    """Draw the panels side by side, in rows of at most four, as a PNG; returns the file.

    Small regions are magnified by whole steps without smoothing, large ones shrunk; transparency is drawn on a
    checkerboard. The foot of the sheet says so. UserError when the file cannot be written.
    """
    width, height = panels.region[2:]
    factor = shown_factor(width, height)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    sheet = _sheet(panels, [_shown(panel.image, size) for panel in panels.panels], factor)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda aside: sheet.save(aside, format="PNG"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); give another place") from error
    return path


def shown_factor(width: int, height: int) -> float:
    """Return how many pixels of the sheet a pixel of the region gets: a whole number of them, or less than one."""
    if max(width, height) > MOST:
        return MOST / max(width, height)
    return max(1, min(round(SIDE / max(width, height)), MOST // max(width, height)))


def on_checkerboard(image: Image.Image) -> Image.Image:
    """Return RGB, with squares of white and light gray behind what is transparent."""
    if image.mode != "RGBA":
        return image
    rows, columns = (np.arange(side)[:, None] // SQUARE for side in (image.height, image.width))
    levels = np.where((rows + columns.T) % 2 == 0, *CHECKS).astype(np.uint8)
    board = Image.fromarray(np.stack([levels] * 3, axis=-1))
    board.paste(image, (0, 0), image)
    return board


def _shown(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    smaller = size[0] < image.width
    return on_checkerboard(image.resize(size, Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST))


def _sheet(panels: Panels, images: list[Image.Image], factor: float) -> Image.Image:
    width, height = images[0].size
    columns = min(len(images), COLUMNS if width <= 2 * height else 2)
    rows = math.ceil(len(images) / columns)
    columns = math.ceil(len(images) / rows)  # no row much shorter than the others
    text = min(max(15, round(width / 30)), 40)
    note = max(12, round(text * 0.75))
    font, small = ImageFont.load_default(size=text), ImageFont.load_default(size=note)
    cell = max(width, 12 * text)  # a narrow picture leaves room for its label
    margin, gap, head = text, text, round(text * 1.7)
    total = 2 * margin + columns * (cell + gap) - gap
    notes = _wrapped(foot(panels, factor), small, total - 2 * margin)
    line = round(note * 1.45)
    body = margin + rows * (head + height + gap) - gap
    sheet = Image.new("RGB", (total, body + margin + line * len(notes) + margin // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (panel, image) in enumerate(zip(panels.panels, images, strict=True)):
        left = margin + index % columns * (cell + gap)
        top = margin + index // columns * (head + height + gap)
        baseline = top + head - round(text * 0.55)
        number = f"{panel.size[0]}x{panel.size[1]}"
        room = cell - small.getlength(number) - text
        draw.text((left, baseline), _fit(panel.label, font, room), fill=INK, font=font, anchor="ls")
        draw.text((left + cell, baseline), number, fill=SOFT, font=small, anchor="rs")
        sheet.paste(image, (left + (cell - width) // 2, top + head))
    for index, words in enumerate(notes):
        draw.text((margin, body + margin // 2 + line * index + line), words, fill=SOFT, font=small, anchor="ls")
    return sheet


def foot(panels: Panels, factor: float) -> str:
    """Return in words what was done to the pictures to show them."""
    left, top, width, height = panels.region
    parts = (
        [f"{width}x{height} pixels at {left}, {top} of {panels.whole[0]}x{panels.whole[1]}"] if panels.is_cut else []
    )
    if factor > 1:
        parts.append(f"a pixel drawn as {factor:g}x{factor:g}")
    if factor < 1:
        parts.append(f"shrunk to {100 * factor:.0f} %: crop to see pixels")
    if panels.is_enlarged:
        parts.append(f"smaller pictures enlarged by {panels.enlarge}")
    if panels.has_alpha:
        parts.append("transparency on a checkerboard")
    return "; ".join(parts) or "every pixel as it is"


def _wrapped(words: str, font: Any, room: float) -> list[str]:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= room or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _fit(label: str, font: Any, room: float) -> str:
    """The label, cut where there is no room for it."""
    label = " ".join(label.split())
    if font.getlength(label) <= room:
        return label
    while label and font.getlength(label + "...") > room:
        label = label[:-1]
    return label + "..."
