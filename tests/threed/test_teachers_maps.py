"""Maps of geometry: colours of normals, nearness, what is between, and who may be judged by them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from threed.judge_bed import QUIET, SMALL, camera_at, true_views, view_folder, view_model
from threed.orbit_bed import RADIUS, lengths
from threed.scene_bed import difference, grad_norms, threed

from fewstep.core.errors import UserError
from fewstep.threed.scenes.field import FieldScene
from fewstep.threed.scenes.splats import GaussianScene
from fewstep.threed.settings import ThreedConfig
from fewstep.threed.teachers.maps import REACH, GeometryJudge, Maps, geometry_maps
from fewstep.threed.teachers.opening import open_judge, view_judge
from fewstep.threed.views import Views

SIZE = 33  # odd: one pixel looks at the middle


def ball(*angles):
    """The maps of a ball about the origin."""
    camera = camera_at(*angles, size=SIZE)
    met, (origins, directions) = lengths(camera), camera.rays()
    hit = met.isfinite()[:, None].float()
    points = origins + met.nan_to_num(0.0)[..., None] * directions
    depth = met.nan_to_num(0.0) * (directions * camera.world_to_camera[:, None, None, 2, :3]).sum(-1)
    normal = (points / RADIUS).movedim(-1, 1) * hit
    return geometry_maps(Views(hit.expand(-1, 3, -1, -1), hit, depth[:, None], normal), camera)


def test_what_faces_the_camera_is_blue_as_is_the_background():
    maps = ball((20.0, 30.0))[0]
    middle, corner = maps[:, SIZE // 2, SIZE // 2], maps[:, 0, 0]
    assert torch.allclose(middle[:3], torch.tensor([0.5, 0.5, 1.0]), atol=1e-5)
    assert torch.allclose(corner, torch.tensor([0.5, 0.5, 1.0, 0.0]), atol=1e-6)


def test_red_grows_to_the_left_and_green_upwards():
    maps, half = ball((0.0, 0.0))[0], SIZE // 2
    covered = (maps[3] > 0).nonzero()
    left, right = int(covered[:, 1].min()) + 1, int(covered[:, 1].max()) - 1
    top, bottom = int(covered[:, 0].min()) + 1, int(covered[:, 0].max()) - 1
    assert maps[0, half, left] > 0.7 > 0.3 > maps[0, half, right]
    assert maps[1, top, half] > 0.7 > 0.3 > maps[1, bottom, half]


def test_a_ball_looks_the_same_from_everywhere():
    maps = ball((0.0, 0.0), (70.0, 0.0), (200.0, 35.0))
    assert difference(maps[1:], maps[:1].expand(2, -1, -1, -1)) < 1e-4


def test_nearness_is_that_of_the_distance_along_the_axis():
    camera = camera_at((0.0, 0.0), size=4)
    full, zero = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    normal = torch.zeros(1, 3, 4, 4)
    normal[:, 2] = 1
    for depth, nearness in ((3.2 - REACH, 1.0), (3.2, 0.5), (3.2 + REACH, 0.0), (1.0, 1.0), (9.0, 0.0)):
        seen = Views(normal, full, full * depth, normal)
        assert torch.allclose(geometry_maps(seen, camera)[:, 3], full[:, 0] * nearness, atol=1e-5), depth
    # half covered: half of what is there, half of the background
    there = geometry_maps(Views(normal, full, full * 2.5, normal), camera)
    empty = geometry_maps(Views(normal, zero, zero, zero.expand(-1, 3, -1, -1)), camera)
    half = geometry_maps(Views(normal, full / 2, full * 2.5 / 2, normal / 2), camera)
    assert difference(half, (there + empty) / 2) < 1e-6


def test_samples_are_maps_averaged_over_pixels():
    judge = GeometryJudge(view_model(2, "maps").denoiser, Maps(8, 16), lambda texts: {}, ThreedConfig().cameras, 2)
    camera = camera_at((0.0, 10.0), (90.0, 10.0))
    seen = true_views("a red cone", camera)
    whole = geometry_maps(seen, camera)
    assert judge.shape == (2, 4, 8, 8)
    expected = whole.reshape(2, 4, 8, 2, 8, 2).mean((3, 5))
    assert difference(judge.x0(seen, camera)[0], expected) < 1e-6
    assert judge.pictures(judge.x0(seen, camera)).shape == seen.rgb.shape


@pytest.mark.parametrize("views", [1, 2])
def test_a_folder_of_maps_is_a_judge_of_geometry(views, tmp_path):
    judge = open_judge(ThreedConfig(teacher=str(view_folder(tmp_path / "m", views, "maps"))))
    assert isinstance(judge, GeometryJudge)
    assert judge.shape == (views, 4, 16, 16)
    camera = camera_at(*[(90.0 * view, 10.0) for view in range(views)])
    scene = FieldScene("neus", side=8, channels=4, sections=16, seed=0)
    with torch.no_grad():
        for parameter in scene.parameters():
            parameter.add_(0.01)
    seen = scene.views(camera)
    sample = judge.sample(seen, camera, judge.encode(["a red cone"]))
    assert judge.teacher.x0(sample.x0, torch.tensor([500.0]), sample.cond).shape == sample.x0.shape
    sample.x0.square().sum().backward()
    grads = grad_norms(scene)
    assert all(norm > 0 for name, norm in grads.items() if name.startswith(("shape", "planes")))
    assert all(norm == 0 for name, norm in grads.items() if name.startswith("colour"))


def test_scenes_without_normals_and_cameras_within_are_refused():
    judge, camera = view_judge(view_model(1, "maps")), camera_at((0.0, 0.0))
    seen = GaussianScene.ball(20, 0.5, 0, seed=0).views(camera)
    with pytest.raises(UserError, match="no normals"):
        judge.x0(replace(seen, normal=torch.zeros_like(seen.normal)), camera)
    near = camera_at((0.0, 0.0), distance=1.5)
    with pytest.raises(UserError, match="inside the object"):
        judge.x0(replace(true_views("a red cone", camera)), near)
    with pytest.raises(UserError, match="too few for maps"):
        Maps(32, 16)


def test_sds_carves_a_field_by_its_geometry(tmp_path):
    teacher = view_folder(tmp_path / "m", 2, "maps")
    given = (f"domain.teacher={teacher}", "domain.scene.kind=neus", *QUIET, *SMALL)
    assert threed("train", "--config", "sds-solids", "--out", tmp_path / "run", *given) == 0
