"""Recipes from the command line, in the drawn world: a short training beats the shipped teacher at as many steps.

What is compared are whole clips: a teacher's single step is nearly the mean of them all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from matrix import Cell, measured

from fewstep.core.cli.main import main

SHORT = ("train.batch=4", "train.ema.decay=0.8", "optim.lr=5e-4", "train.sample_steps=[1]", "train.eval_every=0",
         "train.preview_every=0", "train.checkpoint_every=0")  # fmt: skip

CELLS = {
    "consistency": Cell("consistency-world", (1,), ("train.steps=12",)),
    "dmd2": Cell("dmd2-world", (1,), ("train.steps=8", "recipe.student_steps=1")),
    "motion-consistency": Cell("motion-consistency-world", (1,), ("train.steps=12",)),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips and pictures, and the clips' latents."""
    folder = tmp_path_factory.mktemp("world")
    assert main(["video", "draw", str(folder / "drawn"), "--clips", "64", "--images", "64", "--objects", "1"]) == 0
    prepare = ["video", "prepare", "--teacher", "world", "--size", "32x32x8"]
    assert main([*prepare, "--data", str(folder / "drawn" / "videos"), "--out", str(folder / "latents")]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CELLS)
def test_a_short_training_beats_the_teacher_at_the_same_steps(recipe: str, world: Path, tmp_path: Path) -> None:
    cell, run, drawn = CELLS[recipe], tmp_path / "run", world / "drawn"
    places = [f"domain.data.path={world / 'latents'}", f"domain.evaluation.clips={drawn}"]
    if recipe == "motion-consistency":
        places.append(f"domain.images.path={drawn / 'images'}")
    assert main(["video", "train", "--config", cell.config, "--out", str(run), *cell.overrides, *places, *SHORT]) == 0
    counts = ",".join(map(str, cell.steps))
    assert main(["video", "eval", str(run), "-n", "32", "--steps", counts, "--teacher-steps", counts]) == 0
    found = measured(run / "evaluation.json", "frechet_video")
    for steps in cell.steps:
        assert found["student"][steps] < 0.4 * found["teacher"][steps]
