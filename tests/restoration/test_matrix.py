"""Recipes from the command line, on photos: a short training beats the shipped teacher at as many steps.

What is compared is the energy of detail: a teacher's single step is the mean of all it could be, and blurred.
"""

from __future__ import annotations

import pytest
from matrix import Cell, measured
from restoration.model_bed import restoration

SHORT = ("train.eval_every=0", "train.preview_every=0", "train.ema.decay=0.8", "train.batch=2", "optim.warmup=0")

CELLS = {
    "tad-sr": Cell("tad-sr-photos", (1,), ("train.steps=25", "optim.lr=1e-3")),
    "consistency": Cell("consistency-photos", (1,), ("train.steps=40", "optim.lr=1e-3")),
    "sid": Cell("sid-photos", (1,), ("train.steps=40", "optim.lr=1e-3")),
    "sinsr": Cell("sinsr-photos", (1,), ("train.steps=60", "optim.lr=1e-3")),
    "vsd": Cell("vsd-photos", (1,), ("train.steps=40", "optim.lr=1e-3")),
}


@pytest.mark.parametrize(
    "recipe", ["tad-sr", *(pytest.param(recipe, marks=pytest.mark.slow) for recipe in CELLS if recipe != "tad-sr")]
)
def test_a_short_training_beats_the_teacher_at_the_same_steps(recipe, tmp_path):
    cell, run = CELLS[recipe], tmp_path / "run"
    assert restoration("train", "--config", cell.config, "--out", run, *cell.overrides, *SHORT) == 0
    assert restoration("eval", run, "-n", "6", "--teacher-steps", "1") == 0
    found = measured(run / "evaluation.json", "spectrum")
    assert found["student"][1] < 0.8 * found["teacher"][1]
