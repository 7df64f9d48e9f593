"""Laws of restoring pictures in parts: places decide the noise, tiles do not decide the result."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from restoration.model_bed import small_model, written_model
from torch.nn import functional as F

from fewstep.core.errors import UserError
from fewstep.restoration.restorer import BLOCK, PlaceRng, Restorer


def picture(height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_noise_is_a_function_of_the_place() -> None:
    whole = PlaceRng(3, 0, (0,)).normal("noise", (2, 150, 200))
    top, left = 37, BLOCK + 5
    part = PlaceRng(3, 0, (0,), place=(top, left)).normal("noise", (2, 70, 90))
    assert torch.equal(part, whole[:, :, top : top + 70, left : left + 90])
    assert float(whole.std()) == pytest.approx(1, abs=0.01)
    other = PlaceRng(3, 0, (0,)).normal("other", (2, 150, 200))
    assert abs(float((whole * other).mean())) < 0.02
    blocks = whole[0, :, :64, :64].flatten(), whole[0, :, :64, 64:128].flatten()
    assert abs(float(torch.corrcoef(torch.stack(blocks))[0, 1])) < 0.05


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("student", [True, False])
def test_a_part_of_a_picture_is_restored_as_within_the_whole(scale: int, student: bool) -> None:
    restorer = Restorer(small_model(student=student, steps=2))
    step, reach = restorer.multiple(scale), restorer.reach(scale)
    side = 2 * reach + 24
    x = picture(16, side + side % 2)
    whole = restorer(x, scale)
    left = -(-reach // step) * step
    part = restorer(x[..., left:], scale, left=left)
    inside = reach * scale
    assert torch.allclose(part[..., inside:], whole[..., left * scale + inside :], atol=1e-5)
    assert not torch.allclose(part[..., :4], whole[..., left * scale : left * scale + 4], atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (13, 10)])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_every_size_gives_exactly_its_multiple(size: tuple[int, int], scale: int) -> None:
    out = Restorer(small_model(student=True))(picture(*size), scale)
    assert tuple(out.shape) == (1, 3, size[0] * scale, size[1] * scale)
    assert bool(out.isfinite().all())


def test_an_untrained_student_without_noise_is_bicubic() -> None:
    model = small_model(student=True)
    for p in model.denoiser.backbone.parameters():
        torch.nn.init.zeros_(p)
    x = picture(12, 10)
    out = Restorer(model, noise=0)(x, 4)
    assert torch.allclose(out, F.interpolate(x, scale_factor=4, mode="bicubic"), atol=1e-5)


def test_seeds_matter_and_zero_noise_has_none() -> None:
    x, model = picture(12, 12), small_model(student=True)
    a, b = (Restorer(model, seed=seed)(x, 4) for seed in (0, 1))
    assert not torch.allclose(a, b, atol=1e-3)
    assert torch.equal(a, Restorer(model, seed=0)(x, 4))
    c, d = (Restorer(model, seed=seed, noise=0)(x, 4) for seed in (0, 1))
    assert torch.equal(c, d)


def test_a_teacher_runs_all_its_levels_and_a_student_one() -> None:
    x = picture(8, 8)
    teacher, student = Restorer(small_model(steps=4)), Restorer(small_model(student=True, steps=4))
    teacher(x, 4), student(x, 4)
    assert (teacher.steps, teacher.evaluations, student.steps, student.evaluations) == (4, 4, 1, 1)
    fewer = Restorer(small_model(steps=4), steps=2)
    fewer(x, 4)
    assert fewer.evaluations == 2
    with pytest.raises(UserError, match="step"):
        Restorer(small_model(steps=4), steps=9)


def test_ancestral_sampling_differs_and_is_the_same_in_parts() -> None:
    model = small_model(steps=2)
    x = picture(8, 120)
    restorer = Restorer(model, sampler="ancestral")
    whole = restorer(x, 4)
    assert not torch.allclose(whole, Restorer(model)(x, 4), atol=1e-3)
    left = restorer.multiple(4) * math.ceil(restorer.reach(4) / restorer.multiple(4))
    part = restorer(x[..., left:], 4, left=left)
    inside = 4 * restorer.reach(4)
    if part.shape[-1] > inside:
        assert torch.allclose(part[..., inside:], whole[..., 4 * left + inside :], atol=1e-5)


def test_another_scale_and_a_start_between_positions_are_refused() -> None:
    restorer = Restorer(small_model(scales=(4,)))
    with pytest.raises(UserError, match="magnifies by 4, not by 2"):
        restorer(picture(8, 8), 2)
    with pytest.raises(UserError, match="multiples of 2"):
        restorer(picture(8, 8), 4, top=1)


@pytest.mark.parametrize("student", [True, False])
def test_a_model_comes_back_from_its_folder(tmp_path: Path, student: bool) -> None:
    model = small_model((2, 4), student=student)
    folder = written_model(tmp_path / "m", model)
    again = Restorer.load(str(folder))
    assert again.scales == (2, 4)
    assert again.steps == (1 if student else 4)
    x = picture(8, 12)
    assert torch.equal(again(x, 4), Restorer(model, name="m")(x, 4))


def change(folder: Path, **entries: object) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"scales": []}, "scales"),
        ({"scales": [400]}, "scales"),
        ({"process": {"name": "other"}}, "process"),
        ({"process": {"steps": 0}}, "process"),
        ({"space": None}, "space"),
        ({"sampling": {"times": [99.0]}}, "sampling"),
        ({"sampling": {"unknown": 1}}, "sampling"),
        ({"sampling": {"times": [3.0], "mode": "backwards"}}, "mode 'backwards'"),
        ({"sampling": {"times": [3.0], "start": "anywhere"}}, "start 'anywhere'"),
        ({"kind": "denoiser"}, "describes"),
        ({"network": {"widths": [8, 13], "blocks": 1, "time_width": 16}}, "model.safetensors"),
        ({"network": {"width": 8}}, "network"),
        ({"channels": 10**9}, "channels"),
    ],
)
def test_a_folder_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path, entries: dict, message: str) -> None:
    folder = written_model(tmp_path / "m", small_model(student=True))
    change(folder, **entries)
    with pytest.raises(UserError, match=message) as error:
        Restorer.load(str(folder))
    assert len(str(error.value).splitlines()) == 1


def test_damaged_weights_and_unknown_names_are_refused(tmp_path: Path) -> None:
    folder = written_model(tmp_path / "m", small_model())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="safetensors"):
        Restorer.load(str(folder))
    with pytest.raises(UserError, match="no model 'photoz'"):
        Restorer.load("photoz")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="exported nothing yet"):
        Restorer.load(str(tmp_path / "run"))
    with pytest.raises(UserError, match="--device cuda:7"):
        Restorer.load(str(folder), device="cuda:7")
