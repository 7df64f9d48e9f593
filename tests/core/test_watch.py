"""What a domain sees in previews: told with the newest numbers, logged, and able to end the run."""

from __future__ import annotations

import pytest
from core.runs import build, config_of, go

from fewstep.core.domain import Seen
from fewstep.core.errors import TrainingError
from fewstep.core.training.trackers import read_metrics

SETTINGS = ("train.preview_every=2", "train.sample_steps=[1,3]", "train.checkpoint_every=1")


def test_it_sees_every_preview_and_its_words_and_numbers_are_kept(tmp_path):
    problem, recipe = build(config := config_of(*SETTINGS))
    looks = []

    def watch(step, rows, logged):
        assert (tmp_path / "run" / "previews" / f"step-{step:07d}.png").is_file()
        looks.append((step, [label for label, _ in rows], dict(logged)))
        return Seen([f"step {step}: looks odd"], {"watch/amount": float(step)})

    problem.watch = watch
    _, printed = go(config, tmp_path / "run", problem=problem, recipe=recipe)
    assert [step for step, _, _ in looks] == [0, 2, 4, 6]
    assert looks[0][1][-2:] == ["student, 1 step", "student, 3 steps"]
    assert "loss/student/match" not in looks[0][2]
    reports = [line for line in read_metrics(tmp_path / "run") if "loss/student/match" in line]
    assert looks[1][2]["loss/student/match"] == reports[0]["loss/student/match"]
    assert [line["watch/amount"] for line in read_metrics(tmp_path / "run") if "watch/amount" in line] == [0, 2, 4, 6]
    assert printed.count("looks odd") == 4


def test_it_can_end_the_run_before_the_collapse_is_saved(tmp_path):
    problem, recipe = build(config := config_of(*SETTINGS))

    def watch(step, rows, logged):
        if step == 4:
            raise TrainingError("collapse")
        return Seen()

    problem.watch = watch
    with pytest.raises(TrainingError, match="collapse"):
        go(config, tmp_path / "run", problem=problem, recipe=recipe)
    saved = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert "step-3" in saved
    assert "step-4" not in saved
