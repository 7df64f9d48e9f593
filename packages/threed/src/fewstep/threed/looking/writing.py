"""Turntables as .gif, .mp4 or a page one can turn, and contact sheets as .png; whole or not at all."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import UserError, check
from fewstep.core.image.rendering import render_rows
from fewstep.threed.looking.pictures import Ring, colours, depths, frames, look, normals
from fewstep.threed.views import Scene

FORMATS = (".gif", ".mp4", ".html", ".png")
PAGE = Path(__file__).parent / "templates" / "turntable.html"
SHEET = Ring(views=8, size=128)


def write_looks(
    scene: Scene, paths: Sequence[Path], ring: Ring, sheet: Ring = SHEET, *, fps: float = 24.0, title: str = ""
) -> None:
    """Write a scene as seen from all around, in the form of each path's suffix; what films share is rendered once.

    ``sheet``: the ring of contact sheets, .png. Raises UserError for another suffix, a folder that is not there, and
    where .mp4 lacks its library.
    """
    check(0 < fps <= 240, f"fps: above 0, at most 240, got {fps:g}")
    for path in paths:
        suffix = path.suffix.lower()
        check(suffix in FORMATS, f"{path}: pictures of assets are written as {', '.join(FORMATS)}; end the name in one")
        check(path.parent.is_dir(), f"{path}: the folder is not there; make it first")
        if suffix == ".mp4":
            _video_library()
    writers = {".gif": _gif, ".mp4": _mp4, ".html": _page}
    pictures: list[Image.Image] = []
    for path in paths:
        suffix = path.suffix.lower()
        if suffix == ".png":
            write_sheet(scene, path, sheet)
            continue
        pictures = pictures or frames(scene, ring)
        write = partial(writers[suffix], pictures, fps=fps, title=title)
        try:
            write_whole(path, write)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def write_sheet(scene: Scene, path: Path, ring: Ring = SHEET) -> None:
    """Write colours, normals and depths from a ring as rows of one picture."""
    seen = list(look(scene, ring.camera()))
    near, far = ring.distance - 0.6, ring.distance + 0.6
    rows = {
        "colour": [colours(each) for each in seen],
        "normal": [normals(each) for each in seen],
        "depth": [depths(each, near, far) for each in seen],
    }
    if not any(bool(each.normal.any()) for each in seen):
        del rows["normal"]
    try:
        render_rows([(name, 2 * torch.cat(parts) - 1) for name, parts in rows.items()], path.with_suffix(""))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def _gif(pictures: list[Image.Image], path: Path, fps: float, title: str) -> None:
    palette = [picture.quantize(128, dither=Image.Dither.NONE) for picture in pictures]
    hundredths = max(2, round(100 / fps))  # browsers slow down what is faster
    with path.open("wb") as file:
        palette[0].save(
            file, "GIF", save_all=True, append_images=palette[1:], duration=10 * hundredths, loop=0, optimize=True
        )


def _video_library() -> None:
    try:
        import av  # noqa: F401
    except ImportError:
        raise UserError("writing .mp4 needs PyAV: `pip install av`, or write .gif or .html") from None


def _mp4(pictures: list[Image.Image], path: Path, fps: float, title: str) -> None:
    import av

    width, height = (side + side % 2 for side in pictures[0].size)  # its chroma has half as many samples
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("h264", rate=round(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        for picture in pictures:
            fitted = np.asarray(picture.resize((width, height)))
            for packet in stream.encode(av.VideoFrame.from_ndarray(fitted, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)


def _page(pictures: list[Image.Image], path: Path, fps: float, title: str) -> None:
    side = pictures[0].width
    strip = Image.new("RGB", (side * len(pictures), side), (255, 255, 255))
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index * side, 0))
    data = io.BytesIO()
    strip.save(data, "WEBP", quality=88, method=4) if strip.width <= 16383 else strip.save(data, "PNG", optimize=True)
    kind = "webp" if strip.width <= 16383 else "png"
    told = {
        "TITLE": _escaped(title or "asset"),
        "COUNT": str(len(pictures)),
        "SIDE": str(side),
        "FPS": f"{fps:g}",
        "STRIP": f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}",
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, value in told.items():
        text = text.replace(f"@{name}@", value)
    path.write_text(text, encoding="utf-8")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
