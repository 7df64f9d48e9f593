"""What :mod:`fewstep.lidar.data` offers, by name."""

from __future__ import annotations

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
