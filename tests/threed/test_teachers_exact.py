"""The teacher that knows: closed forms, the mixture without a prompt, pictures from any camera."""

from __future__ import annotations

import pytest
import torch
from threed.judge_bed import QUIET, SMALL, camera_at, normal
from threed.scene_bed import difference, threed

from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided
from fewstep.core.process import VP
from fewstep.threed.judges import repeated
from fewstep.threed.settings import SOLIDS_CAMERAS, JudgeConfig, ThreedConfig
from fewstep.threed.shapes import build, read, render
from fewstep.threed.teachers.exact import MEANS, PROMPTED, ExactJudge, ExactPictures, true_pictures
from fewstep.threed.teachers.opening import open_judge, teacher_process

F64 = torch.float64
SD = VP.scaled_linear()
STD = 0.3
MEAN = torch.tensor([[[1.0, -2.0], [-1.0, 0.5], [0.3, 0.4]]], dtype=F64)


def ask(prompted, t=400.0):
    teacher, x = ExactPictures(SD, STD), torch.tensor([[0.3, 0.7]], dtype=F64, requires_grad=True)
    cond = {MEANS: MEAN, PROMPTED: torch.tensor([prompted])}
    return teacher, x, torch.tensor([t], dtype=F64), cond


def test_under_a_prompt_it_is_the_mean_of_a_gaussian():
    teacher, x, t, cond = ask(True)
    c = SD.coefficients(t)
    a, s = c.alpha[0], c.sigma[0]
    expected = MEAN[:, 0] + a * STD**2 / (a**2 * STD**2 + s**2) * (x - a * MEAN[:, 0])
    assert difference(teacher.x0(x, t, cond), expected) < 1e-12


def test_without_a_prompt_its_score_is_that_of_the_mixture_of_the_others():
    teacher, x, t, cond = ask(False)
    c = SD.coefficients(t)
    spread = c.alpha**2 * STD**2 + c.sigma**2
    away = (x[:, None] - c.alpha * MEAN[:, 1:]).square().sum(2)
    (score,) = torch.autograd.grad((-away / (2 * spread)).logsumexp(1).sum(), x)
    assert difference(teacher.score(x, t, cond), score) < 1e-10
    _, _, _, prompted = ask(True)
    assert difference(teacher.x0(x, t, teacher.null(prompted)), teacher.x0(x, t, cond)) == 0


def test_of_what_a_picture_is_off_noise_decides_how_much_is_put_right():
    camera = camera_at((30.0, 10.0), size=32)
    judge = ExactJudge(SD, SOLIDS_CAMERAS)
    cond = judge.told(camera, judge.encode(["a red cone"]))
    exact = render(build(read("a red cone")), camera.world_to_camera, camera.intrinsics, 32, 32)
    mean, other = 2 * exact.rgb.double() - 1, normal(1, 3, 32, 32).double()
    for moment in (0.0, 300.0, 999.0):
        t = torch.tensor([moment], dtype=F64)
        c = SD.coefficients(t)
        share = c.sigma**2 / (c.sigma**2 + c.alpha**2 * 0.05**2)
        found = judge.teacher.x0(c.alpha * other, t, cond)
        assert difference(found - other, share * (mean - other)) < 1e-5


@pytest.mark.parametrize("others", [(), ("a blue box", "a red cone")])
def test_pictures_are_of_every_prompt_and_camera(others):
    camera = camera_at((0.0, 10.0), (120.0, -5.0), size=32)
    judge = ExactJudge(SD, SOLIDS_CAMERAS, others=others)
    cond = judge.told(camera, judge.encode(["a red cone", "a blue box"]))
    expected = torch.stack(
        [
            true_pictures([text], camera.select(i, i + 1))[0, 0, :3]
            for i, text in enumerate(["a red cone", "a blue box"])
        ]
    )
    assert difference(cond[MEANS][:, 0], 2 * expected - 1) < 1e-5
    assert cond[MEANS].shape[1] == (3 if others else 2)
    if not others:
        assert not cond[MEANS][:, 1].any()


def test_guidance_moves_from_the_mixture_to_the_prompt():
    camera = camera_at((0.0, 10.0), size=32)
    judge = ExactJudge(SD, SOLIDS_CAMERAS, others=("a blue box",))
    cond = judge.told(camera, judge.encode(["a red cone"]))
    t, box = torch.tensor([600.0]), 2 * true_pictures(["a blue box"], camera)[0, :, :3] - 1
    x = SD.add_noise(box, normal(1, 3, 32, 32), t)
    with_prompt, without = judge.teacher.x0(x, t, cond), judge.teacher.x0(x, t, judge.teacher.null(cond))
    assert difference(without, box) < 0.5 < difference(with_prompt, box)
    guided = Guided(judge.teacher, 3.0).x0(x, t, cond)
    assert difference(guided, without + 3 * (with_prompt - without)) < 1e-4


def test_it_is_opened_by_its_name_and_reads_the_grammar_only():
    config = ThreedConfig(teacher="exact", judge=JudgeConfig(size=16, deviation=0.1))
    judge = open_judge(config)
    assert isinstance(judge, ExactJudge)
    assert (judge.size, judge.teacher.std) == (16, 0.1)
    assert type(teacher_process(config)) is type(judge.process)
    for text, why in (("", "empty prompt"), ("a red castle", "no prompt of the world")):
        with pytest.raises(UserError, match=why):
            judge.encode([text])
    with pytest.raises(UserError, match="no prompt of the world"):
        open_judge(ThreedConfig(teacher="exact", judge=JudgeConfig(others="a castle")))
    told = judge.told(camera_at((0.0, 0.0), (9.0, 0.0)), repeated(judge.encode(["a red cone"]), 2))
    assert len(told[PROMPTED]) == 2


def test_a_scene_is_pulled_to_the_truth_from_the_command_line(tmp_path, capsys):
    given = ("domain.teacher=exact", "domain.judge.size=16", *QUIET, *SMALL)
    assert threed("train", "--config", "sds-solids", "--out", tmp_path / "run", *given) == 0
    assert threed("train", "--config", "vsd-solids", "--out", tmp_path / "no", *given) == 2
    assert "has none: give a network as the teacher" in capsys.readouterr().err
