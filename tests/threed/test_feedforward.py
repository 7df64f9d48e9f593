"""Feed-forward students: what is held out stays so, what is saved comes back, meshes as a second renderer."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from threed.planes_bed import FIELD, TINY
from threed.scene_bed import tiny_model
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.recipe import RoleSpec, StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.core.training.loop import train
from fewstep.core.training.settings import OptimConfig, RunConfig, TrainConfig
from fewstep.threed.cameras import orbit
from fewstep.threed.feedforward import PROMPT, build_planes, parts_of
from fewstep.threed.judges import ViewJudge
from fewstep.threed.planes.field import FieldHeads, PlaneField
from fewstep.threed.planes.generator import WEIGHTS_FILE
from fewstep.threed.planes.meshing import mesh_views
from fewstep.threed.planes.model import MODEL_FILE, load_planes, make_generator, save_planes, student_of
from fewstep.threed.recipes.prd import PRD, PRDConfig, TeacherConfig
from fewstep.threed.shapes.named import named_prompts

PLAN = StepPlan((999.0, 749.0, 499.0, 249.0), "deterministic")
CONFIG = PRDConfig(teacher=TeacherConfig(guidance_scale=2.0, against="noise"), points=16)
SINGLE = replace(TINY, field=replace(FIELD, normals=False))


def problem_of(prompts=None, judge=None, config=SINGLE):
    judges = {"solids": judge or ViewJudge(tiny_model())}
    return build_planes(config, judges, prompts or named_prompts("things"), PRD.role_specs(CONFIG), 0)


def saved(folder):
    generator = make_generator(SINGLE, 3)
    save_planes(generator, SINGLE, PLAN, folder, {"name": "tiny"})
    return generator


def test_held_out_prompts_are_never_trained_on_and_have_only_known_words():
    trained, held = parts_of(named_prompts("things"))
    assert len(held) == 6
    words = {word for text in trained for word in text.split()}
    assert all(set(text.split()) <= words for text in held)
    problem = problem_of()
    seen = {int(n) for step in range(12) for n in problem.data.batch(Rng(0, step, (0, 1), batch=2), "cpu").cond[PROMPT]}
    assert seen == set(range(24))
    assert set(problem.conditions(30, 0)[PROMPT].tolist()) == set(range(30))


def test_an_untrained_student_is_measured_as_the_sphere_it_is():
    problem = problem_of(["a red box", "a cyan sphere"])
    cond = problem.conditions(2, 0)
    found = problem.evaluate(torch.zeros(2, *SINGLE.shape), cond)
    fine = replace(SINGLE, field=replace(SINGLE.field, sharpness=400.0, sections=64, fine=32))  # no soft edge
    ball = problem_of(["a cyan sphere"], ViewJudge(tiny_model(size=48)), fine)
    one = ball.evaluate(torch.zeros(1, *SINGLE.shape), ball.conditions(1, 0))
    assert one["silhouette_iou"] == pytest.approx((0.35 / 0.4) ** 2, abs=0.05)  # areas; the rest is the knob
    assert found["silhouette_iou_min"] <= found["silhouette_iou"]
    assert found["silhouette_iou"] < 1


def test_a_saved_student_makes_the_same_scenes(tmp_path):
    generator, texts = saved(tmp_path / "out"), ["a red cone", "a blue torus"]
    model = load_planes(tmp_path / "out")
    assert model.plan == PLAN
    assert model.config == SINGLE
    scenes = model.scenes(texts, seed=5)
    rng = Rng.for_batch(5, 0, 2)
    with torch.no_grad():
        cond = {"tokens": generator.words.tokens(texts)}
        z = run_plan(student_of(generator.eval()), PLAN, rng.normal("noise", SINGLE.shape), cond, rng)
        planes = generator.planes(z)
    for scene, wanted in zip(scenes, planes, strict=True):
        assert torch.equal(scene.planes, wanted)


def test_prompts_nobody_can_read_are_told(tmp_path):
    saved(tmp_path / "out")
    model = load_planes(tmp_path / "out")
    for text, words in ((" ", "empty prompt"), ("a red horse", "horse"), ("a " * 9, "9 words")):
        with pytest.raises(UserError, match=words):
            model.scenes([text])


def damage(folder, how):
    file = folder / MODEL_FILE
    about = json.loads(file.read_text())
    weights = folder / WEIGHTS_FILE
    if how == "no settings":
        file.unlink()
    elif how == "unknown setting":
        file.write_text(json.dumps(about | {"colour": 3}))
    elif how == "huge":
        file.write_text(json.dumps(about | {"side": 2**20}))
    elif how == "other sizes":
        file.write_text(json.dumps(about | {"latents": 2}))
    elif how == "cut off":
        weights.write_bytes(weights.read_bytes()[:200])
    elif how == "no weights":
        weights.unlink()
    else:
        state = load_file(weights)
        name = next(name for name, value in state.items() if value.is_floating_point())
        save_file(state | {name: state[name] * torch.nan}, weights)


@pytest.mark.parametrize(
    ("how", "words"),
    [("no settings", "planes.json"), ("unknown setting", "colour"), ("huge", "side"), ("other sizes", "does not fit"),
     ("cut off", "no readable tensors"), ("no weights", "no readable tensors"), ("nan", "not finite")],
)  # fmt: skip
def test_a_damaged_folder_is_told_by_its_file(tmp_path, how, words):
    saved(tmp_path / "out")
    damage(tmp_path / "out", how)
    with pytest.raises(UserError, match=words):
        load_planes(tmp_path / "out")


def test_a_run_moves_the_student_alone_and_exports_it(tmp_path):
    judge = ViewJudge(tiny_model())
    problem = problem_of(["a red cone", "a blue torus"], judge)
    before = {name: value.clone() for name, value in judge.model.backbone.state_dict().items()}
    start = {name: value.clone() for name, value in problem.actors.module("student").state_dict().items()}
    settings = TrainConfig(steps=2, batch=2, micro_batch=1, log_every=1, sample_steps=(4,), eval_samples=2)
    run = RunConfig(
        name="prd", seed=0, recipe_name="prd", recipe=CONFIG, domain_name="threed", domain=SINGLE, train=settings,
        optim=OptimConfig(lr=1e-3),
    )  # fmt: skip
    outcome = train(run, problem, PRD(CONFIG, problem.actors), tmp_path / "run", stream=io.StringIO())
    assert outcome.steps == 2
    assert all(torch.equal(value, before[name]) for name, value in judge.model.backbone.state_dict().items())
    moved = {name for name, value in problem.actors.module("student").state_dict().items()
             if not torch.equal(value, start[name])}  # fmt: skip
    assert {name.split(".")[0] for name in moved} == {"unet", "decoder", "heads", "words", "place"}
    problem.export(problem.actors.denoiser("student"), PLAN, tmp_path / "out", {"name": "two steps"})
    assert len(load_planes(tmp_path / "out").scenes(["a red cone"])) == 1


def test_what_cannot_be_built_is_told():
    with pytest.raises(UserError, match="one teacher or more"):
        build_planes(SINGLE, {}, ["a red cone"], (), 0)
    with pytest.raises(UserError, match="besides the held-out ones"):
        problem_of([parts_of(named_prompts("things"))[1][0]])
    with pytest.raises(UserError, match="no role 'fake_score'"):
        build_planes(SINGLE, {"solids": ViewJudge(tiny_model())}, ["a red cone"], (RoleSpec("fake_score"),), 0)


def sphere_field(objects=1, **changes):
    torch.manual_seed(0)
    config = replace(FIELD, **changes)
    heads = FieldHeads(4, config).double()
    torch.nn.init.normal_(heads.sdf.mlp.layers[-1].weight, std=0.02)
    return PlaneField(torch.randn(objects, 6, 4, 8, 8, dtype=torch.float64, requires_grad=True), heads, config)


def ring(count, size=16):
    azimuth = torch.arange(count, dtype=torch.float64) * 70
    full = torch.ones_like(azimuth)
    return orbit(azimuth, full * 20, full * 3, full * 30, size, size)


def test_the_mesh_is_seen_as_the_volume_is():
    field, camera = sphere_field(2, sharpness=300.0, sections=48, fine=32), ring(4, 24)
    with torch.no_grad():
        mesh, volume = mesh_views(field, camera, 48), field.views(camera)
    assert (mesh.alpha - volume.alpha).abs().mean() < 0.02
    assert (mesh.rgb - volume.rgb).abs().mean() < 0.02
    sure = (mesh.alpha > 0.99) & (volume.alpha > 0.99)
    assert (mesh.depth - volume.depth)[sure].abs().mean() < 0.01


def test_surfaces_hear_meshes_by_their_share_and_colours_in_full():
    field, camera = sphere_field(), ring(2)
    found = []
    for share in (1.0, 0.001):
        seen = mesh_views(field, camera, 24, gradient=share)
        found.append(torch.autograd.grad(seen.rgb.square().sum(), [field.geometry, field.texture]))
    assert found[0][0].abs().sum() > 0
    assert_close(found[1][0], 0.001 * found[0][0])
    assert_close(found[1][1], found[0][1])


def test_a_head_of_its_own_moves_the_meshs_vertices_and_learns_from_its_pictures():
    field = sphere_field(deform=True)
    scene = field.scene(0)
    still = scene.mesh(24)
    assert_close(still.vertices, replace_deform(scene, 0.0).mesh(24).vertices)
    moved = replace_deform(scene, 1.0).mesh(24)
    step = 2 * FIELD.bound / 23
    away = (moved.vertices - still.vertices).abs()
    assert away.max() <= step / 2 + 1e-6
    assert away.max() > 0.1 * step
    torch.nn.init.normal_(field.heads.deformation.layers[-1].weight, std=0.1)
    seen = mesh_views(field, ring(1), 24)
    gradient = torch.autograd.grad(seen.alpha.square().sum(), field.heads.deformation.layers[-1].weight)[0]
    assert gradient.abs().sum() > 0


def replace_deform(scene, bias):
    scene._meshes.clear()
    torch.nn.init.constant_(scene.heads.deformation.layers[-1].bias, bias)
    return scene


def test_an_object_without_surface_still_has_something_to_see():
    field = sphere_field()
    field.heads.sdf.radius = -0.2
    with torch.no_grad():
        assert mesh_views(field, ring(1), 16).alpha.sum() > 0


def test_prd_listens_to_both_renderers():
    problem = problem_of(["a red cone", "a blue torus"])
    recipe = PRD(replace(CONFIG, renderers=("volume", "mesh"), resolution=16), problem.actors)
    batch = problem.data.batch(Rng(0, 0, (0, 1), batch=2), "cpu")
    terms = next(recipe.losses("student", batch, Rng(0, 0, (0, 1)), 0))
    assert {"solids", "solids/mesh", "sparsity", "eikonal"} == set(terms.terms)
    terms.terms["solids/mesh"].sum().backward()
    assert recipe.generator.decoder.leave.weight.grad.abs().sum() > 0
