"""Folders of good pictures, searched to their bottom."""

from __future__ import annotations

from pathlib import Path

from fewstep.core.data.reading import image_files
from fewstep.restoration.data.examples import Entry


def folder_entries(root: Path) -> list[Entry]:
    """Return the pictures anywhere under a folder, sorted; UserError when it is missing, unreadable or empty."""
    return [Entry(file, None, file.relative_to(root).as_posix()) for file in image_files(root)]
