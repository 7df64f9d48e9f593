"""Teachers that come with the package, and runs as teachers of other runs."""

from __future__ import annotations

from pathlib import Path

from fewstep.core.image.text import run_export
from fewstep.core.models.files import INDEX

SHIPPED = Path(__file__).parent / "weights"


def shipped_teachers() -> list[str]:
    """Return the names of the text-to-video pipelines that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{INDEX}"))


def teacher_path(name: str) -> str:
    """Return the folder that a shipped teacher's name or a finished run means, and any other name as it is."""
    return str(SHIPPED / name) if name in shipped_teachers() else run_export(name)
