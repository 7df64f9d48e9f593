"""A run opened from its folder: averaged weights, the newest checkpoint that verifies, counted evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.domain import find_domain
from fewstep.core.errors import UserError
from fewstep.core.image.settings import ImageConfig, NetworkConfig
from fewstep.core.recipe import RoleSpec, StepPlan
from fewstep.core.training import opened as opened_module
from fewstep.core.training.config import load_config
from fewstep.core.training.loop import train
from fewstep.core.training.opened import assemble, draw_student, draw_teacher, open_run
from fewstep.core.training.world import World

SETTINGS = (
    "train.steps=3", "train.batch=4", "train.checkpoint_every=1", "train.keep_checkpoints=3", "train.log_every=1",
    "optim.lr=0.01", "domain.neighbours=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    domain, folder = find_domain("image"), tmp_path_factory.mktemp("teacher") / "tiny"
    config = ImageConfig(teacher="", network=NetworkConfig(widths=(8,)))
    problem = domain.build(config, (RoleSpec("student", init="fresh"),), 0, "cpu")
    problem.export(problem.actors.denoiser("student"), StepPlan(times=(999.0,)), folder, {})
    return folder


@pytest.fixture
def run(teacher, tmp_path):
    settings = ("recipe.name=tdm", "recipe.student_steps=2", f"domain.teacher={teacher}", *SETTINGS)
    config = load_config(None, settings, domain=find_domain("image"))
    made = assemble(config, World())
    train(config, made.problem, made.recipe, tmp_path / "run", stream=None)
    return tmp_path / "run"


def weights(folder: Path, step: int, what: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "checkpoints" / f"step-{step}" / f"{what}.safetensors")


def test_the_student_has_its_averaged_weights(run):
    found = open_run(run, World())
    assert found.step == 3
    average, live = weights(run, 3, "ema.student"), weights(run, 3, "role.student")
    own = found.problem.actors.module("student").state_dict()
    name = next(key for key in live if key.endswith("conv_out.weight"))
    (kept,) = [value for key, value in average.items() if key.endswith(name)]
    assert torch.equal(own[name], kept)
    assert not torch.equal(own[name], live[name])
    assert not found.problem.actors.module("student").training


def test_a_damaged_checkpoint_is_passed_over(run):
    (run / "checkpoints" / "step-3" / "role.student.safetensors").write_bytes(b"x")
    assert open_run(run, World()).step == 2
    for step in (1, 2):
        (run / "checkpoints" / f"step-{step}" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint to load.*step-3"):
        open_run(run, World())


def test_a_checkpoint_may_be_named_and_no_other_takes_its_place(run):
    found = open_run(run, World(), step=2)
    assert found.step == 2
    average = weights(run, 2, "ema.student")
    own = found.problem.actors.module("student").state_dict()
    name = next(key for key in own if key.endswith("conv_out.weight"))
    assert torch.equal(own[name], next(value for key, value in average.items() if key.endswith(name)))
    with pytest.raises(UserError, match="no checkpoint of step 7 to load; kept are: 3, 2, 1"):
        open_run(run, World(), step=7)
    (run / "checkpoints" / "step-2" / "role.student.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no checkpoint of step 2 to load: step-2 refused.*kept are"):
        open_run(run, World(), step=2)


def test_samples_depend_on_their_index_and_the_seed_only(run, monkeypatch):
    found = open_run(run, World())
    whole = draw_student(found, 7, seed=3)
    monkeypatch.setattr(opened_module, "CHUNK", 2)
    pieces = draw_student(found, 5, seed=3)
    assert_close(pieces.samples, whole.samples[:5], atol=1e-5, rtol=1e-5)
    assert whole.cond["label"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert (draw_student(found, 5, seed=4).samples - pieces.samples).abs().max() > 1e-3
    assert whole.ms_per_sample > 0


def test_network_evaluations_are_counted(run):
    found = open_run(run, World())
    assert draw_student(found, 5, seed=0).evaluations == 2
    assert draw_teacher(found, 5, seed=0, steps=3).evaluations == 3
    assert draw_teacher(found, 5, seed=0, steps=3, solver="heun").evaluations == 5
    guided = open_run(run, World(), ["recipe.guidance_scale=2.0"])
    assert draw_teacher(guided, 5, seed=0, steps=3).evaluations == 6
    with pytest.raises(UserError, match="made for 2 step"):
        draw_student(found, 5, seed=0, steps=4)


def test_a_recipe_without_teacher_has_nothing_to_compare_with():
    settings = ("recipe.name=diffusion", "domain.teacher=", "domain.network.widths=[8]")
    made = assemble(load_config(None, settings, domain=find_domain("image")), World())
    assert not made.has_teacher()
    with pytest.raises(UserError, match="no teacher"):
        draw_teacher(made, 2, seed=0, steps=1)
