"""Every recipe, from the command line, on digits: a short training beats the teacher at as many steps."""

from __future__ import annotations

import pytest
from matrix import Cell, measured

from fewstep.core.cli.main import main

SHORT = ("train.eval_every=0", "train.preview_every=0", "train.ema.decay=0.9")

CELLS = {
    "dmd2": Cell("dmd2-digits", (1,), ("train.steps=30",)),
    "sid": Cell("sid-digits", (1,), ("train.steps=30",)),
    "sim": Cell("sim-digits", (1,), ("train.steps=30",)),
    "diff-instruct": Cell("diff-instruct-digits", (1,), ("train.steps=30",)),
    "vsd": Cell("vsd-digits", (1,), ("train.steps=30",)),
    "f-distill": Cell("f-distill-digits", (1,), ("train.steps=30",)),
    "uni-instruct": Cell("uni-instruct-digits", (1,), ("train.steps=30",)),
    "distillation-dpo": Cell("distillation-dpo-digits", (1,), ("train.steps=30",)),
    "ladd": Cell("ladd-digits", (1,), ("train.steps=30",)),
    "tdm": Cell("tdm-digits", (4,), ("train.steps=40",)),
    "consistency": Cell("consistency-digits", (2,), ("train.steps=40",)),
    "tcd": Cell("tcd-digits", (2, 4), ("train.steps=40",)),
    "scm": Cell("scm-digits", (2,), ("train.steps=40",)),
    "progressive": Cell("progressive-digits", (2,), ("train.steps=60", "recipe.round_steps=20")),
}


QUICK = ("dmd2", "consistency")  # one of each kind


@pytest.mark.parametrize("recipe", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CELLS])
def test_a_short_training_beats_the_teacher_at_the_same_steps(recipe, tmp_path):
    cell, run = CELLS[recipe], tmp_path / "run"
    train = ["image", "train", "--config", cell.config, "--out", str(run), *cell.overrides, *SHORT]
    counts = ",".join(map(str, cell.steps))
    assert main(train) == 0
    assert main(["image", "eval", str(run), "-n", "600", "--steps", counts, "--teacher-steps", counts]) == 0
    found = measured(run / "evaluation.json")
    for steps in cell.steps:
        assert found["student"][steps] < 0.8 * found["teacher"][steps]
