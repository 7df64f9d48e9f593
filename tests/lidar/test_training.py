"""Training from the command line: teachers, refiners and students of every method, exported and put to use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lidar.scene_bed import NETWORK, QUICK, SETTINGS, TINY, lidar, newest, one_line, points_in, scenes

from fewstep.core.rng import Rng
from fewstep.core.training.opened import open_run
from fewstep.core.training.world import World
from fewstep.lidar.artefacts import sampling_of
from fewstep.lidar.metrics.distances import chamfer
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.files import load_denoiser, load_refiner
from fewstep.lidar.models.refiner import Refiner
from fewstep.lidar.process import scene_denoiser, scene_process
from fewstep.lidar.scenes import RefinerSource, SceneSource
from fewstep.lidar.settings import RefinerConfig
from fewstep.lidar.streets import make_streets

LEARNED = [setting for setting in SETTINGS if "network" not in setting]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A run of a teacher, trained a little."""
    run = tmp_path_factory.mktemp("runs") / "teacher"
    rates = ("train.steps=30", "optim.lr=1e-2", "optim.warmup=0")
    assert lidar("train-teacher", "--out", run, *SETTINGS, *QUICK, *rates) == 0
    return run


@torch.no_grad()
def held_out_loss(backbone: LidarBackbone) -> float:
    """The mean squared error of the noise on held-out scenes, at fixed noise."""
    process, denoiser = scene_process(), scene_denoiser(backbone.eval())
    errors = []
    for step in range(3):
        rng = Rng.for_batch(0, step, 3)
        batch = SceneSource(scenes(augment=False)[1]).batch(rng, "cpu")
        eps, t = rng.normal("eps", (400, 3)), torch.tensor([200.0, 500.0, 900.0], dtype=torch.float64)
        x_t = process.add_noise(batch.x0, eps, t, batch.cond["anchor"]).float()
        errors.append(float((denoiser.eps(x_t, t, batch.cond) - eps).square().mean()))
    return sum(errors) / len(errors)


def test_a_teacher_learns_to_denoise_scenes_it_has_not_seen(teacher):
    trained = load_denoiser(teacher / "export")
    assert trained.config == NETWORK
    assert sampling_of(teacher / "export") == (None, 1.0)
    assert held_out_loss(trained) < 0.97 < held_out_loss(LidarBackbone(NETWORK, 0))
    assert "train-teacher" in (teacher / "export" / "README.md").read_text() or (teacher / "report.html").is_file()


def test_a_refiner_learns_to_bring_points_to_the_scene(tmp_path, capsys):
    run = tmp_path / "refiner"
    rates = ("train.steps=25", "optim.warmup=0", "optim.lr=5e-3")
    settings = (*rates, "domain.refiner.target_points=400", "domain.refiner.up_factor=2")
    assert lidar("train-refiner", "--as", "half", "--out", run, *SETTINGS, *QUICK, *settings) == 0
    source = RefinerSource(scenes(augment=False)[1], RefinerConfig(target_points=400))
    batch = source.batch(Rng.for_batch(0, 0, 3), "cpu")

    @torch.no_grad()
    def distance(refiner: Refiner) -> float:
        made = refiner.eval()(batch.cond["points"])
        assert made.shape == (3, 800, 3)
        return sum(chamfer(*pair).value for pair in zip(made, batch.x0, strict=True)) / 3

    assert distance(load_refiner(run / "export")) < 0.96 * distance(Refiner(NETWORK, 2, 0))
    capsys.readouterr()
    assert lidar("eval", run, "-n", "2") == 0
    assert "Chamfer distance" in capsys.readouterr().out


METHODS = {
    "scorelidar": ("scorelidar", ("recipe.neighbours=8",), {"student", "fake_score"}),
    "losers count 0": ("distillation-dpo", ("recipe.loser_weight=0",), {"student", "fake_winner"}),
    "losers count 0.5": ("distillation-dpo", ("recipe.loser_weight=0.5",), {"student", "fake_winner", "fake_loser"}),
    "losers count 1": (
        "distillation-dpo",
        ("recipe.loser_weight=1", "recipe.dpo_sigmoid=100", "recipe.metric=jsd"),
        {"student", "fake_winner", "fake_loser"},
    ),
    "diffusion-dpo": ("diffusion-dpo", ("recipe.solver_steps=2",), {"student"}),
    "dmd2": ("dmd2", (), {"student", "fake_score"}),
    "consistency": ("consistency", (), {"student"}),
    "sid": ("sid", (), {"student", "fake_score"}),
}


LONG = ("losers count 0", "losers count 1", "sid", "dmd2")  # kin of "losers count 0.5" and "scorelidar"


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in METHODS])
def test_a_method_trains_its_roles_exports_and_completes(name, teacher, tmp_path):
    method, settings, roles = METHODS[name]
    run, before = tmp_path / "run", load_denoiser(teacher / "export").state_dict()
    given = (*LEARNED, *QUICK, "train.steps=2", f"domain.teacher={teacher}", *settings)
    assert lidar("distill", "--method", method, "--out", run, *given) == 0
    actors = open_run(run, World()).problem.actors
    for role in actors.roles:
        after = actors.denoiser(role).backbone.state_dict()
        weights = [key for key in before if key.startswith("unet.") and key.endswith("weight")]
        changed = [key for key in weights if not torch.equal(before[key], after[key])]
        assert len(changed) == (len(weights) if role in roles else 0), role
        assert torch.stack([value.isfinite().all() for value in after.values()]).all()
    assert roles <= set(actors.roles)
    student = actors.denoiser("student").backbone.state_dict()
    exported = load_denoiser(run / "export").state_dict()
    assert all(torch.equal(exported[key], student[key]) for key in student)
    plan, _ = sampling_of(run / "export")
    assert (plan is None) == (method == "diffusion-dpo")  # which makes another teacher
    scan = make_streets(TINY, 0.1) / "sequences" / "02" / "velodyne" / "000000.bin"
    out, steps = tmp_path / "dense.ply", ("--steps", "2") if plan is None else ()
    assert lidar("complete", scan, "-o", out, "--model", run, "--points", "400", *steps) == 0
    assert len(points_in(out)) > 100


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_run_that_never_stopped(teacher, tmp_path):
    given = (*LEARNED, *QUICK, f"domain.teacher={teacher}", "recipe.neighbours=8", "optim.schedule=constant")
    for name, steps in (("straight", 4), ("stopped", 2)):
        assert lidar("distill", "--out", tmp_path / name, *given, f"train.steps={steps}") == 0
    assert lidar("resume", tmp_path / "stopped", "train.steps=4") == 0
    straight, resumed = newest(tmp_path / "straight"), newest(tmp_path / "stopped")
    assert straight.keys() == resumed.keys()
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []


def chamfer_of(run: Path, capsys) -> dict[str, float]:
    """The Chamfer distances of student and teacher in one step, on held-out scenes."""
    assert lidar("eval", run, "-n", "3", "--steps", "1", "--teacher-steps", "1") == 0
    capsys.readouterr()
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    return {row["sampler"].split(",")[0]: row["Chamfer distance"] for row in rows}


@pytest.mark.slow
def test_a_student_comes_nearer_to_the_scene_than_its_teacher_in_one_step(teacher, tmp_path, capsys):
    run = tmp_path / "run"
    rates = ("train.steps=25", "optim.lr=2e-3", "optim.schedule=constant", "recipe.point_weight=0")
    given = (*LEARNED, *QUICK, f"domain.teacher={teacher}", *rates)
    assert lidar("distill", "--out", run, *given) == 0
    found = chamfer_of(run, capsys)
    assert found["student"] < 0.97 * found["teacher"]
    assert lidar("sample", run, "-n", "2", "--steps", "1", "--teacher-steps", "1") == 0
    assert (run / "samples.png").is_file()


def test_a_folder_in_use_is_refused(teacher, tmp_path, capsys):
    assert lidar("distill", "--out", teacher, *LEARNED, f"domain.teacher={teacher}") == 2
    one_line(capsys.readouterr().err, str(teacher))
