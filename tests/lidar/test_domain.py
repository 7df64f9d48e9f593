"""The lidar domain: its configs, what it refuses, and what of its networks moves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lidar.scene_bed import NETWORK, QUICK, SETTINGS, denoiser_folder, lidar, one_line, refiner_folder
from torch.testing import assert_close

from fewstep.core.cli.main import main
from fewstep.core.rng import Rng
from fewstep.core.training.config import load_config
from fewstep.core.training.opened import Opened, open_run
from fewstep.core.training.settings import dump
from fewstep.core.training.world import World
from fewstep.lidar.domain import DOMAIN
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.files import load_denoiser
from fewstep.lidar.process import scene_denoiser
from fewstep.lidar.scenes import SceneSource, scan_condition
from fewstep.lidar.verbs import METHODS

CONFIGS = sorted(file.stem for file in DOMAIN.configs.glob("*.yaml"))
TEACHED = [setting for setting in SETTINGS if "network" not in setting]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return denoiser_folder(tmp_path_factory.mktemp("networks") / "teacher")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_resolves_and_reads_back(name, capsys):
    assert lidar("train", "--config", name, "--print-config") == 0
    printed = capsys.readouterr().out
    config = load_config(name, [], domain=DOMAIN)
    assert yaml.safe_load(printed) == yaml.safe_load(dump(config))
    assert config.name == name


def test_every_method_has_its_config():
    for method in METHODS:
        config = load_config(f"{method}-streets", [], domain=DOMAIN)
        assert config.recipe_name == method
        assert config.domain.teacher == "streets"


@pytest.mark.parametrize("name", CONFIGS)
def test_memory_is_not_planned_without_data(name, capsys):
    assert main(["plan", name, "--domain", "lidar", "domain.data.simulation.scans=1"]) == 2
    one_line(capsys.readouterr().err, "cannot be followed without data")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("domain.data.pionts=400",), "data.points'"),
        (("domain.data.points=405",), "multiple of tiling"),
        (("domain.data.source=kitti",), "domain.data.source"),
        (("domain.data.simulation.sensor.beams=0",), "beams=0 must be a whole number"),
        (("domain.data.simulation.scans=0",), "scans must be at least 1"),
        (("domain.network.channels=[1,2]",), "channels needs 5 widths"),
        (("domain.judge_points=1",), "judge_points must be at least 100"),
        (("domain.refiner.up_factor=0",), "up_factor must be 1 to 64"),
        (("domain.backend=cuda",), "domain.backend"),
        (("domain.teacher=stretes",), "no denoiser 'stretes'"),
        (("domain.teacher=",), "start from a teacher and domain.teacher is empty"),
        (("domain.student=refiner",), "a refiner is trained by recipe 'refine'"),
        (("domain.roles.mode=lora", "domain.train_encoder=true"), "LoRA roles share the frozen encoder"),
        (("domain.data.source=semantickitti", "domain.data.path=/absent"), "/absent: no such folder"),
        (("recipe.name=refine",), "domain.student to refiner"),
    ],
)
def test_mistakes_in_settings_are_one_line(settings, said, teacher, tmp_path, capsys):
    given = [f"domain.teacher={teacher}", *TEACHED, *settings]
    if settings == ("recipe.name=refine",):
        config = {"recipe": {"name": "refine"}, "domain": {"name": "lidar"}}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
        argv = ("train", "--config", tmp_path / "c.yaml", "--out", tmp_path / "run", *given[:-1])
    else:
        argv = ("train", "--config", "scorelidar-streets", "--out", tmp_path / "run", *given)
    assert lidar(*argv) == 2
    one_line(capsys.readouterr().err, said)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_the_wrong_kind_is_refused(tmp_path, capsys):
    folder = refiner_folder(tmp_path / "refiner")
    run = ("distill", "--out", tmp_path / "run", *TEACHED, f"domain.teacher={folder}")
    assert lidar(*run) == 2
    one_line(capsys.readouterr().err, "describes a refiner, and a denoiser is wanted here")


def test_a_method_and_a_config_that_disagree_are_refused(tmp_path, capsys):
    assert lidar("distill", "--method", "sid", "--config", "dmd2-streets", "--out", tmp_path / "run") == 2
    one_line(capsys.readouterr().err, "dmd2-streets trains by dmd2")
    assert lidar("distill", "--method", "sidd") == 2
    one_line(capsys.readouterr().err, "invalid choice: 'sidd'")


def distilled(folder: Path, teacher: Path, *settings: str) -> Opened:
    """Train a student for two steps at a high rate, and open what became of it."""
    given = (*TEACHED, f"domain.teacher={teacher}", *QUICK, "train.steps=2", "optim.lr=0.01", "recipe.point_weight=0")
    assert lidar("distill", "--out", folder, *given, *settings) == 0
    return open_run(folder, World())


def moved(a: torch.nn.Module, b: torch.nn.Module) -> set[str]:
    """The names of tensors, statistics of norms included, that differ between two networks."""
    mine, others = a.state_dict(), b.state_dict()
    assert mine.keys() == others.keys()
    return {name for name in mine if not torch.equal(mine[name], others[name])}


@pytest.mark.parametrize("train_encoder", [False, True])
@pytest.mark.slow
def test_the_encoder_stays_the_teachers_unless_it_is_trained(train_encoder, teacher, tmp_path):
    opened = distilled(tmp_path / "run", teacher, f"domain.train_encoder={str(train_encoder).lower()}")
    before = load_denoiser(teacher)
    for name in ("student", "fake_score"):
        backbone = opened.problem.actors.denoiser(name).backbone
        weights = {name for name, _ in backbone.named_parameters()}
        changed = moved(backbone, before)
        encoder = {name for name in changed if name.startswith("encoder.")}
        assert {name for name in weights if name.startswith("unet.")} <= changed
        assert bool(encoder) == train_encoder
        if train_encoder:
            assert {name for name in weights if name.startswith("encoder.")} <= encoder
    assert not moved(opened.problem.actors.denoiser("teacher").backbone, before)
    assert not [name for name in moved(load_denoiser(tmp_path / "run" / "export"), before) if "encoder" in name] or (
        train_encoder
    )


@pytest.mark.slow
def test_lora_roles_train_merge_and_export(teacher, tmp_path):
    lora = ("domain.roles.mode=lora", "domain.roles.rank=2", "optim.lr=0.05")
    opened = distilled(tmp_path / "run", teacher, *lora)
    actors = opened.problem.actors
    view, exported = actors.denoiser("student"), scene_denoiser(load_denoiser(tmp_path / "run" / "export"))
    shared = view.backbone.shared
    touched = {path.split(".")[-1] for path in shared.layers}
    assert {"linear", "shortcut"} <= touched  # the kernels of sparse convolutions are among them
    source = SceneSource(opened_scenes())
    cond = source.batch(Rng.for_batch(0, 0, 2), "cpu").cond
    x = cond["anchor"] + 0.5 * torch.randn(cond["anchor"].shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([300.0, 999.0], dtype=torch.float64)
    with torch.no_grad():
        of_view, of_export = view.eps(x, t, cond), exported.eps(x, t, cond)
        of_teacher = actors.denoiser("teacher").eps(x, t, cond)
        assert_close(of_teacher, scene_denoiser(load_denoiser(teacher)).eps(x, t, cond), rtol=0, atol=1e-6)
    assert_close(of_export, of_view, rtol=0, atol=1e-5)
    assert float((of_view - of_teacher).abs().max()) > 1e-3
    kernels = {name for name in moved(exported.backbone, load_denoiser(teacher)) if name.endswith("conv.linear.weight")}
    assert {"unet.stem.first.conv.linear.weight", "unet.up.3.expand.conv.linear.weight"} <= kernels


def opened_scenes():
    from lidar.scene_bed import scenes

    return scenes()[0]


def test_the_network_takes_scans_of_any_place_and_a_batch():
    """A condition made for completion is one made for training: scan and anchor, any number of rows."""
    scan = torch.randn(2, 30, 3).numpy() * 5
    cond = scan_condition(list(scan), 10)
    denoiser = scene_denoiser(LidarBackbone(NETWORK, 3).eval())
    with torch.no_grad():
        together = denoiser.eps(cond["anchor"], torch.tensor([5.0, 500.0]), cond)
        alone = denoiser.eps(cond["anchor"][1:], torch.tensor([500.0]), {k: v[1:] for k, v in cond.items()})
    assert_close(alone[0], together[1], rtol=0, atol=1e-5)


def test_listing_the_commands_loads_no_library():
    code = "import sys, fewstep.lidar.verbs; print(sorted({'numpy', 'torch', 'scipy', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
