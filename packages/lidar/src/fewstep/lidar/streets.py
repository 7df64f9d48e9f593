"""The simulated data set: written once into the cache folder, in SemanticKITTI's layout, then read like any other."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from fewstep.core.errors import UserError
from fewstep.lidar.data.folder import MAP_FILE
from fewstep.lidar.data.maps import build_map, save_map
from fewstep.lidar.data.sequence import open_sequence
from fewstep.lidar.settings import SimulationConfig
from fewstep.lidar.simulator.sequence import simulate_sequence


def sequence_names(config: SimulationConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the sequences to train on, and of those held out."""
    names = tuple(f"{number:02d}" for number in range(config.sequences + config.held_out))
    return names[: config.sequences], names[config.sequences :]


def streets_folder(config: SimulationConfig) -> Path:
    """Return where the data set lies or will lie: a folder of the cache named after its settings."""
    cache = Path(os.environ.get("FEWSTEP_CACHE") or Path.home() / ".cache" / "fewstep")
    settings = {key: value for key, value in asdict(config).items() if key not in ("sequences", "held_out")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return cache / f"lidar-streets-{digest}"


def make_streets(config: SimulationConfig, map_voxel: float) -> Path:
    """Return the root of the data set, with every sequence and map written that was not there yet.

    Raises UserError when the cache folder cannot be written.
    """
    root = streets_folder(config)
    missing = [name for names in sequence_names(config) for name in names if not _ready(root, name, map_voxel)]
    if missing:
        sys.stderr.write(f"simulating {len(missing)} drives of {config.scans} scans into {root}\n")
    for name in missing:
        folder = root / "sequences" / name
        try:
            if not folder.is_dir():
                simulate_sequence(root, name, config.scans, 100 * config.seed + int(name), config.street, config.sensor)
            save_map(map_file(folder, map_voxel), build_map(open_sequence(folder), map_voxel))
        except (OSError, UserError) as error:
            if not _ready(root, name, map_voxel):  # another process may have been faster
                raise UserError(
                    f"{folder}: cannot be written ({error}); set FEWSTEP_CACHE to another folder"
                ) from error
    return root


def _ready(root: Path, name: str, map_voxel: float) -> bool:
    return map_file(root / "sequences" / name, map_voxel).is_file()


def map_file(folder: Path, voxel: float) -> Path:
    """Return where the map of a sequence lies: `build-maps`' file, or beside it for another cell than 0.1 m."""
    return folder / (MAP_FILE if voxel == 0.1 else f"map_{voxel:g}.npy")
