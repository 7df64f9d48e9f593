"""Pictures of meshes against exact ones, their gradients within triangles and at outlines, and what hides what."""

from __future__ import annotations

import math

import pytest
import torch
import trimesh
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed import shapes
from fewstep.threed.cameras import orbit, turntable
from fewstep.threed.fields import mesh_raster
from fewstep.threed.fields.mesh_rendering import render_mesh
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.shapes.rendering import shade

F64 = torch.float64
DISTANCE, FOV = 3.2, 40.0


def camera_at(azimuth=0.0, elevation=0.0, width=32, height=32):
    return orbit(*(torch.tensor([v], dtype=F64) for v in (azimuth, elevation, DISTANCE, FOV)), width, height)


def ball(radius=0.8, detail=3):
    made = trimesh.creation.icosphere(subdivisions=detail, radius=radius)
    return torch.tensor(made.vertices, dtype=F64), torch.tensor(made.faces)


def triangle(*corners):
    return torch.tensor(corners, dtype=F64), torch.tensor([[0, 1, 2]])


def test_a_solid_looks_as_its_exact_pictures_do():
    solid = shapes.build(shapes.read("a red sphere"))
    found = shapes.extract_mesh(solid, 64)
    camera = turntable(3, 64, 64, distance=DISTANCE, fov_y_deg=FOV, elevation_deg=20.0, dtype=F64)

    def colour(points):
        return shade(solid.albedo(points), solid.normal(points))

    mesh = Mesh(found.vertices, found.faces)
    views = render_mesh(mesh, camera, colour, samples=3)
    truth = shapes.render(solid, camera.world_to_camera, camera.intrinsics, 64, 64, samples=3)
    assert (views.alpha - truth.alpha).abs().mean() < 1e-3
    assert (views.rgb - truth.rgb).abs().mean() < 2e-3
    sharp = render_mesh(mesh, camera, colour, samples=1)
    both = truth.hit & (sharp.alpha == 1)
    assert both.sum() > 0.98 * truth.hit.sum()
    assert (sharp.depth - truth.depth)[both].abs().mean() < 2e-3
    cosine = (sharp.normal * truth.normal).sum(1, keepdim=True)[both]
    assert cosine.mean() > 0.998


def test_no_pixel_falls_between_triangles_smaller_than_it():
    vertices, faces = ball(detail=5)
    camera = camera_at(20.0, 30.0)
    for dtype in (F64, torch.float32):
        alpha = render_mesh(Mesh(vertices.to(dtype), faces), camera, samples=3).alpha[0, 0]
        at = torch.arange(32) + 0.5 - 16
        focal = camera.intrinsics[0, 0, 0]
        edge = focal * 0.8 / math.sqrt(DISTANCE**2 - 0.8**2)
        off = torch.hypot(at[:, None], at[None])
        assert (alpha[off < edge - 0.8] == 1).all()
        assert (alpha[off > edge + 0.8] == 0).all()


def test_the_nearer_surface_is_seen_from_either_side_and_in_any_order():
    near, far = [[-1, -1, 0.5], [1, -1, 0.5], [0, 1, 0.5]], [[-1, -1, -0.5], [1, -1, -0.5], [0, 1, -0.5]]
    colours = torch.eye(3, dtype=F64)[[0, 0, 0, 1, 1, 1]]
    vertices = torch.tensor(near + far, dtype=F64)
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    pictures = [
        render_mesh(Mesh(vertices, order, colours), camera_at()).rgb
        for order in (faces, faces.flip(0), faces.flip(1), faces[:, [1, 2, 0]])
    ]
    for picture in pictures:
        assert_close(picture[0, :, 17, 16], torch.tensor([1.0, 0.0, 0.0], dtype=F64))
        assert_close(picture, pictures[0])
    behind = render_mesh(Mesh(vertices, faces, colours), camera_at(180.0)).rgb
    assert_close(behind[0, :, 17, 16], torch.tensor([0.0, 1.0, 0.0], dtype=F64))


def test_pieces_do_not_show(monkeypatch):
    mesh, camera = Mesh(*ball(detail=2)), camera_at(10.0, 10.0)
    whole = render_mesh(mesh, camera)
    monkeypatch.setattr(mesh_raster, "PIECE", 50)
    assert torch.equal(render_mesh(mesh, camera).depth, whole.depth)


def test_ground_that_reaches_behind_the_camera_is_seen_up_to_the_horizon():
    mesh = Mesh(*triangle([-50, -1, -50], [0, -1, 80], [50, -1, -50]))
    camera = camera_at()
    views = render_mesh(mesh, camera, samples=1)
    origins, rays = camera.rays()
    meets = (-1 - origins[..., 1]) / rays[..., 1]
    depth = (meets * (rays @ camera.world_to_camera[0, 2, :3]))[0]
    seen = views.alpha[0, 0] > 0
    assert seen[20:].all()
    assert not seen[:16].any()
    assert_close(views.depth[0, 0][seen], depth[seen])


def test_colours_are_mixed_in_space_and_the_background_is_behind():
    vertices = torch.tensor([[-3, -3, 0], [3, -3, -2], [0, 4, 0.5]], dtype=F64)
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2]]), vertices / 8 + 0.5)
    camera = camera_at()
    own = render_mesh(mesh, camera)
    asked = render_mesh(mesh, camera, lambda points: points / 8 + 0.5)
    assert_close(own.rgb, asked.rgb)
    behind = torch.tensor([[0.1, 0.2, 0.3]], dtype=F64)
    small = Mesh(*ball(0.3))
    assert_close(render_mesh(small, camera, background=behind).rgb[0, :, 0, 0], behind[0])
    assert_close(render_mesh(small, camera, background=0.25).rgb[0, :, 0, 0], torch.full((3,), 0.25, dtype=F64))
    empty = render_mesh(Mesh(vertices, torch.zeros(0, 3).long()), camera)
    assert empty.alpha.max() == 0
    assert empty.rgb.min() == 1


def test_gradients_within_triangles_are_those_of_interpolation():
    vertices = torch.tensor([[-9, -9, 0], [9, -9, -1], [0, 14, 0.5]], dtype=F64, requires_grad=True)
    colours = torch.rand(3, 3, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    camera = camera_at(width=3, height=3)

    def picture(at, rgb):
        views = render_mesh(Mesh(at, torch.tensor([[0, 1, 2]]), rgb), camera, smooth=False)
        return torch.cat([views.rgb, views.alpha, views.depth, views.normal], dim=1)

    assert torch.autograd.gradcheck(picture, (vertices, colours))


def test_a_balls_outline_grows_with_it_and_moves_with_it():
    vertices, faces = ball(detail=4)
    camera = camera_at(30.0, 20.0, 48, 48)
    scale = torch.ones((), dtype=F64, requires_grad=True)
    alpha = render_mesh(Mesh(vertices * scale, faces), camera).alpha
    (slope,) = torch.autograd.grad(alpha.sum(), scale)
    focal, square = float(camera.intrinsics[0, 0, 0]), DISTANCE**2 - 0.8**2
    radius = focal * 0.8 / math.sqrt(square)
    assert alpha.sum().item() == pytest.approx(math.pi * radius**2, rel=0.01)
    assert slope.item() == pytest.approx(2 * math.pi * radius * 0.8 * focal * DISTANCE**2 / square**1.5, rel=0.01)


def smooth_weights(channels, side):
    at = torch.linspace(-1, 1, side, dtype=F64)
    wave = torch.sin(3 * at[:, None] + 1) + torch.cos(2 * at[None] - 0.3)
    return torch.stack([wave.roll(3 * c, c % 2) for c in range(channels)])


def two_triangles(at):
    """One in front of, and partly over, another, both off the middle; only the first one's place is asked for."""
    far = torch.tensor([[-0.6, -0.8, -0.6], [0.9, -0.5, -0.4], [0.1, 0.8, -0.5]], dtype=F64)
    colours = torch.tensor(
        [[1, 0.2, 0], [0.8, 0, 0.1], [1, 0, 0.3], [0, 0.5, 1], [0.1, 0.9, 1], [0, 1, 0.6]], dtype=F64
    )
    return Mesh(torch.cat([at, far]), torch.tensor([[0, 1, 2], [3, 4, 5]]), colours)


@pytest.mark.parametrize("channel", ["rgb", "alpha", "depth", "normal"])
def test_gradients_at_outlines_are_what_the_pictures_do_when_vertices_move(channel):
    start = torch.tensor([[-0.7, -0.2, 0.3], [0.4, -0.6, 0.5], [0.3, 0.5, 0.2]], dtype=F64)
    camera = camera_at(width=24, height=24)
    weights = smooth_weights(3, 24)

    def value(at, samples):
        seen = getattr(render_mesh(two_triangles(at), camera, samples=samples, smooth=False), channel)
        return (seen[0] * weights[: seen.shape[1]]).sum()

    at = start.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(at, 6), at)
    step, exact = 0.02, torch.zeros_like(start)
    with torch.no_grad():
        for index in range(9):
            moved = torch.zeros(9, dtype=F64)
            moved[index] = step
            ahead, back = (value(start + sign * moved.reshape(3, 3), 16) for sign in (1, -1))
            exact.view(-1)[index] = (ahead - back) / (2 * step)
    assert (slope - exact).norm() < 0.12 * exact.norm()  # the differences are of sampled pictures themselves
    with_none = torch.autograd.grad(render_mesh(two_triangles(at), camera, outlines=False).depth.sum(), at)[0]
    assert with_none.abs().sum() > 0


def test_what_is_hidden_has_no_outline():
    wall = torch.tensor([[-9, -9, 0.5], [9, -9, 0.5], [0, 12, 0.5]], dtype=F64)
    at = torch.tensor([[-0.5, -0.5, -0.5], [0.5, -0.5, -0.5], [0, 0.5, -0.5]], dtype=F64, requires_grad=True)
    mesh = Mesh(torch.cat([wall, at]), torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.rand(6, 3, dtype=F64))
    views = render_mesh(mesh, camera_at())
    (slope,) = torch.autograd.grad(views.rgb.sum() + views.depth.sum() + views.alpha.sum(), at)
    assert slope.abs().max() == 0


def test_silhouettes_alone_turn_a_ball_into_an_egg():
    vertices, faces = ball(0.5, detail=2)
    stretch = torch.tensor([1.3, 0.8, 1.0], dtype=F64)
    camera = turntable(4, 24, 24, distance=DISTANCE, fov_y_deg=FOV, elevation_deg=0.0, dtype=F64)
    truth = render_mesh(Mesh(vertices * stretch, faces), camera).alpha
    guess = torch.ones(3, dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([guess], lr=0.03)
    for _ in range(60):
        loss = (render_mesh(Mesh(vertices * guess, faces), camera).alpha - truth).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_close(guess.detach(), stretch, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: render_mesh(Mesh(torch.rand(3, 3), torch.tensor([[0, 1, 3]])), camera_at()), "3 vertices.*damaged"),
        (lambda: render_mesh(Mesh(torch.full((3, 3), math.nan), torch.arange(3)[None]), camera_at()), "not finite"),
        (lambda: render_mesh(Mesh(*ball()), camera_at(), samples=0), "use 1 to 16"),
        (lambda: render_mesh(Mesh(*ball()), camera_at(), background=torch.ones(2, 3)), "one grey, or colours"),
    ],
)
def test_mistakes_are_said_in_one_line(mistake, words):
    with pytest.raises(UserError, match=words) as caught:
        mistake()
    assert "\n" not in str(caught.value)
