"""The problem of orbits: which pictures make an orbit, roles from folders, measures, and a student that leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.core.networks.roles import RolesConfig
from fewstep.core.recipes.diffusion import Diffusion, DiffusionConfig
from fewstep.core.rng import Rng
from fewstep.threed.image_to_3d import load_image_to_3d
from fewstep.threed.orbit import data as orbit_data
from fewstep.threed.orbit.data import ELEVATIONS, FREE, STEPS, OrbitData, Photos
from fewstep.threed.orbit.decoder import DecoderConfig
from fewstep.threed.orbit.pixels import to_pixels
from fewstep.threed.orbit.problem import OrbitConfig, orbit_problem
from fewstep.threed.orbit.supervision import OrbitGeometry
from fewstep.threed.recipes.gsv3d import GSV3D, GSV3DConfig
from fewstep.threed.shapes import split_prompts

GEOMETRY = OrbitGeometry(size=8)
CONFIG = OrbitConfig(teacher="", decoder="", views=4, widths=(16, 16), geometry=GEOMETRY)
RECIPE = GSV3DConfig(decoder=DecoderConfig(width=16, layers=1, heads=2), geometry=GEOMETRY, decoder_steps=1)


def numbered(prompts: object, geometry: OrbitGeometry) -> Photos:
    """Pictures whose red says which side they are of, and whose green which thing."""
    things, sides = len(list(prompts)), STEPS * len(ELEVATIONS) + FREE  # type: ignore[call-overload]
    rgb = torch.zeros(things, sides, 3, geometry.size, geometry.size, dtype=torch.uint8)
    rgb[:, :, 0] = torch.arange(sides)[:, None, None]
    rgb[:, :, 1] = torch.arange(things)[:, None, None, None]
    alpha = torch.full_like(rgb[:, :, :1], 255)
    turn = torch.cat([torch.arange(STEPS).repeat(len(ELEVATIONS)) * (360 / STEPS), torch.arange(FREE) + 0.5])
    level = torch.cat([torch.tensor(ELEVATIONS).repeat_interleave(STEPS), torch.full((FREE,), 7.0)])
    return Photos(rgb, alpha, alpha.half(), turn.expand(things, -1), level.expand(things, -1))


@pytest.fixture(autouse=True)
def _numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbit_data, "photographs", numbered)


def numbers(pixels: Tensor, channel: int) -> list[int]:
    return (255 * pixels[:, channel, 0, 0]).round().long().tolist()


def test_an_orbit_goes_around_at_one_elevation_and_ends_at_its_picture() -> None:
    data = OrbitData(split_prompts()[0], GEOMETRY, views=4, seen=3)
    thing, side, level = torch.tensor([5, 0]), torch.tensor([2, 23]), torch.tensor([0, 2])
    seen = torch.tensor([[2, 8, 72], [0, 1, 2]])
    batch = data.orbits(thing, side, level, seen, "cpu")
    z = batch.clean_samples("")
    views = to_pixels(z)
    assert numbers(views[0], 0) == [8, 14, 20, 2]
    assert numbers(views[1], 0) == [48 + 5, 48 + 11, 48 + 17, 48 + 23]
    assert numbers(views[0], 1) == [5] * 4
    assert torch.equal(batch.cond["image"], z[:, -1])
    # angles are counted from the picture: side 2 is the front, side 8 a quarter turn on
    azimuth = torch.rad2deg(batch.cond["seen_azimuth"][0])
    assert torch.allclose(azimuth, torch.tensor([0.0, 90.0, 0.5 - 30.0]), atol=1e-4)
    assert torch.allclose(torch.rad2deg(batch.cond["polar"][1]), torch.full((4,), 60.0), atol=1e-4)
    assert torch.allclose(torch.rad2deg(batch.cond["seen_polar"][0]), torch.tensor([90.0, 90.0, 83.0]), atol=1e-4)


def test_a_batch_is_a_function_of_the_step() -> None:
    data = OrbitData(split_prompts()[0], GEOMETRY, views=4)
    first, again, other = (data.batch(Rng.for_batch(0, step, 4), "cpu").clean_samples("") for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(UserError, match="7 views: must divide 24"):
        OrbitData(split_prompts()[0], GEOMETRY, views=7)


def test_a_student_leaves_as_a_model_whose_decoder_a_later_run_starts_from(tmp_path: Path) -> None:
    problem = orbit_problem(CONFIG, GSV3D.role_specs(RECIPE), 0, "cpu")
    recipe = GSV3D(RECIPE, problem.actors)
    cond = problem.conditions(7, 0)
    held = split_prompts()[1]
    assert numbers(to_pixels(cond["truth"][: len(held), -1]), 1) == list(range(len(held)))
    found = problem.evaluate(cond["truth"], cond)
    assert found["psnr"] == float("inf")
    assert 0 <= found["iou_min"] <= found["iou"] <= 1
    plan = GSV3D.plan(RECIPE, problem.actors.process, 4)
    problem.export(problem.actors.denoiser("student"), plan, tmp_path / "run", {"name": "test"})
    assert load_image_to_3d(str(tmp_path / "run")).plan == plan
    assert problem.render([("truth", cond["truth"])], tmp_path / "views").is_file()
    later = replace(
        CONFIG, teacher=str(tmp_path / "run"), decoder=str(tmp_path / "run"), roles=RolesConfig(mode="full")
    )
    again = orbit_problem(later, GSV3D.role_specs(RECIPE), 1, "cpu")
    for name, value in recipe.actors.module("decoder").state_dict().items():
        assert torch.equal(value, again.actors.module("decoder").state_dict()[name])
    other = replace(RECIPE, decoder=replace(RECIPE.decoder, width=32))
    with pytest.raises(UserError, match=r"a decoder of other settings than recipe\.decoder"):
        orbit_problem(later, GSV3D.role_specs(other), 0, "cpu")
    with pytest.raises(UserError, match="makes 4 views of 48x2x2, and the orbits here are 8 of 48x2x2"):
        orbit_problem(replace(later, views=8), GSV3D.role_specs(RECIPE), 0, "cpu")


def test_a_teacher_is_trained_on_the_same_problem(tmp_path: Path) -> None:
    config = DiffusionConfig(label_dropout=0.1)
    problem = orbit_problem(CONFIG, Diffusion.role_specs(config), 0, "cpu")
    batch = problem.data.batch(Rng.for_batch(0, 0, 2), "cpu")
    terms = Diffusion(config, problem.actors).loss("denoise", batch, Rng.for_batch(0, 0, 2), 0)
    assert bool(terms.total().isfinite().all())
    plan = Diffusion.plan(config, problem.actors.process, 2)
    problem.export(problem.actors.denoiser("student"), plan, tmp_path, {})
    assert orbit_problem(replace(CONFIG, teacher=str(tmp_path)), Diffusion.role_specs(config), 0, "cpu")
