"""Data of LiDAR scene completion.

Scans in their order, with labels and poses: :mod:`.sequence` and a file per layout. Dense maps of a sequence:
:mod:`.maps` on :mod:`.cells`. What a scan is compared with and learns from: :mod:`.crops`, :mod:`.pairs`,
:mod:`.augmentation`. Fewer points of the same shape: :mod:`.farthest`. Voxels of semantic completion: :mod:`.voxels`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.lidar.data.augmentation import Motion, augment
    from fewstep.lidar.data.crops import clean_scan, ground_truth, in_view, training_crop
    from fewstep.lidar.data.farthest import farthest_points
    from fewstep.lidar.data.folder import MAP_FILE
    from fewstep.lidar.data.maps import build_map, load_map, save_map
    from fewstep.lidar.data.pairs import refiner_pair, resized, training_pair
    from fewstep.lidar.data.sequence import LAYOUTS, SPLITS, Sequence, open_sequence, open_sequences
    from fewstep.lidar.data.voxels import read_voxels

__all__ = [
    "LAYOUTS",
    "MAP_FILE",
    "SPLITS",
    "Motion",
    "Sequence",
    "augment",
    "build_map",
    "clean_scan",
    "farthest_points",
    "ground_truth",
    "in_view",
    "load_map",
    "open_sequence",
    "open_sequences",
    "read_voxels",
    "refiner_pair",
    "resized",
    "save_map",
    "training_crop",
    "training_pair",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Only now: the command line imports the verb in this folder, and loads no library to list it.
    from fewstep.lidar.data import names

    return getattr(names, name)
