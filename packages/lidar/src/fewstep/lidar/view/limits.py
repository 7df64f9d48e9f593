"""What pictures of point clouds may be asked for; light, so that the command can check it before loading a library."""

from __future__ import annotations

VIEWS = ("top", "perspective")
MAX_PANELS = 12  # clouds on a sheet or a page
MIN_SIZE, MAX_SIZE = 64, 2048  # pixels across a panel
MAX_RANGE = 1e4  # metres
