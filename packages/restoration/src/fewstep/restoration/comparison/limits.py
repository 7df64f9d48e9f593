"""What a comparison may be asked for; light, so that the command can check it before loading a library."""

from __future__ import annotations

ENLARGEMENTS = ("nearest", "bicubic")
MAX_PICTURES = 12
MAX_ZOOM = 64
