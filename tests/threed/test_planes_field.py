"""Fields of six planes: their orientation, their pictures, their meshes and clouds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from threed.planes_bed import FIELD
from torch import nn
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.core.tensors import scale_gradient
from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.planes.field import FieldConfig, FieldHeads, Hits, PlaneField
from fewstep.threed.planes.surfels import surfels, turned_to

F64 = torch.float64
WHOLE = FieldConfig(hidden=4, layers=0, bound=1.0)


def cameras(count: int, size: int = 8) -> Camera:
    azimuth = torch.arange(count, dtype=F64) * 50
    full = torch.ones_like(azimuth)
    return orbit(azimuth, full * 20, full * 3, full * 40, size, size)


def field_of(objects: int, config=FIELD, *, side: int = 8, alive: bool = True, features: int = 4) -> PlaneField:
    torch.manual_seed(0)
    heads = FieldHeads(features, config).double()
    if alive:  # the distance's last layer starts at zero
        nn.init.normal_(heads.sdf.mlp.layers[-1].weight, std=0.1)
    return PlaneField(torch.randn(objects, 6, features, side, side, dtype=F64, requires_grad=True), heads, config)


@pytest.mark.parametrize(
    ("layout", "wanted"),
    [("image_like", [(-0.2, 0.3), (-0.3, -0.5), (-0.2, -0.5)]), ("corrected", [(0.3, -0.2), (0.3, 0.5), (0.5, -0.2)])],
)
def test_a_plane_filled_with_its_own_coordinates_says_which_axes_it_reads(layout, wanted):
    side = 64
    at = (2 * torch.arange(side, dtype=F64) + 1) / side - 1
    height, width = torch.meshgrid(at, at, indexing="ij")
    plane = torch.stack([width, height])
    point = torch.tensor([[[0.3, -0.2, 0.5]]], dtype=F64)
    for which in range(6):
        planes = torch.zeros(1, 6, 2, side, side, dtype=F64)
        planes[:, which] = plane
        seen = {}
        field = PlaneField(planes, FieldHeads(2, replace(WHOLE, layout=layout)).double(), replace(WHOLE, layout=layout))
        field.heads.colour.forward = lambda read, into=seen: into.update(texture=read) or read
        field.heads.sdf.forward = lambda read, points, into=seen: into.update(geometry=read) or points[..., 0]
        field.colour(point)
        field.sdf(point)
        if which < 3:
            assert_close(seen["geometry"][0, 0], torch.tensor(wanted[which], dtype=F64))
            assert not seen["texture"].any()
        else:
            got = seen["texture"][0, 0].reshape(3, 2)
            assert_close(got[which - 3], torch.tensor(wanted[which - 3], dtype=F64))
            assert not seen["geometry"].any()


def test_a_field_starts_as_its_sphere():
    field = field_of(1, replace(FIELD, sections=64, fine=32, sharpness=400.0), alive=False)
    camera = cameras(1, 24)
    seen = field.views(camera)
    origins, directions = camera.rays()
    nearest = torch.linalg.cross(origins, directions).norm(dim=-1)  # of each ray to the middle
    sure = (nearest - FIELD.radius).abs() > 0.03
    assert_close(seen.alpha[0, 0][sure[0]], (nearest < FIELD.radius).to(F64)[0][sure[0]], atol=0.02, rtol=0)
    middle = seen.depth[0, 0, 12, 12] / seen.alpha[0, 0, 12, 12]
    assert middle.item() == pytest.approx(3 - FIELD.radius, abs=0.02)
    facing = seen.normal[0, :, 11:13, 11:13].mean((1, 2))
    assert_close(facing, camera.position[0] / 3, atol=0.05, rtol=0)


@pytest.mark.parametrize("opacity", ["volsdf", "neus"])
@pytest.mark.parametrize("normals", [True, False])
def test_objects_of_a_batch_are_rendered_as_if_alone(opacity, normals):
    config = replace(FIELD, opacity=opacity, normals=normals)
    field, camera = field_of(3, config), cameras(6)
    rng = Rng(0, 0, (4, 5, 6))
    whole = field.views(camera, 0.5, rng)
    for index in range(3):
        alone = field.only(index).views(camera.select(2 * index, 2 * index + 2), 0.5, rng.select(index, index + 1))
        for name in ("rgb", "alpha", "depth", "normal"):
            assert_close(getattr(whole, name)[2 * index : 2 * index + 2], getattr(alone, name))


def test_rays_that_miss_the_cube_see_the_background_whatever_their_number():
    hits = Hits.of(torch.tensor([[False, True, False, True], [False, False, False, True]]))
    assert hits.index.shape == (2, 2)
    x = torch.arange(8.0).reshape(2, 4, 1)
    rows = hits.take(x)
    assert rows[:3, 0].tolist() == [1.0, 3.0, 7.0]
    put = hits.put(rows + 100, torch.zeros(2, 4, 1))
    assert put[..., 0].tolist() == [[0, 101, 0, 103], [0, 0, 0, 107]]


def test_colours_of_backgrounds_reach_every_pixel_by_what_is_not_covered():
    field, camera = field_of(2), cameras(2)
    black, white = field.views(camera, 0.0), field.views(camera, 1.0)
    given = torch.tensor([[0.2, 0.4, 0.6], [1.0, 0.0, 0.5]], dtype=F64)
    seen = field.views(camera, given)
    assert_close(white.rgb - black.rgb, (1 - black.alpha).expand(-1, 3, -1, -1))
    assert_close(seen.rgb, black.rgb + (1 - black.alpha) * given[:, :, None, None])


def test_a_scaled_gradient_leaves_values_and_second_derivatives_of_what_it_says():
    x = torch.tensor([1.5, -2.0], dtype=F64, requires_grad=True)
    y = scale_gradient(x**2, 0.1)
    assert torch.equal(y.detach(), (x**2).detach())
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert_close(first, 0.2 * x)
    assert_close(torch.autograd.grad(first.sum(), x)[0], torch.full_like(x, 0.2))


def test_colours_learn_by_the_share_of_the_gradient_they_are_given():
    field, camera = field_of(1), cameras(1)
    found = []
    for share in (1.0, 0.01):
        field.colour_gradient = share
        seen = field.views(camera)
        found.append(torch.autograd.grad(seen.rgb.sum(), [field.heads.colour.mlp.layers[0].weight, field.geometry]))
    assert_close(found[1][0], 0.01 * found[0][0])
    assert_close(found[1][1], found[0][1])  # what is where still hears everything


def test_the_eikonal_loss_of_a_sphere_is_nothing_and_trains_planes_otherwise():
    rng = Rng(0, 0, (0, 1))
    assert field_of(2, alive=False).eikonal(rng, 50).abs().max() < 1e-9
    field = field_of(2)
    value = field.eikonal(rng, 50)
    assert value.shape == (2,)
    assert (value > 0).all()
    assert torch.autograd.grad(value.sum(), field.geometry)[0].abs().sum() > 0


def test_a_scene_is_a_mesh_and_a_cloud_with_the_fields_colours():
    field = field_of(2)
    with torch.no_grad():
        field.heads.sdf.mlp.layers[-1].weight.mul_(0.2)
    scene = field.scene(1)
    mesh, cloud = scene.mesh(40), scene.gaussians()
    on = field.only(1)
    assert on.sdf(mesh.vertices[None]).abs().max() < 0.02
    assert_close(mesh.colours, on.colour(mesh.vertices[None].double())[0].detach().clamp(0, 1).to(mesh.colours))
    assert mesh.volume() > 0
    assert len(cloud) == FIELD.gaussians
    assert on.sdf(cloud.means[None].double()).abs().max() < 0.02


def test_what_leaves_the_cube_is_closed_there():
    field = field_of(1, alive=False)
    field.heads.sdf.radius = 0.7
    mesh = field.scene(0).mesh(32)
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(1).values
    assert (torch.unique(edges, dim=0, return_counts=True)[1] == 2).all()
    assert mesh.vertices.abs().max() < FIELD.bound


def test_surfels_are_even_in_area_and_flat_along_the_normal():
    corners = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [3, 0, 0], [3, 0, 2]], dtype=F64)
    mesh = Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3], [1, 4, 5]]), torch.rand(6, 3, dtype=F64))
    cloud = surfels(mesh, 3000)
    flat = cloud.means[:, 2].abs() < 1e-9
    assert flat.sum().item() == pytest.approx(1000, abs=2)  # areas 1/2, 1/2 and 2
    assert (cloud.means[flat, :2].mean(0) - 0.5).abs().max() < 0.02
    w, x, y, z = cloud.rotations.unbind(1)
    axis = torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], 1)  # the turned z axis
    assert_close(axis[flat], torch.tensor([0.0, 0, 1], dtype=F64).expand(int(flat.sum()), 3))
    assert_close(axis[~flat].abs(), torch.tensor([0.0, 1, 0], dtype=F64).expand(int((~flat).sum()), 3))
    scales = cloud.scales
    assert (scales[:, 2] < 0.2 * scales[:, 0]).all()


def test_normals_turn_the_z_axis_even_when_it_is_upside_down():
    torch.manual_seed(0)
    normals = nn.functional.normalize(torch.randn(20, 3, dtype=F64), dim=1)
    normals[0] = torch.tensor([0, 0, -1.0])
    w, x, y, z = turned_to(normals).unbind(1)
    assert_close(torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], 1), normals)


def test_what_cannot_be_rendered_is_told_in_one_line():
    field = field_of(2)
    with pytest.raises(UserError, match="3 cameras cannot be shared by 2 objects"):
        field.views(cameras(3))
    with pytest.raises(UserError, match="inside the object"):
        field.only(0).views(orbit(*(torch.tensor([v]) for v in (0.0, 0.0, 0.3, 40.0)), 8, 8).to(F64), 1.0)
    with pytest.raises(UserError, match="one Gaussian or more"):
        surfels(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), 0)
    with pytest.raises(UserError, match="no area"):
        surfels(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), 5)
    with pytest.raises(UserError, match="deform"):
        field.deformation(torch.zeros(2, 1, 3, dtype=F64))
    empty = field_of(1, alive=False)
    empty.heads.sdf.radius = -0.1
    with pytest.raises(UserError, match="no surface"):
        empty.scene(0).mesh(16)
    for wrong in ({"radius": 2.0}, {"sections": 0}, {"sharpness": 0.0}, {"hidden": 0}):
        with pytest.raises(UserError, match="field"):
            replace(FIELD, **wrong)
