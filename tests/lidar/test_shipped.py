"""The networks that come with the package: small, and better than doing nothing on a street they have never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fewstep.lidar.artefacts import SHIPPED, find_network, sampling_of, shipped
from fewstep.lidar.completion import Completer, CompletionConfig
from fewstep.lidar.data.crops import ground_truth
from fewstep.lidar.data.maps import build_map
from fewstep.lidar.data.sequence import open_sequence
from fewstep.lidar.metrics.distances import chamfer
from fewstep.lidar.simulator.config import SensorConfig, StreetConfig
from fewstep.lidar.simulator.sequence import simulate_sequence

RANGE, POINTS = 15.0, 9000


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """Return a scan, and what the map says of its surroundings."""
    root: Path = tmp_path_factory.mktemp("street")
    sensor = SensorConfig(azimuth_step=0.5)
    drive = open_sequence(simulate_sequence(root, "00", 16, 9001, StreetConfig(speed=20.0), sensor))
    scan = drive.scan(8).xyz
    return scan, ground_truth(build_map(drive), drive.pose(8), scan, max_range=RANGE)


def distance(street: tuple[np.ndarray, np.ndarray], model: str, steps: int, refiner: str = "") -> float:
    scan, truth = street
    config = CompletionConfig(steps=steps, points=POINTS, max_range=RANGE)
    return chamfer(Completer(model, config, refiner=refiner)(scan).points, truth).value


def test_all_of_them_are_small_and_say_how_they_were_made():
    assert {"streets", "streets-student"} <= set(shipped("denoiser"))
    assert shipped("refiner") == ["streets-refiner"]
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*.safetensors")) < 5 * 2**20
    for name in (*shipped("denoiser"), *shipped("refiner")):
        assert "fewstep lidar " in (SHIPPED / name / "README.md").read_text(encoding="utf-8")


def test_the_teacher_has_no_plan_and_the_student_one():
    assert sampling_of(find_network("streets", "denoiser"))[0] is None
    plan, scale = sampling_of(find_network("streets-student", "denoiser"))
    assert plan is not None
    assert len(plan.times) == 1
    assert scale == 1


def test_the_student_in_one_step_is_closer_to_the_map_than_its_teacher_and_the_refiner_helps(street):
    student = distance(street, "streets-student", 1)
    assert student < 0.95 * distance(street, "streets", 1)
    assert distance(street, "streets-student", 1, "streets-refiner") < student
