"""Six steps are three, a pause and three more: bit for bit, for every recipe."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from core.runs import build, child_environment, config_of, differences, go, newest

from fewstep.core.recipes import BUILT_IN
from fewstep.core.training.checkpoint import Snapshot, checkpoints_in, read_checkpoint, write_checkpoint
from fewstep.core.training.trackers import read_metrics

RECIPES = sorted(BUILT_IN)
TIMES = ("time/seconds_per_step", "time/training")


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """Nobody pulls the plug in these tests."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def pieces(tmp_path: Path, name: str, *overrides: str) -> tuple[Path, Path]:
    """Run six steps at once, and in two halves; returns both folders."""
    settings = ["train.log_every=1", "domain.network.dropout=0.1", *overrides]
    whole = config_of(*settings, recipe=name)
    half = config_of(*settings, "train.steps=6", "train.checkpoint_every=3", "train.keep_checkpoints=9", recipe=name)
    go(whole, tmp_path / "whole")
    go(half, tmp_path / "halves")
    rewind(tmp_path / "halves", 3)
    _, text = go(half, tmp_path / "halves", resume=True)
    assert "resuming from step-3" in text
    return tmp_path / "whole", tmp_path / "halves"


def rewind(folder: Path, step: int) -> None:
    """Forget the checkpoints after ``step``: what a kill before the next one leaves."""
    for found, path in checkpoints_in(folder / "checkpoints"):
        if found > step:
            shutil.rmtree(path)


@pytest.mark.parametrize("name", RECIPES)
def test_resume_is_bit_exact(tmp_path, name):
    whole, halves = pieces(tmp_path, name)
    a, b = newest(whole), newest(halves)
    assert differences(a, b) == []
    assert any(key.startswith("optimizer") for key in a)
    drop = {"step", *TIMES}
    lines = [[{k: v for k, v in line.items() if k not in drop} for line in read_metrics(f)] for f in (whole, halves)]
    assert lines[0] == lines[1]


OTHER = [
    ["domain.roles.mode=lora"],
    ["optim.name=radam"],
    ["optim.name=sgd", "optim.momentum=0.9"],
    ["train.precision=fp16"],
    ["train.ema.kind=power"],
    ["optim.schedule=cosine", "optim.warmup=2"],
    ["train.log_every=4"],
]


@pytest.mark.parametrize("overrides", OTHER, ids=lambda settings: settings[0])
def test_resume_is_bit_exact_under_other_settings(tmp_path, overrides):
    whole, halves = pieces(tmp_path, "toy", *overrides)
    assert differences(newest(whole), newest(halves)) == []
    a, b = (
        [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder)]
        for folder in (whole, halves)
    )
    assert a == b


def test_other_steps_give_other_weights(tmp_path):
    """The comparison above can fail: an optimizer that is forgotten shows."""
    config = config_of()
    go(config, tmp_path / "whole")
    go(config_of("train.steps=3"), tmp_path / "halves")
    path = tmp_path / "halves/checkpoints/step-3"
    read = read_checkpoint(path)
    tensors = dict(read.tensors) | {"optimizer.student": {}}
    state = {key: value for key, value in read.state.items() if key not in ("format", "step")}
    write_checkpoint(path.parent, 3, Snapshot(tensors, state))
    go(config, tmp_path / "halves", resume=True)
    assert differences(newest(tmp_path / "whole"), newest(tmp_path / "halves")) != []


def test_metrics_of_lost_steps_are_dropped(tmp_path):
    config = config_of("train.steps=6", "train.log_every=1", "train.checkpoint_every=2", "train.keep_checkpoints=9")
    go(config, tmp_path / "run")
    rewind(tmp_path / "run", 2)
    with open(tmp_path / "run/metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 7, "loss/cut')  # what a kill in the middle of a line leaves
    go(config, tmp_path / "run", resume=True)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    config = config_of()
    go(config, tmp_path / "run")
    before = newest(tmp_path / "run")
    outcome, _ = go(config, tmp_path / "run", resume=True)
    assert (outcome.steps, outcome.stopped) == (6, False)
    assert differences(before, newest(tmp_path / "run")) == []
    outcome, _ = go(config_of("train.steps=8"), tmp_path / "run", resume=True)
    assert outcome.steps == 8


def test_a_run_stopped_before_its_first_checkpoint_starts_again(tmp_path):
    config = config_of()
    go(config, tmp_path / "whole")
    go(config, tmp_path / "run")
    rewind(tmp_path / "run", 0)
    _, text = go(config, tmp_path / "run", resume=True)
    assert "no checkpoint yet: starting from step 0" in text
    assert differences(newest(tmp_path / "whole"), newest(tmp_path / "run")) == []


CHILD = """
import sys, threading, os, signal
from pathlib import Path
from core.runs import config_of, build, go
from core.toys import ToyRecipe

class Announcing(ToyRecipe):
    def after_step(self, step):
        super().after_step(step)
        if step == 2:
            print("ready", flush=True)

config = config_of("train.steps=1000000")
problem, _ = build(config)
outcome, text = go(config, Path(sys.argv[1]), problem=problem, recipe=Announcing(config.recipe, problem.actors))
print(text, outcome.stopped)
"""


def test_sigterm_from_outside_saves_and_exits_cleanly(tmp_path):
    command = [sys.executable, "-c", CHILD, tmp_path / "run"]
    child = subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    text, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert "stopped by a signal" in text
    assert text.endswith("True\n")
    steps = int(next((tmp_path / "run/checkpoints").iterdir()).name.removeprefix("step-"))
    config = config_of(f"train.steps={steps}")
    go(config, tmp_path / "whole")
    assert differences(newest(tmp_path / "run"), newest(tmp_path / "whole")) == []


def test_the_teacher_is_not_saved_and_stays_what_it_was(tmp_path):
    config = config_of("domain.roles.mode=lora")
    problem, recipe = build(config)
    teacher = problem.actors.denoiser("teacher")
    x, t = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 50.0, 99.0])
    cond = {"label": torch.tensor([0, 1, 2])}
    before = teacher.eps(x, t, cond)
    go(config, tmp_path / "run", problem=problem, recipe=recipe)
    assert torch.equal(teacher.eps(x, t, cond), before)
    assert not any(name.startswith("role.teacher") for name in newest(tmp_path / "run"))
