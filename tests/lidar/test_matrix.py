"""Recipes from the command line, on simulated streets: a short training beats the shipped teacher at as many steps."""

from __future__ import annotations

import pytest
from matrix import Cell, measured

from fewstep.core.cli.main import main

STREETS = (
    "domain.data.simulation.sequences=2",
    "domain.data.simulation.held_out=1",
    "domain.data.simulation.scans=10",
    "domain.data.simulation.sensor.beams=32",
    "domain.data.simulation.street.speed=20.0",
    "domain.data.points=3000",
    "domain.data.window=6.0",
)
SHORT = ("train.eval_every=0", "train.preview_every=0")

CELLS = {
    "scorelidar": Cell("scorelidar-streets", (1,), ("train.steps=30", "recipe.point_weight=0")),
}


@pytest.mark.slow  # tests/lidar/test_training.py has a shorter one
@pytest.mark.parametrize("recipe", CELLS)
def test_a_short_training_beats_the_teacher_at_the_same_steps(recipe, tmp_path):
    cell, run = CELLS[recipe], tmp_path / "run"
    train = ["lidar", "train", "--config", cell.config, "--out", str(run), *cell.overrides, *STREETS, *SHORT]
    counts = ",".join(map(str, cell.steps))
    assert main(train) == 0
    looking = ["-n", "4", "--steps", counts, "--teacher-steps", counts]
    assert main(["lidar", "eval", str(run), *looking]) == 0
    found = measured(run / "evaluation.json", "Chamfer distance")
    for steps in cell.steps:
        assert found["student"][steps] < 0.95 * found["teacher"][steps]
