"""A page that wipes between pictures of one scene: one file, opened from disk, without a server or a network."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from fewstep.core.data.writing import write_text
from fewstep.core.errors import UserError, check
from fewstep.restoration.comparison.panels import Panels

MAX_SHOWN = 16 * 2**20  # pixels of a picture: browsers keep them all decoded, 4 bytes each
MAX_PAGE = 96 * 2**20  # bytes of all pictures as PNG


def write_page(panels: Panels, path: Path) -> Path:
    """Write a page that wipes between any two of the panels, or shows all at once, zoomed and moved together.

    Pictures are embedded as PNG, pixel by pixel; those above :data:`MAX_SHOWN` pixels are shrunk, and the page says so.
    Raises UserError above :data:`MAX_PAGE` bytes, and for a file that cannot be written.
    """
    width, height = panels.region[2:]
    factor = min(1.0, (MAX_SHOWN / (width * height)) ** 0.5)
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    pictures, total = [], 0
    for panel in panels.panels:
        image = panel.image if factor == 1 else panel.image.resize(size, Image.Resampling.LANCZOS)
        data = _png(image)
        total += len(data)
        check(
            total <= MAX_PAGE, f"{path}: more than {MAX_PAGE >> 20} MiB of pictures: choose a part by --crop, or fewer"
        )
        address = "data:image/png;base64," + base64.b64encode(data).decode()
        pictures.append({"label": panel.label, "size": f"{panel.size[0]}x{panel.size[1]}", "address": address})
    environment = Environment(
        loader=PackageLoader("fewstep.restoration.comparison"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("compare.html").render(
        title=", ".join(panel.label for panel in panels.panels),
        pictures=pictures,
        width=size[0],
        height=size[1],
        notes=_notes(panels, factor),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); give another place") from error
    return path


def _notes(panels: Panels, factor: float) -> list[str]:
    left, top, width, height = panels.region
    notes = []
    if panels.is_cut:
        notes.append(f"Shown: {width}x{height} pixels at {left}, {top} of {panels.whole[0]}x{panels.whole[1]}.")
    if factor < 1:
        notes.append(f"Shrunk to {100 * factor:.0f} % to bound this page: compare pixels in a part (--crop).")
    if panels.is_enlarged:
        notes.append(f"Smaller pictures are enlarged by {panels.enlarge}.")
    if panels.has_alpha:
        notes.append("Transparency is shown on a checkerboard.")
    return notes


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
