"""Students of pipelines: a LoRA file or a pipeline folder that stock diffusers samples exactly as we do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from core.export_bed import CARD, Case, found_teacher, give_noise, run_cards, sampled_by_us, student_of
from core.model_bed import FEW, NAMES, stock
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.models.export import LORA_FILE, can_load_lora, export_lora, export_pipeline, export_student
from fewstep.core.models.files import PipelineFolder, quiet
from fewstep.core.models.loading import Teacher
from fewstep.core.models.student import PLAN_FILE
from fewstep.core.process import RectifiedFlow

VP = ("sd", "sdxl", "pixart", "cogvideox", "modelscope", "animatediff")
GIVEN_GRID = ("wan", "ltx")  # pipelines that take no times of one's own


def consistency(family: str) -> dict:
    return {"boundary": "lcm" if family in VP else "jump", "num_knots": 50}


FIRST = [
    case
    for name in NAMES
    for case in (
        Case(name, "lora", "tdm", 4, {"student_start": 0.9 if name in VP else 1.0}),
        Case(name, "full", "dmd2", 2, {"student_steps": 2}),
    )
]
QUICK = [case for case in FIRST if case.family in FEW]
SLOW = [case for case in FIRST if case.family not in FEW]
SLOW += [
    case
    for name in NAMES
    for case in (
        Case(name, "full", "tdm", 1, {"student_steps": 1, "student_start": 1.0}),
        Case(name, "lora", "consistency", 2 if name in GIVEN_GRID else 4, consistency(name)),
        Case(name, "lora", "ladd", 1),
        Case(name, "full", "dmd2", 4, {"student_steps": 4}),
    )
]
SLOW += [
    Case("sd", "lora", "tcd", 4),
    Case("sana", "full", "scm", 2, {"sigma_data": 1.0}),
    Case("sd3", "full", "dmd2", 3, {"student_times": (1.0, 0.7, 0.2)}),
    Case("pixart", "full", "dmd2", 3, {"student_times": (1.0, 0.7, 0.2)}),
]


def exported(root: Path, cases: tuple[Case, ...]) -> Path:
    """Cases exported and sampled by stock diffusers, in one process: importing it takes seconds."""
    for case in cases:
        denoiser, plan = student_of(case)
        export_student(denoiser, plan, root / case.name, CARD, found_teacher(case.family))
        give_noise(case, root / case.name)
    run_cards(root)
    return root


def check_same(case: Case, folder: Path) -> None:
    found = found_teacher(case.family)
    theirs = load_file(folder / "theirs.safetensors")
    ours, plan = sampled_by_us(case)
    process = found.reading()[0]
    scale = process.time_scale if isinstance(process, RectifiedFlow) else 1.0
    expected = torch.tensor(plan.times, dtype=torch.float64) * scale
    assert_close(theirs["times"], expected, atol=1e-3, rtol=1e-6)
    latents = found.family.from_pipeline(theirs["latents"], found.shape)
    assert_close(latents, ours, atol=1e-4, rtol=1e-4)
    assert ours.std() > 0.1
    pixels = (found.vae().decode(ours)[0] / 2 + 0.5).clamp(0, 1) * 255
    pictures = theirs["pictures"].movedim(-1, 0).double()  # c, frames (one for an image), h, w
    pictures *= 255 if theirs["pictures"].is_floating_point() else 1
    assert_close(pixels.double().reshape(pictures.shape), pictures, atol=0.6, rtol=0)
    assert (folder / LORA_FILE).exists() == (case.mode == "lora" and can_load_lora(found))


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("quick"), tuple(QUICK))


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("slow"), tuple(SLOW))


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_students_sample_as_ours_in_stock_diffusers(quick, case):
    check_same(case, quick / case.name)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.name)
def test_students_of_other_families_and_recipes_sample_as_ours_in_stock_diffusers(slow, case):
    check_same(case, slow / case.name)


def test_forms_and_plans_that_stock_pipelines_do_not_take_are_refused(tmp_path):
    odd, late = {"student_times": (1.0, 0.7, 0.2)}, {"student_steps": 2, "student_start": 0.9}
    cases = [
        (export_lora, Case("pixart", "lora", "dmd2", 1), "PixArtSigmaPipeline loads no LoRA files.*--as pipeline"),
        (export_lora, Case("sd3", "full", "dmd2", 1), "roles.mode=full.*--as pipeline"),
        (export_lora, Case("sd", "lora", "consistency", 1, {"guidance_max": 2.0}), "guidance.*export the merged"),
        (export_student, Case("wan", "lora", "dmd2", 3, odd), "takes no sigmas=.*student_steps"),
        (export_student, Case("ltx", "lora", "consistency", 4, consistency("ltx")), "takes no sigmas=.*num_knots"),
        (export_student, Case("sd3", "lora", "tdm", 2, late), "at 0.9 of the clock.*student_start=1"),
        (export_student, Case("sd3", "lora", "tcd", 2), "no jumps"),
        (export_student, Case("pixart", "lora", "tdm", 3, odd), "uniform steps only.*student_steps"),
    ]
    for export, case, named in cases:
        denoiser, plan = student_of(case)
        with pytest.raises(UserError, match=named) as caught:
            export(denoiser, plan, tmp_path / "out", CARD, found_teacher(case.family))
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_extra_input_is_folded_into_a_pipeline_by_default(tmp_path):
    case = Case("sd", "lora", "consistency", 1, {"guidance_max": 2.0, "boundary": "lcm"})
    denoiser, plan = student_of(case)
    export_student(denoiser, plan, tmp_path / "out", CARD, found_teacher("sd"))
    assert (tmp_path / "out" / "unet").is_dir()
    assert not (tmp_path / "out" / LORA_FILE).exists()


def test_an_export_leaves_student_and_teacher_as_they_were(tmp_path):
    for case in (Case("sd", "lora", "dmd2", 1), Case("sd3", "full", "dmd2", 1)):
        found = found_teacher(case.family)
        before = {file: file.read_bytes() for file in found.folder.path.rglob("*") if file.is_file()}
        denoiser, plan = student_of(case)
        state = {name: value.clone() for name, value in denoiser.backbone.state_dict().items()}
        export_student(denoiser, plan, tmp_path / "out", CARD, found)
        export_pipeline(denoiser, plan, tmp_path / "out", CARD, found)
        assert all(torch.equal(value, denoiser.backbone.state_dict()[name]) for name, value in state.items())
        assert {file: file.read_bytes() for file in found.folder.path.rglob("*") if file.is_file()} == before
    assert (tmp_path / "out" / PLAN_FILE).is_file()


def test_a_card_names_a_hub_teacher_by_its_id_and_a_local_one_by_its_path(tmp_path, monkeypatch):
    found, (denoiser, plan) = found_teacher("sd"), student_of(Case("sd", "lora", "dmd2", 1))
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/sd").symlink_to(found.folder.path)
    for name, local in (("models/sd", True), ("owner/sd", False)):
        folder = PipelineFolder.open(found.folder.path, name, "fp16")
        export_student(denoiser, plan, tmp_path / "out", CARD, Teacher(folder, found.size))
        card = (tmp_path / "out" / "README.md").read_text()
        loads = str(found.folder.path) if local else name
        assert f"from_pretrained({loads!r}, variant='fp16', use_safetensors=True)" in card
        assert ("base_model: owner/sd" in card) == (not local)


def test_components_of_a_variant_load_beside_the_students_network(tmp_path):
    found, (denoiser, plan) = found_teacher("sd"), student_of(Case("sd", "full", "dmd2", 1))
    stock(found).save_pretrained(tmp_path / "half", variant="fp16")
    other = Teacher(PipelineFolder.open(tmp_path / "half", variant="fp16"), found.size)
    export_student(denoiser, plan, tmp_path / "out", CARD, other)
    assert "from_pretrained(\".\", variant='fp16', use_safetensors=True)" in (tmp_path / "out/README.md").read_text()
    with quiet():
        pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out", variant="fp16", use_safetensors=True)
    for name, value in denoiser.backbone.network.state_dict().items():
        assert torch.equal(pipe.unet.state_dict()[name], value)
