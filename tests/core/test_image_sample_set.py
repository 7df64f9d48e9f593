"""A set of images as the student: which images a step sees, and score distillation that makes digits of noise."""

from __future__ import annotations

import json

import pytest
import torch

from fewstep.core.cli.main import main
from fewstep.core.image.sample_set import SampleSet
from fewstep.core.recipe import Batch
from fewstep.core.rng import Rng


def test_steps_go_round_the_set_whatever_the_split():
    images = SampleSet(20, (1, 8, 8), 10, seed=0)
    whole = images.generate(Batch(8), Rng.for_batch(0, 1, 8))
    assert torch.equal(whole[0], images.images[8:16])
    assert whole[1]["label"].tolist() == [8, 9, 0, 1, 2, 3, 4, 5]
    part = images.generate(Batch(3), Rng.for_batch(0, 1, 8).select(2, 5))
    assert torch.equal(part[0], whole[0][2:5])
    wrapped, _ = images.generate(Batch(8), Rng.for_batch(0, 2, 8))
    assert torch.equal(wrapped[4:], images.images[:4])


def test_only_the_images_of_a_step_get_a_gradient():
    images = SampleSet(20, (1, 8, 8), 0, seed=0)
    x, cond = images.generate(Batch(8), Rng.for_batch(0, 0, 8))
    x.sum().backward()
    assert cond == {}
    assert images.images.grad is not None
    assert torch.equal(images.images.grad[:8], torch.ones(8, 1, 8, 8))
    assert not images.images.grad[8:].any()


@pytest.mark.slow
def test_score_distillation_turns_noise_into_digits_of_the_class_asked_for(tmp_path):
    run = tmp_path / "run"
    short = ["train.steps=80", "recipe.time.anneal_steps=60", "train.eval_every=0", "train.preview_every=0"]
    assert main(["image", "train", "--config", "sds-digits", "--out", str(run), *short]) == 0
    assert main(["image", "eval", str(run), "-n", "100", "--teacher-steps", "1"]) == 0
    student = json.loads((run / "evaluation.json").read_text())["rows"][0]
    assert student["accuracy"] > 0.9


def test_a_recipe_that_needs_a_network_refuses_a_set_of_images(tmp_path, capsys):
    command = ["image", "train", "--config", "consistency-digits", "--out", str(tmp_path / "run")]
    assert main([*command, "domain.sample_set=20"]) == 2
    assert "role 'student' must be a denoiser" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
