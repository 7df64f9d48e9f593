"""Pictures of solids against closed forms: where spheres and boxes are met, how large they look, how they are lit."""

from __future__ import annotations

import math

import pytest
import torch
from threed.shapes_bed import cameras
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.shapes import Solid, build, draw, read, render
from fewstep.threed.shapes.rendering import AMBIENT, LIGHT, trace
from fewstep.threed.shapes.solids import DARK, Part

RED = (1.0, 0.0, 0.0)


def ball(radius: float = 0.4) -> Solid:
    return Solid(read("a red sphere"), (Part("sphere", (radius,), (0.0, 0.0, 0.0), RED),))


def test_rays_meet_a_sphere_where_the_quadratic_says():
    generator = torch.Generator().manual_seed(0)
    rays = torch.nn.functional.normalize(torch.randn(3000, 3, dtype=torch.float64, generator=generator), dim=1)
    starts = -2 * rays + 0.3 * torch.randn(3000, 3, dtype=torch.float64, generator=generator)
    middle = (starts * rays).sum(1)
    root = middle**2 - starts.square().sum(1) + 0.4**2
    expected = torch.where(root > 0, -middle - root.clamp_min(0).sqrt(), torch.inf)
    clear = root.abs() > 1e-4
    found = trace(ball(), starts, rays)
    assert 0.2 < found.isfinite().double().mean() < 0.95
    assert_close(found[clear], expected[clear], atol=1e-7, rtol=0)


def test_depth_is_along_the_axis_and_a_face_of_a_box_is_flat():
    solid = Solid(read("a red box"), (Part("box", (0.42, 0.3, 0.34), (0.0, 0.0, 0.0), RED),))
    view = render(solid, *cameras([0], 32, elevation=0), 32, 32)
    expected = torch.full_like(view.depth, 3 - 0.34)
    assert_close(view.depth[view.hit], expected[view.hit], atol=1e-8, rtol=0)
    face = view.normal.movedim(1, -1)[view.hit[:, 0]]
    assert_close(face, torch.tensor([0.0, 0, 1]).double().expand_as(face))
    assert view.depth[~view.hit].abs().max() == 0
    assert view.normal.movedim(1, -1)[~view.hit[:, 0]].abs().max() == 0


@pytest.mark.parametrize("samples", [1, 3, 5])
def test_the_silhouette_of_a_box_has_the_area_of_its_face(samples):
    solid = Solid(read("a red box"), (Part("box", (0.42, 0.3, 0.34), (0.0, 0.0, 0.0), RED),))
    alpha = render(solid, *cameras([0], 32, elevation=0), 32, 32, samples=samples).alpha
    scale = 1.4 * 32 / (3 - 0.34)
    perimeter = 2 * (0.84 + 0.6) * scale
    assert float(alpha.sum()) == pytest.approx(0.84 * 0.6 * scale**2, abs=perimeter / samples / 2)
    levels = (alpha * samples**2).round() / samples**2
    assert_close(alpha, levels)


def test_the_silhouette_of_a_sphere_converges_to_its_ellipse():
    """A sphere on the axis is seen as a disc of radius f r / sqrt(d^2 - r^2)."""
    radius = 1.4 * 48 * 0.4 / math.sqrt(9 - 0.16)
    alpha = render(ball(), *cameras([30], 48), 48, 48, samples=5).alpha
    assert float(alpha.sum()) == pytest.approx(math.pi * radius**2, rel=0.006)
    centres = torch.arange(48) + 0.5
    assert float((alpha[0, 0].sum(0) * centres).sum() / alpha.sum()) == pytest.approx(24, abs=0.05)


def test_images_are_upright_and_the_right_is_right():
    w, k = cameras([0], 32, elevation=0)
    beside = render(build(read("a red sphere beside a blue box")), w, k, 32, 32, background=0.0).rgb[0]
    columns = torch.arange(32).double()
    assert (beside[0].sum(0) * columns).sum() / beside[0].sum() > (beside[2].sum(0) * columns).sum() / beside[2].sum()
    on = render(build(read("a red cone on a blue box")), w, k, 32, 32, background=0.0).rgb[0]
    assert (on[0].sum(1) * columns).sum() / on[0].sum() < (on[2].sum(1) * columns).sum() / on[2].sum()
    front, back = (render(build(read("a red box in front of a blue box")), *cameras([a], 32), 32, 32) for a in (0, 180))
    assert front.rgb[0, 0].sum() > back.rgb[0, 0].sum() + 1
    assert front.rgb[0, 2].sum() < back.rgb[0, 2].sum() - 1


def test_light_is_a_linear_function_of_the_normal_and_the_background_fills_the_rest():
    solid = ball()
    view = render(solid, *cameras([0, 120], 24), 24, 24, samples=1, background=0.25)
    light = torch.tensor(LIGHT).double() / math.sqrt(sum(x * x for x in LIGHT))
    lit = AMBIENT + (1 - AMBIENT) * (1 + torch.einsum("bchw,c->bhw", view.normal, light)) / 2
    assert_close(view.rgb[:, 0][view.hit[:, 0]], lit[view.hit[:, 0]])
    assert view.rgb[:, 1:].movedim(1, -1)[view.hit[:, 0]].abs().max() == 0
    assert (view.rgb.movedim(1, -1)[~view.hit[:, 0]] == 0.25).all()


def test_backgrounds_show_through_what_alpha_leaves():
    solid, (w, k) = draw(0, 3), cameras([30], 24)
    black, white = (render(solid, w, k, 24, 24, background=b) for b in (0.0, 1.0))
    assert_close(white.rgb - black.rgb, (1 - black.alpha).expand_as(black.rgb))


def test_turning_the_world_and_the_camera_together_moves_light_alone():
    """What a camera sees of shape is unchanged when a solid of revolution is seen from another side."""
    views = render(ball(), *cameras([0, 77, 200], 24), 24, 24)
    assert_close(views.depth[0], views.depth[1], atol=1e-7, rtol=0)
    assert_close(views.alpha[0], views.alpha[2])
    assert (views.rgb[0] - views.rgb[2]).abs().max() > 0.1


def test_a_knob_is_seen_from_the_front_only_and_no_two_views_are_alike():
    for text in ("a red sphere", "a green torus", "a blue cylinder"):
        views = render(build(read(text)), *cameras([0, 90, 180, 270], 32), 32, 32)
        dark = (views.rgb - torch.tensor(DARK).double()[:, None, None]).abs().amax(1) < 0.1
        assert dark[0].any()
        assert not dark[2].any()
        apart = torch.cdist(views.rgb.flatten(1), views.rgb.flatten(1)) + 10 * torch.eye(4)
        assert apart.min() > 0.5


def test_a_batch_is_its_views_and_float32_agrees():
    solid, (w, k) = draw(0, 1), cameras([10, 200], 24)
    both = render(solid, w, k, 24, 24)
    assert_close(both.rgb[1:], render(solid, w[1:], k[1:], 24, 24).rgb)
    single = render(solid, w.float(), k.float(), 24, 24)
    assert single.rgb.dtype == torch.float32
    assert (single.rgb - both.rgb).abs().mean() < 1e-3
    assert (single.alpha - both.alpha).abs().max() <= 2 / 9


def test_pictures_need_not_be_square():
    w, k = cameras([0], 32)
    k[:, 0, 2] = 12.0
    assert_close(render(draw(0, 2), w, k, 24, 32).rgb, render(draw(0, 2), *cameras([0], 32), 32, 32).rgb[..., 4:28])


def test_bad_cameras_are_refused():
    w, k = cameras([0], 16)
    with pytest.raises(UserError, match="samples=2"):
        render(ball(), w, k, 16, 16, samples=2)
    with pytest.raises(UserError, match="inside"):
        render(ball(), *cameras([0], 16, distance=0.2), 16, 16)
