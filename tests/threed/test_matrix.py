"""Recipes from the command line: a short training of a scene comes nearer to the truth than the teacher's one step.

What is compared are silhouettes: a single step of the teacher leaves a grey background.
"""

from __future__ import annotations

import pytest
from matrix import Cell, measured
from threed.scene_bed import threed

SHORT = ("train.eval_every=0", "train.preview_every=0", "domain.scene.kind=gaussians", "domain.scene.count=400",
         "train.batch=2", "optim.lr=1e-2")  # fmt: skip

CELLS = {
    "sds": Cell("sds-solids", (1,), ("train.steps=80",)),
    "vsd": Cell("vsd-solids", (1,), ("train.steps=60",)),
}


@pytest.mark.parametrize("recipe", ["sds", pytest.param("vsd", marks=pytest.mark.slow)])
def test_a_short_training_beats_the_teacher_at_the_same_steps(recipe, tmp_path):
    cell, run = CELLS[recipe], tmp_path / "run"
    assert threed("train", "--config", cell.config, "--out", run, *cell.overrides, *SHORT) == 0
    assert threed("eval", run, "-n", "8", "--teacher-steps", "1", "--as-run") == 0
    found = measured(run / "evaluation.json", "silhouette_iou")
    assert found["student"][1] > found["teacher"][1] + 0.2
