"""A page that shows point clouds in three dimensions: one file, opened from disk, without a server or a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from fewstep.core.data.writing import write_text
from fewstep.core.errors import check
from fewstep.lidar.view.colours import scale_bytes
from fewstep.lidar.view.limits import MAX_PANELS
from fewstep.lidar.view.raster import points, shared_look, writing

Array = NDArray[Any]

MAX_ERROR_M = 0.005  # of 16 bits per axis: a larger cloud takes 32
LEVELS = 65535
MAX_POINTS = 5_000_000  # on a page: 8 bytes of the file each, or 16


def write_viewer(
    path: Path, clouds: Sequence[tuple[str, Array]], title: str = "Point clouds", max_range: float | None = None
) -> Path:
    """Write a page with labelled clouds "n 3", in metres, as one HTML file; returns it.

    Positions have 16 bits per axis of the cloud's bounding box, an error of at most 0.9 mm over 120 m and of 5 mm over
    655 m; a larger cloud is kept in float32. The page says which error it has. ``max_range`` spans colours and rings,
    and leaves no point out. Raises UserError when there is nothing or too much to show, or a point is not finite.
    """
    check(0 < len(clouds) <= MAX_PANELS, f"{len(clouds)} clouds to show: give 1 to {MAX_PANELS}")
    checked = [(label, points(label, xyz)) for label, xyz in clouds]
    total = sum(len(xyz) for _, xyz in checked)
    check(total <= MAX_POINTS, f"{total} points to show: a page takes {MAX_POINTS}; thin the clouds out first")
    look = shared_look([xyz for _, xyz in checked], max_range)
    packed = [{"label": label, **pack(xyz)} for label, xyz in checked]
    data = {
        "clouds": packed,
        "palette": _base64(scale_bytes()),
        "low": look.low,
        "high": look.high,
        "ground": look.ground,
        "max_range": look.max_range,
        "ring_step": look.ring_step,
    }
    environment = Environment(loader=PackageLoader("fewstep.lidar.view"), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("viewer.html").render(
        title=title,
        data=data,
        ring_step=f"{look.ring_step:g}",
        error_mm=f"{1000 * max(cloud['error'] for cloud in packed):.2g}",
    )
    with writing(path):
        write_text(path, page)
    return path


def pack(xyz: Array) -> dict[str, Any]:
    """Return a cloud "n 3" as the page reads it: point = ``origin`` + ``step`` * stored, off by at most ``error`` m."""
    if len(xyz) == 0:
        return {"count": 0, "bits": 16, "origin": [0.0] * 3, "step": [0.0] * 3, "error": 0.0, "points": ""}
    low, high = xyz.min(0), xyz.max(0)
    step = (high - low) / LEVELS
    error = float(step.max()) / 2
    if error <= MAX_ERROR_M:
        stored = ((xyz - low) / np.where(step > 0, step, 1.0)).round().astype("<u2")
        origin, bits = low, 16
    else:
        origin, step, bits = (low + high) / 2, np.ones(3), 32
        stored = (xyz - origin).astype("<f4")
        error = float((high - low).max()) / 2 * 2.0**-24
    return {
        "count": len(xyz),
        "bits": bits,
        "origin": origin.tolist(),
        "step": step.tolist(),
        "error": error,
        "points": _base64(stored),
    }


def _base64(values: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
