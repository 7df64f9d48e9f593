"""Pictures brought to one size and cut to one region, so that the same place is the same pixel in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from fewstep.core.errors import check
from fewstep.restoration.comparison.limits import ENLARGEMENTS, MAX_PICTURES, MAX_ZOOM
from fewstep.restoration.pictures.picture import Picture

RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bicubic": Image.Resampling.BICUBIC}
Box = tuple[int, int, int, int]  # left, top, width, height


@dataclass(frozen=True)
class Panel:
    """``image``: RGB or RGBA of 8 bits, of the region. ``size``: width and height of the picture as it came."""

    label: str
    image: Image.Image
    size: tuple[int, int]


@dataclass(frozen=True)
class Panels:
    """Pictures of equal size. ``region``: what of the ``whole`` (width, height) they show."""

    panels: list[Panel]
    region: Box
    whole: tuple[int, int]
    enlarge: str

    @property
    def is_cut(self) -> bool:
        """Whether a part is shown."""
        return self.region[2:] != self.whole

    @property
    def is_enlarged(self) -> bool:
        """Whether a picture was smaller than the largest."""
        return any(panel.size != self.whole for panel in self.panels)

    @property
    def has_alpha(self) -> bool:
        """Whether a picture is transparent somewhere."""
        return any(panel.image.mode == "RGBA" for panel in self.panels)


def make_panels(
    pictures: Sequence[tuple[str, Picture]], *, enlarge: str = "nearest", crop: Box | None = None, zoom: int = 1
) -> Panels:
    """Return labelled pictures at the size of the largest, cut to ``crop`` or to the middle 1/``zoom`` of the sides.

    Smaller pictures are enlarged, 16 bits rounded to 8, gray becomes RGB; colour profiles are not applied. Raises
    UserError for too many pictures or less than two, for shapes that differ, and for a region beyond the largest.
    """
    check(2 <= len(pictures) <= MAX_PICTURES, f"{len(pictures)} pictures to compare: give 2 to {MAX_PICTURES}")
    check(enlarge in ENLARGEMENTS, f"--enlarge {enlarge}: valid are {', '.join(ENLARGEMENTS)}")
    height, width = max((picture.size for _, picture in pictures), key=lambda size: size[0] * size[1])
    for label, picture in pictures:
        _check_shape(label, picture, width, height)
    region = _region(crop, zoom, width, height)
    left, top, across, down = region
    panels = []
    for label, picture in pictures:
        image = to_image(picture)
        if image.size != (width, height):
            # by way of the whole picture: what is enlarged must not depend on where it is cut
            image = image.resize((width, height), RESAMPLING[enlarge])
        size = (picture.size[1], picture.size[0])
        panels.append(Panel(label, image.crop((left, top, left + across, top + down)), size))
    return Panels(panels, region, (width, height), enlarge)


def to_image(picture: Picture) -> Image.Image:
    """Return RGB of 8 bits, or RGBA where a pixel is transparent."""
    parts = [picture.colours.expand(3, -1, -1)]
    if picture.alpha is not None and bool((picture.alpha < 1).any()):
        parts.append(picture.alpha)
    values = (torch.cat(parts).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))


def _check_shape(label: str, picture: Picture, width: int, height: int) -> None:
    h, w = picture.size
    # a picture of low quality may lack what did not fill a whole pixel of it
    alike = abs(h * width / w - height) < width / w + 1e-6 or abs(w * height / h - width) < height / h + 1e-6
    check(alike, f"{label} has {w}x{h} pixels and the largest {width}x{height}: give pictures of one shape")


def _region(crop: Box | None, zoom: int, width: int, height: int) -> Box:
    check(crop is None or zoom == 1, "--crop and --zoom: give one of them")
    if crop is not None:
        left, top, across, down = crop
        inside = min(across, down) >= 1 and min(left, top) >= 0 and left + across <= width and top + down <= height
        asked = ",".join(map(str, crop))
        check(inside, f"--crop {asked}: must be x,y,w,h within the {width}x{height} pixels of the largest picture")
        return crop
    check(1 <= zoom <= MAX_ZOOM, f"--zoom {zoom}: must be 1 to {MAX_ZOOM}")
    across, down = max(1, width // zoom), max(1, height // zoom)
    return (width - across) // 2, (height - down) // 2, across, down
