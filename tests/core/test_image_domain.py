"""The image domain keeps the contract of a domain, and says what it cannot give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fewstep.core.denoiser import EDMScaling, NetworkDenoiser
from fewstep.core.domain import Domain, find_domain
from fewstep.core.errors import UserError
from fewstep.core.image.data import DataConfig, load_data
from fewstep.core.image.domain import DOMAIN
from fewstep.core.image.rendering import TILE, render_rows, to_bytes
from fewstep.core.image.settings import ImageConfig, NetworkConfig, ProcessConfig
from fewstep.core.image.teacher import load_teacher, reading, scheduler_config, shipped_teachers, teacher_folder
from fewstep.core.process import EDM, VP, RectifiedFlow
from fewstep.core.recipe import RoleSpec, StepPlan
from fewstep.core.rng import Rng

TINY = NetworkConfig(widths=(8,))
STUDENT = RoleSpec("student", ema=True)
TEACHER = RoleSpec("teacher", init="frozen")
FRESH = RoleSpec("student", init="fresh", ema=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher nobody trained, as an exported folder."""
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    problem = DOMAIN.build(ImageConfig(teacher="", network=TINY), (FRESH,), 0, "cpu")
    problem.export(problem.actors.denoiser("student"), StepPlan(times=(999.0,)), folder, {"name": "tiny"})
    return folder


def test_the_domain_is_found_and_keeps_the_contract():
    assert find_domain("image") is DOMAIN
    assert isinstance(DOMAIN, Domain)
    assert any(DOMAIN.configs.glob("*.yaml"))


def test_untrained_networks_fit_the_data_and_are_a_function_of_the_seed():
    config = ImageConfig(teacher="", network=TINY)
    first, second, other = (DOMAIN.build(config, (FRESH,), seed, "cpu") for seed in (0, 0, 1))
    weights = [next(p.actors.module("student").parameters()) for p in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.actors.shape == (1, 8, 8)
    assert isinstance(DOMAIN.process(config), VP)
    assert weights[0].requires_grad


def test_roles_start_from_the_teachers_weights(teacher):
    problem = DOMAIN.build(ImageConfig(teacher=str(teacher)), (STUDENT, TEACHER), 0, "cpu")
    x = Rng.for_batch(0, 0, 3).normal("x", problem.actors.shape)
    t, cond = torch.full((3,), 500.0), problem.conditions(3, 0)
    student, frozen = problem.actors.denoiser("student"), problem.actors.denoiser("teacher")
    assert_close(student.x0(x, t, cond), frozen.x0(x, t, cond))
    assert not any(p.requires_grad for p in problem.actors.module("teacher").parameters())
    assert problem.notes["teacher"] == str(teacher)


def test_evaluation_of_the_data_itself_is_nearly_perfect(teacher):
    problem = DOMAIN.build(ImageConfig(teacher=str(teacher)), (TEACHER,), 0, "cpu")
    data = load_data(DataConfig())
    found = problem.evaluate(data.reference, {"label": data.labels})
    assert found["frechet"] == pytest.approx(0, abs=1e-6)
    assert found["diversity"] == pytest.approx(1)
    assert found["accuracy"] > 0.98
    noise = problem.evaluate(Rng.for_batch(0, 0, 200).normal("x", (1, 8, 8)), problem.conditions(200, 0))
    assert noise["frechet"] > 20
    assert noise["precision"] < 0.5
    assert "classifier" in problem.notes["metric"]


def test_conditions_are_the_classes_in_turn_and_batches_carry_them():
    problem = DOMAIN.build(ImageConfig(teacher="", network=TINY), (FRESH,), 0, "cpu")
    assert problem.conditions(12, 3)["label"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    batch = problem.data.batch(Rng.for_batch(0, 0, 4), "cpu")
    assert batch.x0.shape == (4, 1, 8, 8)
    assert batch.cond["label"].shape == (4,)


def test_photos_make_colour_networks_with_a_class_per_photo():
    data = DataConfig(source="photos", size=8, channels=3, resize=16)
    problem = DOMAIN.build(ImageConfig(data=data, teacher="", network=TINY), (FRESH,), 0, "cpu")
    assert problem.actors.shape == (3, 8, 8)
    assert problem.actors.module("student").num_classes == 12
    assert "principal components" in problem.notes["metric"]


def test_a_folder_without_classes_makes_an_unconditional_network(tmp_path):
    for index in range(6):
        Image.new("RGB", (10, 12), (index * 40, 0, 0)).save(tmp_path / f"{index}.png")
    data = DataConfig(source="folder", path=str(tmp_path), size=8, channels=3)
    problem = DOMAIN.build(ImageConfig(data=data, teacher="", network=TINY), (FRESH,), 0, "cpu")
    assert problem.actors.module("student").num_classes == 0
    assert problem.conditions(3, 0) == {}
    assert set(problem.evaluate(Rng.for_batch(0, 0, 8).normal("x", (3, 8, 8)), {})) >= {"frechet", "sliced_wasserstein"}


@pytest.mark.parametrize(
    ("name", "prediction", "process"),
    [
        ("vp-linear", "eps", VP),
        ("vp-scaled-linear", "v", VP),
        ("rectified-flow", "flow", RectifiedFlow),
        ("edm", "x0", EDM),
    ],
)
def test_processes_are_read_back_from_their_scheduler_config(name, prediction, process):
    found, scaling = reading(
        scheduler_config(ProcessConfig(name=name, prediction=prediction, sigma_data=0.7, shift=2.0))
    )
    assert isinstance(found, process)
    assert scaling == EDMScaling(0.7) if name == "edm" else scaling.kind.value == prediction
    if name == "rectified-flow":
        assert found.shift == 2.0


@pytest.mark.parametrize("name", shipped_teachers())
def test_shipped_teachers_load_and_carry_the_command_that_made_them(name):
    teacher = load_teacher(name)
    assert isinstance(teacher, NetworkDenoiser)
    assert next(teacher.backbone.parameters()).dtype == torch.float32
    card = json.loads((teacher_folder(name) / "fewstep.json").read_text())["card"]
    assert card["made by"].startswith("fewstep image train --config teacher-")
    size = sum(file.stat().st_size for file in teacher_folder(name).rglob("*") if file.is_file())
    assert size < 2_000_000


def test_the_folder_of_a_run_stands_for_its_export(tmp_path, teacher):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="fewstep image export"):
        teacher_folder(str(run))
    (run / "export").symlink_to(teacher)
    assert teacher_folder(str(run)) == run / "export"


def test_what_the_domain_cannot_give_is_said(tmp_path, teacher):
    def build(config: ImageConfig, *specs: RoleSpec) -> None:
        DOMAIN.build(config, specs, 0, "cpu")

    with pytest.raises(UserError, match=r"roles student, teacher start from a teacher"):
        build(ImageConfig(teacher=""), STUDENT, TEACHER)
    with pytest.raises(UserError, match="no teacher 'digit'"):
        build(ImageConfig(teacher="digit"), TEACHER)
    with pytest.raises(UserError, match="no unet/ with scheduler/"):
        build(ImageConfig(teacher=str(tmp_path)), TEACHER)
    photos = DataConfig(source="photos", size=16, channels=3, resize=16)
    with pytest.raises(UserError, match="8x8 images of 1 channel"):
        build(ImageConfig(teacher=str(teacher), data=photos), TEACHER)
    gray = DataConfig(source="photos", size=8, channels=1, resize=16)
    with pytest.raises(UserError, match="knows 10 classes and the data has 12"):
        build(ImageConfig(teacher=str(teacher), data=gray), TEACHER)
    with pytest.raises(UserError, match="halved"):
        build(ImageConfig(teacher="", network=NetworkConfig(widths=(8, 8, 8, 8, 8))), FRESH)
    with pytest.raises(UserError, match="prediction 'eps' does not go with"):
        ProcessConfig(name="rectified-flow", prediction="eps")


# pictures


def test_rows_are_drawn_pixel_by_pixel_at_their_place(tmp_path):
    ramp = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    file = render_rows([("a", ramp), ("teacher", torch.cat([ramp, -ramp]))], tmp_path / "x" / "step-0.5")
    assert file == tmp_path / "x" / "step-0.5.png"
    sheet = Image.open(file)
    right = sheet.crop((sheet.width - 12 - TILE, sheet.height - 12 - TILE, sheet.width - 12, sheet.height - 12))
    small = right.convert("L").resize((8, 8), Image.Resampling.NEAREST)
    assert list(small.tobytes()) == list(to_bytes(-ramp[0]).tobytes())


def test_colour_and_values_outside_of_the_range_are_kept_visible(tmp_path):
    assert to_bytes(torch.tensor([[[2.0, -3.0]]])).tobytes() == bytes([255, 0])
    colour = torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1).expand(3, 8, 8)
    assert to_bytes(colour).getpixel((3, 3)) == (255, 0, 128)
    assert Path(render_rows([("", colour[None])], tmp_path / "c")).exists()
    with pytest.raises(UserError, match="nothing to draw"):
        render_rows([("empty", colour[None][:0])], tmp_path / "d")
