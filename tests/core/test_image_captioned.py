"""The shipped text-to-image teacher is what its card says, and LoRA students of it beat it at their number of steps."""

from __future__ import annotations

import pytest
import torch
from matrix import measured
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.cli.main import main
from fewstep.core.denoiser import Cond, batch_of
from fewstep.core.domain import Problem
from fewstep.core.image.autoencoder import restoration_error
from fewstep.core.image.captioned import coloured
from fewstep.core.image.data import DataConfig, load_data
from fewstep.core.image.domain import DOMAIN
from fewstep.core.image.settings import ImageConfig
from fewstep.core.image.teacher import SHIPPED, shipped_pipelines
from fewstep.core.models.loading import Teacher
from fewstep.core.prediction import Kind
from fewstep.core.process import VP
from fewstep.core.recipe import RoleSpec, StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import teacher_sample

NAME = "captioned-digits"
CAPTION = "the digit {}"
MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def shipped() -> Teacher:
    return Teacher.find(str(SHIPPED / NAME))


@pytest.fixture(scope="module")
def problem() -> Problem:
    config = ImageConfig(teacher=NAME, data=DataConfig(caption=CAPTION, holdout=0.2), neighbours=0)
    return DOMAIN.build(config, (RoleSpec("teacher", init="frozen"),), 0, "cpu")


def draw(problem: Problem, steps: int, n: int) -> tuple[Tensor, Cond]:
    cond = problem.conditions(n, 0)
    teacher, shape = problem.actors.denoiser("teacher"), problem.actors.shape
    parts = [
        teacher_sample(
            teacher, shape, batch_of(cond, at, at + 100), Rng(0, 0, tuple(range(at, at + 100)), "draw"), steps=steps
        )
        for at in range(0, n, 100)
    ]
    return torch.cat(parts), cond


def test_the_shipped_pipeline_is_what_its_card_says(shipped):
    assert NAME in shipped_pipelines()
    process, kind = shipped.reading()
    assert isinstance(process, VP)
    assert kind == Kind.V
    assert shipped.shape == (4, 4, 4)
    assert (shipped.size.height, shipped.size.width) == (8, 8)
    scheduler = shipped.folder.config("scheduler")
    assert (scheduler["beta_schedule"], scheduler["num_train_timesteps"]) == ("scaled_linear", 1000)
    files = [file for file in (SHIPPED / NAME).rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md"}
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
    weights = sum(p.numel() for p in shipped.folder.load("unet").parameters())
    assert weights > 1_500_000


def test_the_autoencoder_keeps_digits_and_its_latents_have_unit_spread(shipped):
    codec, data = shipped.vae(), load_data(DataConfig(holdout=0.2))
    held_out = data.reference[: len(data.reference) - len(data.source)]
    # digits spread by 0.75 around their mean
    assert restoration_error(codec.vae, held_out.expand(-1, 3, -1, -1)) < 0.15
    latents = codec.encode(coloured(data.source, Rng.for_batch(0, 0, 256)))
    assert float(latents.std()) == pytest.approx(1, abs=0.1)


def test_half_precision_keeps_the_shipped_weights_bit_for_bit(shipped, problem, tmp_path):
    """What is shipped was exported in float16: another export loses nothing, in half precision or in full."""
    teacher, plan = problem.actors.denoiser("teacher"), StepPlan(times=(999.0,))
    weights = "unet/diffusion_pytorch_model.safetensors"
    before = load_file(SHIPPED / NAME / weights)
    assert {value.dtype for value in before.values()} == {torch.float16}
    for form, dtype in (("pipeline-fp16", torch.float16), ("pipeline", torch.float32)):
        problem.export_as[form](teacher, plan, tmp_path / form, {"name": NAME})
        after = load_file(tmp_path / form / weights)
        assert {value.dtype for value in after.values()} == {dtype}
        assert all(torch.equal(after[name].half(), value) for name, value in before.items())
        assert Teacher.find(str(tmp_path / form)).shape == shipped.shape


@torch.no_grad()
def test_the_teacher_draws_what_the_caption_says_and_better_in_eight_steps_than_in_one(problem):
    found = {steps: problem.evaluate(*draw(problem, steps, 200)) for steps in (1, 8)}
    assert found[8]["frechet"] < 0.5 * found[1]["frechet"]
    assert found[8]["accuracy"] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("method", "steps"), [("dmd2", 1), ("tdm", 4)])
def test_students_trained_for_a_short_time_beat_the_teacher_at_their_number_of_steps(method, steps, tmp_path):
    run = tmp_path / method
    short = ("train.steps=80", "train.eval_every=0", "train.preview_every=0", "train.ema.decay=0.9")
    assert main(["image", "train", "--config", f"{method}-{NAME}", "--out", str(run), *short]) == 0
    assert main(["image", "eval", str(run), "-n", "600", "--teacher-steps", f"{steps}"]) == 0
    found = measured(run / "evaluation.json")
    assert found["student"][steps] < 0.8 * found["teacher"][steps]
