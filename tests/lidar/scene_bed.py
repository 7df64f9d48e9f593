"""A data set of tiny simulated streets, networks that fit it, and the command line, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.cli.main import domain_main
from fewstep.core.training.checkpoint import checkpoints_in, read_checkpoint
from fewstep.lidar.clouds import read_cloud
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.files import save_denoiser, save_refiner
from fewstep.lidar.models.refiner import Refiner
from fewstep.lidar.models.unet import NetworkConfig
from fewstep.lidar.scenes import Scenes, load_scenes
from fewstep.lidar.settings import LidarDataConfig, SimulationConfig
from fewstep.lidar.simulator.config import SensorConfig, StreetConfig

NETWORK = NetworkConfig(resolution=0.5, channels=(8, 8, 8, 8, 8), up_channels=(8, 8, 8, 8), time_width=16)
TINY = SimulationConfig(
    sequences=2,
    held_out=1,
    scans=3,
    sensor=SensorConfig(beams=20, azimuth_step=2.0),
    street=StreetConfig(speed=15.0),
)
DATA = LidarDataConfig(simulation=TINY, points=400, window=8.0)
SETTINGS = (
    "domain.data.simulation.sequences=2",
    "domain.data.simulation.held_out=1",
    "domain.data.simulation.scans=3",
    "domain.data.simulation.sensor.beams=20",
    "domain.data.simulation.sensor.azimuth_step=2.0",
    "domain.data.simulation.street.speed=15.0",
    "domain.data.points=400",
    "domain.network.resolution=0.5",
    "domain.network.channels=[8,8,8,8,8]",
    "domain.network.up_channels=[8,8,8,8]",
    "domain.network.time_width=16",
    "domain.judge_points=100",
)
QUICK = ("train.batch=2", "train.eval_every=0", "train.preview_every=0", "train.ema.warmup=0", "train.ema.decay=0.5")


def lidar(*argv: object) -> int:
    """Run a command of the domain; the exit code."""
    return domain_main("lidar", [str(word) for word in argv])


def scenes(**changes: object) -> tuple[Scenes, Scenes]:
    """The scans to train on and those held out."""
    return load_scenes(replace(DATA, **changes))  # type: ignore[arg-type]


def randomised(module: nn.Module, scale: float, seed: int = 0) -> nn.Module:
    """Give a network other weights than those it was born with, and its last layer small ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def denoiser_folder(folder: Path, seed: int = 1, **facts: object) -> Path:
    """Write an untrained network as an export has it."""
    save_denoiser(LidarBackbone(NETWORK, seed), folder, facts)
    return folder


def refiner_folder(folder: Path, factor: int = 2) -> Path:
    """Write an untrained refiner."""
    save_refiner(Refiner(NETWORK, factor, seed=2), folder)
    return folder


def points_in(path: Path) -> np.ndarray:
    """The coordinates in a file."""
    return read_cloud(path).xyz


def newest(run: Path) -> dict[str, Tensor]:
    """All tensors of a run's newest checkpoint, as ``file/name``."""
    snapshot = read_checkpoint(checkpoints_in(run / "checkpoints")[0][1])
    return {f"{file}/{name}": value for file, tensors in snapshot.tensors.items() for name, value in tensors.items()}


def one_line(text: str, *parts: str) -> str:
    """Check that what was written to stderr is one line of an error that says ``parts``; return it."""
    lines = [line for line in text.splitlines() if line.startswith("fewstep:")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    for part in parts:
        assert part in lines[0], lines[0]
    return lines[0]


def nothing_half_written(folder: Path, names: Iterable[str] = ()) -> bool:
    """Whether a folder holds exactly the files of these names, hidden ones included."""
    found = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    return found == set(names)
