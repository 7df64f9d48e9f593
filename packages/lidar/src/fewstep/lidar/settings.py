"""Settings of the lidar domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewstep.core.errors import check
from fewstep.core.networks.roles import RolesConfig
from fewstep.lidar.models.unet import NetworkConfig
from fewstep.lidar.simulator.config import SensorConfig, StreetConfig

Layout = Literal["semantickitti", "kitti-raw", "nuscenes", "folder"]


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """The simulated data set: ``sequences`` to train on and ``held_out`` ones after them, ``scans`` in each.

    It is written once, into the cache folder (``FEWSTEP_CACHE``, ~/.cache/fewstep), under a name made of the settings.
    """

    sequences: int = 8
    held_out: int = 2
    scans: int = 40
    seed: int = 0
    sensor: SensorConfig = SensorConfig(azimuth_step=0.36)
    street: StreetConfig = StreetConfig(speed=12.0)

    def __post_init__(self) -> None:
        for name in ("sequences", "held_out", "scans"):
            check(getattr(self, name) >= 1, f"domain.data.simulation.{name} must be at least 1")
        check(self.sequences + self.held_out <= 100, "domain.data.simulation: at most 100 sequences, held out included")


@dataclass(frozen=True, kw_only=True)
class LidarDataConfig:
    """Where scans and scenes come from, and how training pairs are cut from them (arXiv 2403.13470, section 4).

    ``source``: ``simulated``, or real data under ``path`` in one of the layouts `fewstep lidar build-maps` reads.
    ``sequences`` and ``held_out``: names; empty for SemanticKITTI's split (00-07, 09, 10; 08), or for all with the last
    held out. ``points``: of a scene, a multiple of ``tiling``; the scan is thinned to ``points / tiling``.
    ``min_range``, ``max_range`` and ``min_z`` in metres. ``window``: with it a sample is what lies within so many
    metres of a random place, horizontally (0: the whole scene). ``augment``: joint rotation, scale and flip.
    ``map_voxel``: of the aggregated scene, metres, where it is simulated.
    """

    source: Literal["simulated", "semantickitti", "kitti-raw", "nuscenes", "folder"] = "simulated"
    path: str = ""
    sequences: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    simulation: SimulationConfig = SimulationConfig()
    points: int = 180_000
    tiling: int = 10
    min_range: float = 3.5
    max_range: float = 50.0
    min_z: float = -4.0
    window: float = 0.0
    augment: bool = True
    map_voxel: float = 0.1

    def __post_init__(self) -> None:
        check(
            (self.source == "simulated") == (not self.path),
            "domain.data.path belongs to real data: give it with source semantickitti, kitti-raw, nuscenes or folder, "
            "and only there",
        )
        check(self.tiling >= 1, f"domain.data.tiling must be at least 1, got {self.tiling}")
        check(
            self.points >= 100 and self.points % self.tiling == 0,
            f"domain.data.points must be a multiple of tiling={self.tiling} and at least 100, got {self.points}",
        )
        check(
            0 <= self.min_range < self.max_range <= 1000,
            f"domain.data needs 0 <= min_range < max_range <= 1000 metres, got {self.min_range:g}, {self.max_range:g}",
        )
        check(
            0 <= self.window <= self.max_range,
            f"domain.data.window must lie in 0..max_range={self.max_range:g} metres, got {self.window:g}",
        )
        check(
            self.source == "simulated" or self.map_voxel == 0.1,
            "domain.data.map_voxel belongs to simulated data: `fewstep lidar build-maps --voxel` decides for real data",
        )
        check(0.01 <= self.map_voxel <= 10, f"domain.data.map_voxel must lie in 0.01..10 m, got {self.map_voxel:g}")


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """The refiner's pairs (arXiv 2403.13470, section 3.4).

    ``up_factor``: points made of each. ``jitter`` and ``jitter_limit``: of the input, metres. ``target_points``: of the
    scene it is compared with.
    """

    up_factor: int = 6
    jitter: float = 0.2
    jitter_limit: float = 0.3
    target_points: int = 360_000

    def __post_init__(self) -> None:
        check(1 <= self.up_factor <= 64, f"domain.refiner.up_factor must be 1 to 64, got {self.up_factor}")
        check(
            self.jitter >= 0 and self.jitter_limit >= 0, "domain.refiner.jitter and jitter_limit must not be negative"
        )
        check(self.target_points >= 1, f"domain.refiner.target_points must be at least 1, got {self.target_points}")


@dataclass(frozen=True, kw_only=True)
class LidarConfig:
    """The lidar domain.

    ``teacher``: a network that came with the package, a run's folder, or one that ``export`` or ``convert`` wrote;
    empty when a teacher is trained. ``network``: of untrained ones. ``student``: ``denoiser``, or ``refiner`` for the
    recipe that trains one. ``train_encoder``: let students and fake scores change the scan encoder, which otherwise
    stays the teacher's. ``backend``: of sparse convolutions. ``judge_points``: of a scene, seen by preference metrics.
    """

    data: LidarDataConfig = LidarDataConfig()
    teacher: str = "streets"
    network: NetworkConfig = NetworkConfig()
    student: Literal["denoiser", "refiner"] = "denoiser"
    refiner: RefinerConfig = RefinerConfig()
    roles: RolesConfig = RolesConfig()
    train_encoder: bool = False
    backend: Literal["torch", "spconv"] = "torch"
    judge_points: int = 5000

    def __post_init__(self) -> None:
        check(self.judge_points >= 100, f"domain.judge_points must be at least 100, got {self.judge_points}")
