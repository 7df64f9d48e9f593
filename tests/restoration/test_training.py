"""Training from the command line: a teacher, students of every method of the domain, exported and put to use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from restoration.model_bed import restoration

from fewstep.core.errors import UserError
from fewstep.core.training.config import load_config
from fewstep.core.training.opened import open_run
from fewstep.core.training.world import World
from fewstep.restoration.data import photos
from fewstep.restoration.degradations import imresize
from fewstep.restoration.domain import DOMAIN
from fewstep.restoration.metrics import psnr_y
from fewstep.restoration.model import SHIPPED, load_model
from fewstep.restoration.restorer import Restorer

SMALL = (
    "domain.data.crop=48",
    "domain.network.local.widths=[8,12]",
    "domain.network.local.blocks=1",
    "domain.network.local.time_width=16",
)
QUICK = ("train.batch=4", "train.log_every=5", "train.eval_every=0", "train.preview_every=0", "train.ema.decay=0.8")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small teacher, trained a little and exported."""
    run = tmp_path_factory.mktemp("runs") / "teacher"
    rates = (
        "train.steps=60",
        "optim.lr=3e-3",
        "optim.warmup=0",
        "domain.process.steps=4",
        "domain.process.min_noise=0.2",
    )
    settings = (*SMALL, *QUICK, *rates, "train.sample_steps=[4]")
    assert restoration("train", "--config", "teacher-photos", "--out", run, *settings) == 0
    assert restoration("export", run) == 0
    return run


def test_a_teacher_learns_and_its_export_restores_better_than_bicubic(teacher: Path) -> None:
    model = load_model(str(teacher))
    assert (model.scales, model.plan, model.process.steps) == ((2, 3, 4, 8), None, 4)
    gains = []
    for name in ("coffee", "astronaut", "chelsea"):
        hr = photos.photo(name)[None, :, 100:196, 100:196]
        lq = imresize(hr, 1 / 8).clamp(0, 1)
        plain = torch.nn.functional.interpolate(lq, scale_factor=8, mode="bicubic")
        restored = Restorer.load(str(teacher), steps=1, noise=0)(lq, 8)
        gains.append(float(psnr_y(restored.clamp(0, 1), hr) - psnr_y(plain.clamp(0, 1), hr)))
    assert min(gains) > 0


METHODS = {
    "tad-sr": ("tad-sr-photos", {"student", "teacher", "discriminator"}),
    "sinsr": ("sinsr-photos", {"student", "teacher"}),
    "dmd2": ("dmd2-photos", {"student", "teacher", "fake_score"}),
    "sid": ("sid-photos", {"student", "teacher", "fake_score"}),
    "consistency": ("consistency-photos", {"student", "teacher"}),
    "vsd": ("vsd-photos", {"student", "teacher", "fake_score"}),
    "instarevive": ("instarevive-photos", {"student", "teacher", "fake_score"}),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_student_that_is_exported_and_restores(
    method: str, teacher: Path, tmp_path: Path
) -> None:
    config, roles = METHODS[method]
    run = tmp_path / "run"
    own = ("recipe.num_knots=4",) if method == "consistency" else ()
    settings = (*QUICK, *own, "domain.data.crop=48", f"domain.teacher={teacher}", "train.steps=3", "optim.warmup=0")
    assert restoration("train", "--config", config, "--out", run, *settings) == 0
    opened = open_run(run, World())
    assert roles <= set(opened.problem.actors.roles)
    before = load_model(str(teacher)).denoiser.backbone.state_dict()
    assert restoration("export", run, "--out", tmp_path / "student") == 0
    student = load_model(str(tmp_path / "student"))
    assert student.plan is not None
    after = student.denoiser.backbone.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    made = Restorer(student, name="student")(photos.photo("coffee")[None, :, :20, :30], 3)
    assert made.shape == (1, 3, 60, 90)
    assert bool(made.isfinite().all())
    assert (student.plan.start == "anchor") == (method == "instarevive")
    if method == "instarevive":
        with pytest.raises(UserError, match="leave --steps out"):
            Restorer(student, name="student", steps=2)


def test_a_student_is_measured_beside_its_teacher(teacher: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    settings = (*QUICK, "domain.data.crop=48", f"domain.teacher={teacher}", "train.steps=2")
    assert restoration("train", "--config", "sinsr-photos", "--out", run, *settings) == 0
    capsys.readouterr()
    assert restoration("eval", run, "-n", "4", "--teacher-steps", "1,4") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("PSNR-Y", "SSIM-Y", "GMSD", "spectrum", "teacher"))
    assert restoration("sample", run, "-n", "2", "--teacher-steps", "4") == 0
    assert (run / "samples.png").stat().st_size > 1000


def test_half_of_the_weights_is_enough(teacher: Path, tmp_path: Path) -> None:
    assert restoration("export", teacher, "--as", "half", "--out", tmp_path / "half") == 0
    whole, half = (teacher / "export" / "model.safetensors", tmp_path / "half" / "model.safetensors")
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    x = photos.photo("coffee")[None, :, :24, :24]
    a, b = (Restorer.load(str(folder), steps=1)(x, 4) for folder in (teacher / "export", tmp_path / "half"))
    assert torch.allclose(a, b, atol=2e-2)


def test_networks_start_from_a_teacher_that_is_named(tmp_path: Path, capsys) -> None:
    out = ("--out", tmp_path / "run")
    assert restoration("train", "--config", "sinsr-photos", *out, "domain.teacher=") == 2
    assert "domain.teacher is empty" in capsys.readouterr().err
    assert restoration("train", "--config", "sinsr-photos", *out, "domain.teacher=photoz") == 2
    assert "no model 'photoz'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("domain.data.crop=50", "multiple of"),
        ("domain.scales=[4,2]", "must rise"),
        ("domain.scales=[0]", "from 1 to 16"),
        ("domain.process.steps=1", "steps"),
        ("domain.process.eta_end=1.0", "eta_end"),
        ("domain.space.kind=vq", "path"),
        ("domain.network.local.widths=[]", "widths"),
        ("domain.milder_scale=3", "milder_scale"),
        ("domain.noise=1.5", "domain.noise"),
        ("domain.teacher=tiny:sd domain.noise=0.5", "no place"),
        ("domain.data.degradation=blur", "unknown"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(
    setting: str, message: str, tmp_path: Path, capsys
) -> None:
    assert restoration("train", "--config", "teacher-photos", "--out", tmp_path / "run", *setting.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "name", "noise"),
    [("tad-sr-photos", "photos-student", 0.5), ("tad-sr-photos-finish", "photos-faithful", 1)],
)
def test_a_shipped_student_s_file_is_what_its_command_writes(
    tmp_path: Path, config: str, name: str, noise: float
) -> None:
    small = ("train.steps=1", "train.batch=1", "domain.data.crop=48", "train.eval_every=0", "train.preview_every=0")
    assert restoration("train", "--config", config, "--out", tmp_path / "run", *small) == 0
    assert restoration("export", tmp_path / "run", "--as", "half") == 0
    made, shipped = (
        json.loads((folder / "model.json").read_text()) for folder in (tmp_path / "run/export", SHIPPED / name)
    )
    assert made == shipped
    assert Restorer.load(name).noise == made.get("noise", 1) == noise


def test_the_faithful_student_is_truer_than_the_teacher_s_single_step_and_that_than_bicubic() -> None:
    truth = photos.photo("coffee")[None, :, 120:248, 200:328]
    lq = (imresize(truth, 0.25).clamp(0, 1) * 255).round() / 255
    made = [imresize(lq, 4), Restorer.load("photos", steps=1)(lq, 4), Restorer.load("photos-faithful")(lq, 4)]
    scores = torch.cat([psnr_y(x.clamp(0, 1), truth) for x in made])
    assert scores[0] + 0.3 < scores[1] < scores[2] - 0.2


@pytest.mark.parametrize("config", sorted(file.stem for file in DOMAIN.configs.glob("*.yaml")))
def test_every_shipped_config_is_read_and_says_what_it_is(config: str) -> None:
    found = load_config(config, [], domain=DOMAIN)
    assert (found.name, found.domain_name) == (config, "restoration")
    assert (DOMAIN.configs / f"{config}.yaml").read_text().startswith("# ")
