"""Text-to-image pipelines as judges: latents with gradient, prompts that follow the camera, recipes on them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from threed.judge_bed import QUIET, SMALL, camera_at, true_views
from threed.scene_bed import difference, grad_norms, threed

from fewstep.core.errors import UserError
from fewstep.core.guidance import guidance_terms, plain, told
from fewstep.core.models.family import Size
from fewstep.core.models.loading import Teacher
from fewstep.core.models.settings import ModelConfig
from fewstep.core.training.trackers import read_metrics
from fewstep.threed.cameras import ViewRanges
from fewstep.threed.judges import repeated
from fewstep.threed.scenes.splats import GaussianScene
from fewstep.threed.settings import JudgeConfig, ThreedConfig
from fewstep.threed.teachers.directions import DirectionConfig
from fewstep.threed.teachers.latent import LatentJudge
from fewstep.threed.teachers.opening import open_judge, teacher_process
from fewstep.threed.teachers.spaces import Latents

FOUR = camera_at((0, 10), (90, 10), (180, 10), (30, 80))
SAID = ("a red cone, front view", "a red cone, side view", "a red cone, back view", "a red cone, overhead view")


def config(**settings):
    return ThreedConfig(teacher="tiny:sd", judge=JudgeConfig(**settings))


@pytest.fixture(scope="module")
def judge():
    return open_judge(config())


@pytest.fixture(scope="module")
def embedded():
    """Prompts by what they say."""
    texts = [*SAID, "a red cone", "ugly"]
    return dict(zip(texts, Teacher.find("tiny:sd").encode(texts).cond["prompt_embeds"], strict=True))


def four(judge, prompt="a red cone"):
    return judge.told(FOUR, repeated(judge.encode([prompt]), 4))


def test_a_name_of_a_pipeline_is_a_judge_with_its_process(judge):
    assert isinstance(judge, LatentJudge)
    assert (judge.views, judge.size, judge.shape) == (1, 16, (4, 8, 8))
    assert judge.ranges == ThreedConfig().cameras
    assert type(teacher_process(config())) is type(judge.process)


def test_a_prompt_says_where_the_camera_is(judge, embedded):
    cond = four(judge)
    for row, text in enumerate(SAID):
        assert difference(cond["prompt_embeds"][row], embedded[text]) < 1e-5, text
        assert difference(told(cond, "fake")["prompt_embeds"][row], embedded["a red cone"]) < 1e-5
    assert set(plain(cond)) == {"prompt_embeds"}


def test_without_words_all_views_are_told_the_same(embedded):
    cond = four(open_judge(config(directions=DirectionConfig(words=()))))
    assert set(cond) == {"prompt_embeds"}
    assert all(difference(row, embedded["a red cone"]) < 1e-5 for row in cond["prompt_embeds"])


def test_perp_neg_puts_its_negatives_into_the_condition(embedded):
    judge = open_judge(config(directions=DirectionConfig(perp_neg=True)))
    cond = four(judge)
    for row, text in enumerate(SAID):
        assert difference(cond["prompt_embeds"][row], embedded[text]) < 1e-4, text
    assert difference(cond["negative/prompt_embeds"][2, 0], embedded[SAID[1]]) < 1e-5
    assert difference(cond["negative/prompt_embeds"][2, 1], embedded[SAID[0]]) < 1e-5
    terms = guidance_terms(judge.teacher, cond)
    assert len(terms.conds) == 4  # the prompt, none, two negatives
    between = judge.told(camera_at((45, 0)), judge.encode(["a red cone"]))
    assert difference(between["prompt_embeds"][0], (embedded[SAID[0]] + embedded[SAID[1]]) / 2) < 1e-5


def test_a_negative_prompt_comes_with_the_condition(embedded):
    judge = open_judge(config(negative="ugly"))
    cond = four(judge)
    assert cond["negative/prompt_embeds"].shape[:2] == (4, 1)
    assert difference(cond["negative/prompt_embeds"][3, 0], embedded["ugly"]) < 1e-5
    assert difference(cond["prompt_embeds"][1], embedded[SAID[1]]) < 1e-5
    with pytest.raises(UserError, match="both negative"):
        open_judge(config(negative="ugly", directions=DirectionConfig(perp_neg=True)))


def test_latents_are_those_of_the_autoencoder(judge):
    seen = true_views("a red cone", FOUR)
    vae = Teacher.find("tiny:sd").folder.load("vae")
    expected = vae.encode(2 * seen.rgb - 1).latent_dist.mode() * vae.config.scaling_factor
    assert difference(judge.x0(seen, FOUR), expected) < 1e-6
    decoded = vae.decode(expected / vae.config.scaling_factor).sample
    assert difference(judge.pictures(expected), (decoded / 2 + 0.5).clamp(0, 1)) < 1e-5


def test_renders_of_another_size_are_resized_there_and_back():
    judge = open_judge(config(size=24))
    camera = camera_at((0, 0), size=24)
    seen = true_views("a red cone", camera)
    assert (judge.size, judge.shape) == (24, (4, 8, 8))
    assert judge.x0(seen, camera).shape == (1, 4, 8, 8)
    assert judge.pictures(judge.x0(seen, camera)).shape == seen.rgb.shape
    flat = replace(seen, rgb=torch.full_like(seen.rgb, 0.4))
    small = replace(seen, rgb=torch.full((1, 3, 16, 16), 0.4))
    assert difference(judge.x0(flat, camera), judge.x0(small, camera)) < 1e-6


def test_the_gradient_goes_through_the_autoencoder():
    found = Teacher.find("tiny:sd")
    space = Latents.of_teacher(found)
    space.vae.double()
    seen = true_views("a red cone", FOUR.select(0, 1))
    rgb, way = (0.8 * seen.rgb.double()).requires_grad_(), torch.randn(1, 3, 16, 16, dtype=torch.float64)

    def value(pixels):
        return space.of(replace(seen, rgb=pixels), FOUR.select(0, 1)).square().sum()

    (gradient,) = torch.autograd.grad(value(rgb), rgb)
    with torch.no_grad():
        along = (value(rgb + 1e-6 * way) - value(rgb - 1e-6 * way)) / 2e-6
    assert abs(float((gradient * way).sum() / along) - 1) < 1e-6
    scene = GaussianScene.ball(20, 0.5, 0, seed=0)
    space.vae.float()
    space.of(scene.views(FOUR), FOUR).square().sum().backward()
    assert {name for name, norm in grad_norms(scene).items() if norm == 0} <= {"stored.quaternions"}
    assert not any(parameter.grad is not None for parameter in space.vae.parameters())


@pytest.mark.parametrize(
    ("prompt", "why"), [(" ", "empty prompt"), ("a red cone with a very long description", "has .* tokens.* reads 24")]
)
def test_prompts_it_cannot_read_are_refused(judge, prompt, why):
    with pytest.raises(UserError, match=why) as caught:
        judge.encode(["a red cone", prompt])
    assert "\n" not in str(caught.value)


def test_teachers_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="makes videos"):
        open_judge(replace(config(), teacher="tiny:wan"))
    near = ViewRanges(relative_distance=(0.1, 0.2), fov_y_deg=(40.0, 40.0))
    with pytest.raises(UserError, match="inside the object"):
        open_judge(replace(config(), cameras=near))
    with pytest.raises(UserError, match="square"):
        open_judge(replace(config(), model=ModelConfig(height=16, width=32)))
    with pytest.raises(UserError, match="no teacher 'solid'"):
        open_judge(replace(config(), teacher="solid"))
    assert Latents.of_teacher(Teacher.find("tiny:sd", size=Size(32, 32))).side == 32


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("sds", ()),
        ("sds", ("domain.judge.directions.perp_neg=true",)),
        ("sds", ("recipe.variant=nfsd", "recipe.weight=null", "domain.judge.negative=ugly")),
        ("vsd", ("train.eval_every=1", "train.eval_samples=2", "train.teacher_steps=2")),
    ],
)
def test_recipes_optimise_a_scene_by_a_pipeline(method, settings, tmp_path):
    run = tmp_path / "run"
    given = ("domain.teacher=tiny:sd", *QUIET, *SMALL, *settings)
    assert threed("train", "--config", f"{method}-solids", "--out", run, *given) == 0
    names = {name for row in read_metrics(run) for name in row}
    assert any(name.startswith("loss/student") for name in names)
    assert ("loss/fake_score/denoise" in names) == (method == "vsd")


def test_a_prompt_that_is_cut_is_one_line_on_the_command_line(tmp_path, capsys):
    asked = ("domain.teacher=tiny:sd", "domain.prompt=a yellow cylinder", *QUIET, *SMALL)
    assert threed("train", "--config", "sds-solids", "--out", tmp_path / "run", *asked) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search("front view' has 27 tokens", said)
