"""DeepSpeed's ZeRO through the shipped launch config: the numbers of one process."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from core.runs import ZERO, build, child_environment, config_of, go, newest
from core.zero_processes import BAD, broken

pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")
pytestmark = pytest.mark.slow


def assert_close(a: Path, b: Path) -> None:
    """Masters are float32, and the two sums over the batch differ in their order."""
    mine, theirs = newest(a), newest(b)
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(theirs[name], mine[name], rtol=1e-4, atol=2e-6, msg=name)


def test_stages_recipes_and_changes_of_the_number_of_processes(tmp_path):
    go(config_of(*ZERO, "train.steps=4"), tmp_path / "grows")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file"]
    config = str(files("fewstep.core") / "launch" / "zero2.yaml")
    environment = {**child_environment(), "CUDA_VISIBLE_DEVICES": ""}
    script = [Path(__file__).with_name("zero_processes.py"), tmp_path]
    done = subprocess.run(
        [*launch, config, *script], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    go(config_of(*ZERO), tmp_path / "shrinks", resume=True)
    go(config_of(*ZERO), tmp_path / "one")
    for folder in ("toy-1", "toy-2", "shrinks", "grows"):
        assert_close(tmp_path / "one", tmp_path / folder)
    go(config_of(*ZERO, "domain.roles.mode=lora"), tmp_path / "one-lora")
    assert_close(tmp_path / "one-lora", tmp_path / "lora")
    for recipe in ("dmd2", "progressive"):
        go(config_of(*ZERO, recipe=recipe), tmp_path / f"one-{recipe}")
        assert_close(tmp_path / f"one-{recipe}", tmp_path / recipe)
    config = config_of(*ZERO, BAD)
    problem, _ = build(config)
    outcome, _ = go(config, tmp_path / "one-bad", problem=problem, recipe=broken(config, problem))
    assert outcome.bad_updates == 2
    assert_close(tmp_path / "one-bad", tmp_path / "bad")
    for rank in (0, 1):
        assert "use launch/fsdp2.yaml" in (tmp_path / f"said-{rank}.txt").read_text()
