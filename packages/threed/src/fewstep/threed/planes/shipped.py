"""Generators of planes by name: one that comes with the package, an export, or a run's folder."""

from __future__ import annotations

from pathlib import Path

from fewstep.core.errors import UserError, nearest
from fewstep.threed.planes.model import MODEL_FILE, PlanesModel, load_planes

SHIPPED = Path(__file__).parent.parent / "weights"
DEFAULT = "planes"


def shipped_planes() -> list[str]:
    """Return the names of the generators that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MODEL_FILE}"))


def find_planes(name: str = "") -> PlanesModel:
    """Return a generator, the shipped one for ""; UserError where there is none."""
    if name in ("", *shipped_planes()):
        return load_planes(SHIPPED / (name or DEFAULT))
    given = Path(name).expanduser()
    for folder in (given, given / "export"):
        if (folder / MODEL_FILE).is_file():
            return load_planes(folder)
    if (given / "checkpoints").is_dir():
        raise UserError(
            f"student '{name}': this run has exported nothing yet; run `fewstep threed export {name}` first"
        )
    raise UserError(
        f"no student '{name}': give a folder with {MODEL_FILE}, or a name ({nearest(name, shipped_planes())})"
    )
