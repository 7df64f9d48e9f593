"""Joint teachers: views see each other, their order means nothing, one view alone changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from threed.judge_bed import (
    QUIET,
    SMALL,
    camera_at,
    camera_pipeline,
    normal,
    true_views,
    view_folder,
    view_model,
)
from threed.scene_bed import around, difference, threed

from fewstep.core.errors import UserError
from fewstep.core.models.loading import Teacher
from fewstep.core.rng import Rng
from fewstep.core.training.trackers import read_metrics
from fewstep.threed.cameras import orbit_angles
from fewstep.threed.cameras.conventions import mvdream_condition
from fewstep.threed.judges import ViewJudge
from fewstep.threed.settings import JudgeConfig, ThreedConfig
from fewstep.threed.teachers.joint import JointJudge
from fewstep.threed.teachers.opening import open_judge, teacher_process, view_judge
from fewstep.threed.teachers.view_model import ABOUT, load_model

TEXTS = ["a red cone", "a blue box"]
T = torch.tensor([300.0, 700.0])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return camera_pipeline(tmp_path_factory.mktemp("mv") / "m")


def judge_of(kind, pipeline, views=3):
    if kind == "pixels":
        return view_judge(view_model(views)) if views > 1 else joint_of_one()
    return open_judge(ThreedConfig(teacher=str(pipeline), judge=JudgeConfig(views=views)))


def joint_of_one():
    """The model of single views as a joint judge of one."""
    from fewstep.threed.teachers.multi_view import JointBackbone
    from fewstep.threed.teachers.spaces import Pixels

    model = view_model(1)
    teacher = model.denoiser.with_backbone(JointBackbone(model.backbone, 1))
    return JointJudge(teacher, Pixels(16), model.encode, model.cameras, 1)


def asked(judge):
    """Two samples of as many views, and their condition."""
    camera = around(2 * judge.views, 16)
    return normal(2, *judge.shape), judge.told(camera, judge.encode(TEXTS))


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_the_order_of_the_views_means_nothing(kind, pipeline):
    judge = judge_of(kind, pipeline)
    x, cond = asked(judge)
    order = [2, 0, 1]
    turned = {**cond, "camera": cond["camera"][:, order]}
    with torch.no_grad():
        out, again = judge.teacher.x0(x, T, cond), judge.teacher.x0(x[:, order], T, turned)
        kept = judge.teacher.x0(x[:, order], T, cond)
    assert difference(again, out[:, order]) < 1e-4
    assert difference(kept, out[:, order]) > 1e-2  # cameras are read


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_views_of_an_object_see_each_other_and_objects_do_not(kind, pipeline):
    judge = judge_of(kind, pipeline)
    x, cond = asked(judge)
    changed = x.clone()
    changed[0, 2] += 1
    with torch.no_grad():
        out, again = judge.teacher.eps(x, T, cond), judge.teacher.eps(changed, T, cond)
    assert difference(out[0, :2], again[0, :2]) > 1e-3
    assert difference(out[1], again[1]) < 1e-5


def test_one_view_is_the_network_of_single_views_bit_for_bit():
    one, single = joint_of_one(), ViewJudge(view_model(1))
    x, cond = asked(one)
    with torch.no_grad():
        joint = one.teacher.x0(x, T, cond)
        alone = single.teacher.x0(x[:, 0], T, single.told(around(2, 16), single.encode(TEXTS)))
    assert torch.equal(joint[:, 0], alone)


def test_one_view_of_a_pipeline_is_its_unet_bit_for_bit(pipeline):
    judge = judge_of("latents", pipeline, views=1)
    x, cond = asked(judge)
    found = Teacher.find(str(pipeline))
    embeds = found.encode(TEXTS).cond["prompt_embeds"]
    with torch.no_grad():
        camera = mvdream_condition(around(2, 16), azimuth_offset_deg=0.0)
        theirs = found.folder.load("unet")(x[:, 0], T, encoder_hidden_states=embeds, class_labels=camera).sample
        assert torch.equal(judge.teacher.predict(x, T, cond).value[:, 0], theirs)
        null = judge.teacher.null(cond)
    assert torch.equal(null["camera"], cond["camera"])
    assert difference(null["prompt_embeds"][1], found.encode(["x"]).null["prompt_embeds"][0]) < 1e-6


def test_the_unconditional_prediction_keeps_its_cameras():
    judge = view_judge(view_model(3))
    _, cond = asked(judge)
    null = judge.teacher.null(cond)
    assert torch.equal(null["camera"], cond["camera"])
    assert not null["tokens"].any()


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_samples_are_what_the_views_show(kind, pipeline):
    judge = judge_of(kind, pipeline)
    camera = around(6, 16)
    seen = true_views("a red cone", camera)
    x0 = judge.x0(seen, camera)
    assert x0.shape == (2, *judge.shape)
    assert judge.pictures(x0).shape == seen.rgb.shape
    if kind == "pixels":
        assert difference(judge.pictures(x0), seen.rgb) < 1e-6
        assert difference(x0[1, 2], 2 * seen.rgb[5] - 1) < 1e-6


def test_cameras_of_an_object_stand_at_equal_steps_and_are_told_in_its_order(pipeline):
    judge = judge_of("latents", pipeline, views=4)
    camera = judge.cameras(Rng.for_batch(0, 0, 2))
    azimuth, elevation, _ = (each.reshape(2, 4) for each in orbit_angles(camera))
    steps = (azimuth - azimuth[:, :1]) % 360
    assert torch.allclose(steps, torch.tensor([0.0, 90.0, 180.0, 270.0]).expand(2, -1), atol=1e-3)
    assert difference(elevation, elevation[:, :1].expand(-1, 4)) < 1e-3
    told = judge.told(camera, judge.encode(TEXTS))["camera"]
    assert difference(told.flatten(0, 1), mvdream_condition(camera, azimuth_offset_deg=0.0)) == 0


def test_the_offset_of_a_teachers_front_is_a_setting(pipeline):
    config = ThreedConfig(teacher=str(pipeline), judge=JudgeConfig(views=1, azimuth_offset_deg=90.0))
    turned, plain = open_judge(config), judge_of("latents", pipeline, views=1)
    told = turned.told(camera_at((0.0, 20.0)), {})["camera"]
    assert difference(told, plain.told(camera_at((90.0, 20.0)), {})["camera"]) < 1e-6


def test_a_folder_of_a_joint_view_model_gives_it_back(tmp_path):
    folder, model = view_folder(tmp_path / "m", 3), view_model(3)
    back = load_model(str(folder))
    assert (back.views, back.kind) == (3, "pictures")
    one, two = view_judge(model), open_judge(ThreedConfig(teacher=str(folder)))
    x, cond = asked(one)
    with torch.no_grad():
        assert difference(one.teacher.x0(x, T, cond), two.teacher.x0(x, T, cond)) < 1e-6
    assert type(teacher_process(ThreedConfig(teacher=str(folder)))) is type(one.process)
    about = json.loads((folder / ABOUT).read_text())
    for change, why in (({"views": 10**9}, "between 1 and"), ({"kind": "sounds"}, "none of"), ({"kind": "maps"}, "4")):
        (folder / ABOUT).write_text(json.dumps(about | change), encoding="utf-8")
        with pytest.raises(UserError, match=why):
            load_model(str(folder))


@pytest.mark.parametrize("how", ["full", "lora"])
def test_copies_and_adapters_of_a_joint_network_are_it_at_first_and_train(how):
    from fewstep.core.networks.roles import RolesConfig, build_roles
    from fewstep.core.recipe import RoleSpec

    judge = view_judge(view_model(3))
    x, cond = asked(judge)
    roles = build_roles(judge.teacher, [RoleSpec("teacher", init="frozen"), RoleSpec("fake_score")],
                        RolesConfig(mode=how, rank=2), 0)  # fmt: skip
    out = roles["fake_score"].x0(x, T, cond)
    assert difference(out, roles["teacher"].x0(x, T, cond)) < 1e-5
    out.square().sum().backward()
    grads = [p.grad for p in roles["fake_score"].backbone.parameters() if p.requires_grad]
    assert any(float(g.abs().sum()) > 0 for g in grads if g is not None)
    assert not any(p.grad is not None for p in roles["teacher"].backbone.parameters())


def test_another_number_of_views_is_refused():
    judge = view_judge(view_model(3))
    x, cond = asked(judge)
    with pytest.raises(UserError, match="2 views, and this network was made for 3"):
        judge.teacher.x0(x[:, :2], T, cond)


@pytest.mark.parametrize(
    ("kind", "method", "settings"),
    [
        ("pixels", "vsd", ()),
        ("latents", "vsd", ("domain.judge.views=2",)),
        ("latents", "sds", ("domain.judge.views=4", "recipe.variant=x0", "recipe.rescale=0.5", "recipe.weight=null")),
    ],
)
def test_recipes_optimise_a_scene_by_several_views_at_once(kind, method, settings, pipeline, tmp_path):
    teacher = view_folder(tmp_path / "m", 3) if kind == "pixels" else pipeline
    given = (f"domain.teacher={teacher}", *QUIET, *SMALL, *settings, "train.eval_every=2", "train.eval_samples=2")
    run = tmp_path / "run"
    assert threed("train", "--config", f"{method}-solids", "--out", run, *given, "train.teacher_steps=2") == 0
    assert any("eval" in name for row in read_metrics(run) for name in row)


def test_a_generator_listens_to_single_joint_and_geometry_teachers_at_once(pipeline, tmp_path):
    judges = f"{{mv: {pipeline}, rd: {view_folder(tmp_path / 'm', 2, 'maps')}}}"
    given = (f"domain.teachers={judges}", "domain.prompts=a red cone", "domain.planes.field.normals=true", *QUIET)
    asked = ("domain.teacher=tiny:sd", *given, "domain.judge.views=2", "train.steps=1", "train.batch=1")
    assert threed("train", "--config", "prd-solids", "--out", tmp_path / "run", *asked) == 0
    logged = read_metrics(tmp_path / "run")[0]
    assert all(logged[f"loss/student/{name}"] > 0 for name in ("teacher", "mv", "rd"))
