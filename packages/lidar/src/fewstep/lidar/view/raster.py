"""Sheets of pictures: the same scene as several clouds show it, side by side, under one camera and colour scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import UserError, check, nearest
from fewstep.lidar.view.colours import scale_bytes
from fewstep.lidar.view.limits import MAX_PANELS, MAX_RANGE, MAX_SIZE, MIN_SIZE, VIEWS
from fewstep.lidar.view.scene import Camera, Look, PerspectiveCamera, TopCamera, render

Array = NDArray[Any]

MAX_METRES = 1e9  # of a coordinate
PERSPECTIVE_HEIGHT = 0.62  # of its width
INK, SOFT, PAPER = (32, 36, 44), (102, 112, 133), (255, 255, 255)
LIGHT, MARK = (214, 220, 230), (255, 122, 69)  # on the pictures


def draw_panels(
    panels: Sequence[tuple[str, Array]],
    path: Path,
    views: Sequence[str] = VIEWS,
    *,
    max_range: float = 50.0,
    size: int = 640,
) -> Path:
    """Draw labelled clouds "n 3" in columns, a row per view, as one PNG; returns the file.

    Camera and colours are shared; points beyond ``max_range`` metres on the ground are left out. A cloud may be empty.
    Raises UserError when there is nothing to draw, a number is out of range or a point is not finite.
    """
    check(0 < len(panels) <= MAX_PANELS, f"{len(panels)} clouds to draw: give 1 to {MAX_PANELS}")
    check(bool(views), f"no view to draw: give {' or '.join(VIEWS)}")
    for view in views:
        check(view in VIEWS, f"no view '{view}': {nearest(view, VIEWS)}")
    check(MIN_SIZE <= size <= MAX_SIZE, f"a panel of {size} pixels: give {MIN_SIZE} to {MAX_SIZE}")
    clouds = [(label, points(label, xyz)) for label, xyz in panels]
    look = shared_look([xyz for _, xyz in clouds], max_range)
    pictures = [[picture(xyz, view, size, look) for _, xyz in clouds] for view in views]
    save(_sheet([label for label, _ in clouds], [len(xyz) for _, xyz in clouds], pictures, look, views), path)
    return path


def points(label: str, xyz: Array) -> Array:
    """Return a cloud as float64 "n 3"; UserError unless it has that shape and is finite, and within 1e9 m."""
    array = np.asarray(xyz)
    check(array.ndim == 2 and array.shape[1] == 3, f"{label}: points have the shape {array.shape}, not (n, 3)")
    array = array.astype(np.float64)
    bad = int((~np.isfinite(array)).any(1).sum())
    check(bad == 0, f"{label}: {bad} of {len(array)} points are not finite; drop them first")
    check(
        bool((np.abs(array) <= MAX_METRES).all()), f"{label}: has points farther than {MAX_METRES:g} m; drop them first"
    )
    return array


def shared_look(clouds: Sequence[Array], max_range: float | None = None) -> Look:
    """Return the look that suits clouds "n 3" as a whole: medians over them, so that a stray one does not count.

    The colour scale spans the 1st to the 99th percentile of heights, the ground is the 5th. Without a ``max_range``
    it holds 99 percent of the points.
    """
    check(
        max_range is None or 0 < max_range <= MAX_RANGE,
        f"a range of {max_range} m: give one above 0 and up to {MAX_RANGE:g}",
    )
    filled = [xyz for xyz in clouds if len(xyz)]
    if max_range is None:
        reach = [float(np.percentile(np.hypot(xyz[:, 0], xyz[:, 1]), 99)) for xyz in filled]
        max_range = min(_round_up(max(1.0, float(np.median(reach)))), MAX_RANGE) if reach else 50.0
    inside = [xyz[np.hypot(xyz[:, 0], xyz[:, 1]) <= max_range, 2] for xyz in filled]
    marks = [np.percentile(z, (1, 5, 99)) for z in inside if len(z)]
    low, ground, high = np.median(marks, axis=0) if marks else (-2.0, -1.7, 3.0)
    high = max(high, low + 1.0)  # a flat cloud keeps a scale
    return Look(float(low), float(high), float(ground), max_range, ring_step=_round_up(max_range / 6))


def picture(xyz: Array, view: str, size: int, look: Look) -> Image.Image:
    """Return one panel with the sensor's place marked."""
    camera: Camera
    if view == "top":
        camera = TopCamera(size, look.max_range)
    else:
        camera = PerspectiveCamera(size, round(size * PERSPECTIVE_HEIGHT), look.max_range)
    image = Image.fromarray(render(xyz, camera, look))
    if len(xyz) == 0:
        font = ImageFont.load_default(size=max(12, size // 32))
        ImageDraw.Draw(image).text((image.width / 2, image.height / 3), "no points", fill=LIGHT, font=font, anchor="mm")
    column, row, _ = camera.project(np.zeros((1, 3)))
    _mark(image, float(column[0]), float(row[0]), max(4.0, size / 75))
    return image


def save(sheet: Image.Image, path: Path) -> None:
    """Write a PNG in one move; UserError when that is not possible."""
    with writing(path):
        write_whole(path, lambda aside: sheet.save(aside, format="PNG", optimize=True))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file, and turn what the system says against writing it into UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); give another place") from error


def _mark(image: Image.Image, column: float, row: float, radius: float) -> None:
    """An arrow head that points forward, drawn large and shrunk, so that its edges are smooth."""
    fine, half = 8, math.ceil(radius) + 2
    tile = Image.new("RGBA", (2 * half * fine, 2 * half * fine), (*MARK, 0))
    shape = [(0.0, -1.0), (0.72, 0.8), (0.0, 0.42), (-0.72, 0.8)]
    corners = [((half + x * radius) * fine, (half + y * radius) * fine) for x, y in shape]
    ImageDraw.Draw(tile).polygon(corners, fill=(*MARK, 255), outline=(0, 0, 0, 255), width=fine)
    small = tile.resize((2 * half, 2 * half), Image.Resampling.BOX)
    image.paste(small, (round(column) - half, round(row) - half), small)


def _sheet(
    labels: Sequence[str],
    counts: Sequence[int],
    pictures: Sequence[Sequence[Image.Image]],
    look: Look,
    views: Sequence[str],
) -> Image.Image:
    size = pictures[0][0].width
    text = max(13, round(size / 30))
    font, small = ImageFont.load_default(size=text), ImageFont.load_default(size=max(11, round(text * 0.72)))
    margin, gap, head, foot = text, max(4, text // 3), round(text * 1.7), round(text * 2.4)
    width = 2 * margin + len(labels) * (size + gap) - gap
    body = sum(row[0].height + gap for row in pictures) - gap
    sheet = Image.new("RGB", (width, margin + head + body + foot), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, (label, count) in enumerate(zip(labels, counts, strict=True)):
        left = margin + column * (size + gap)
        number = f"{count:,} points"
        room = size - small.getlength(number) - text
        baseline = margin + head - text * 0.6
        draw.text((left, baseline), _fit(label, font, room), fill=INK, font=font, anchor="ls")
        draw.text((left + size, baseline), number, fill=SOFT, font=small, anchor="rs")
        top = margin + head
        for row in pictures:
            sheet.paste(row[column], (left, top))
            top += row[column].height + gap
    if "top" in views:
        above = sum(row[0].height + gap for row in pictures[: views.index("top")])
        _scale_bar(draw, margin + text, margin + head + above + size - text, size, look, small)
    _colour_bar(sheet, width - margin, margin + head + body + foot // 2, look, small)
    note = f"rings every {look.ring_step:g} m"
    if len(labels) > 1:
        note += f", points within {look.max_range:g} m of the sensor"
    draw.text((margin, margin + head + body + foot // 2), note, fill=SOFT, font=small, anchor="lm")
    return sheet


def _fit(label: str, font: Any, room: float) -> str:
    """The label, cut where there is no room for it."""
    label = " ".join(label.split())
    if font.getlength(label) <= room:
        return label
    while label and font.getlength(label + "...") > room:
        label = label[:-1]
    return label + "..."


def _scale_bar(draw: ImageDraw.ImageDraw, left: int, bottom: int, size: int, look: Look, font: Any) -> None:
    metres = look.ring_step
    length = metres * TopCamera(size, look.max_range).pixels_per_metre
    thick = max(2, size // 320)
    draw.rectangle((left, bottom - thick, left + length, bottom), fill=LIGHT)
    draw.text((left + length / 2, bottom - 3 * thick), f"{metres:g} m", fill=LIGHT, font=font, anchor="ms")


def _colour_bar(sheet: Image.Image, right: int, middle: int, look: Look, font: Any) -> None:
    draw = ImageDraw.Draw(sheet)
    low, high = f"{look.low:.1f}", f"{look.high:.1f} m"
    length = round(min(sheet.width * 0.3, 16 * font.size))
    thick, space = round(font.size * 0.8), round(font.size * 0.5)
    end = right - math.ceil(font.getlength(high)) - space
    bar = Image.fromarray(np.broadcast_to(scale_bytes(), (thick, 256, 3)).copy()).resize((length, thick))
    sheet.paste(bar, (end - length, middle - thick // 2))
    draw.text((right, middle), high, fill=SOFT, font=font, anchor="rm")
    draw.text((end - length - space, middle), f"height  {low}", fill=SOFT, font=font, anchor="rm")


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))
