"""A ray-cast simulator: procedural streets, scanned by a spinning LiDAR, in SemanticKITTI's layout."""

from fewstep.lidar.simulator.config import SensorConfig, StreetConfig
from fewstep.lidar.simulator.scanner import Scan, simulate_scan
from fewstep.lidar.simulator.sequence import drive, simulate_sequence
from fewstep.lidar.simulator.street import make_street
from fewstep.lidar.simulator.world import World

__all__ = [
    "Scan",
    "SensorConfig",
    "StreetConfig",
    "World",
    "drive",
    "make_street",
    "simulate_scan",
    "simulate_sequence",
]
