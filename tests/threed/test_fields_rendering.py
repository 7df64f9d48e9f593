"""Opacity and volume rendering against closed forms: a plane, a slab, a sphere, layers composited by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from fewstep.threed.cameras import orbit
from fewstep.threed.fields.normals import eikonal_loss, unit, value_and_gradient
from fewstep.threed.fields.opacity import density_alpha, inverse_std, neus_alpha, neus_cosine, volsdf_density
from fewstep.threed.fields.rendering import (
    box_span,
    composite_weights,
    density_opacity,
    even_edges,
    importance_edges,
    neus_opacity,
    render_rays,
    volsdf_opacity,
)

F64 = torch.float64


def row(*values):
    return torch.tensor(values, dtype=F64)


def sphere(points, radius=0.5):
    return points.norm(dim=-1) - radius


def white(points):
    return torch.ones_like(points)


def along_z(count=1, start=0.0):
    origins = torch.zeros(count, 3, dtype=F64)
    origins[:, 2] = start
    return origins, row(0.0, 0.0, 1.0).expand(count, 3)


def through_plane(sections, k, slack):
    """1 - opacity of a ray on [0, 1] that meets a perpendicular plane in the middle."""
    edges = even_edges(row(0.0), row(1.0), sections)
    opacity = neus_opacity(lambda p: 0.5 - p[..., 2], k, slack=slack)
    return 1 - render_rays(opacity, white, *along_z(), edges).opacity.item()


@pytest.mark.parametrize(("k", "expected"), [(10.0, 0.006737947), (5.0, 0.0820850)])
@pytest.mark.parametrize("sections", [1, 2, 7, 8, 64, 512])
def test_neus_sections_of_a_plane_telescope(sections, k, expected):
    exact = 1 / (1 + math.exp(k / 2)) / (1 / (1 + math.exp(-k / 2)))
    assert exact == pytest.approx(expected, rel=1e-6)
    assert through_plane(sections, k, slack=0.0) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("sections", "within"), [(8, 1e-3), (64, 1e-2), (512, 8e-2)])
def test_the_slack_of_neus_biases_a_plane_little(sections, within):
    assert through_plane(sections, 10.0, slack=1e-5) == pytest.approx(0.006737947, rel=within)
    assert through_plane(sections, 10.0, slack=1e-5) != pytest.approx(0.006737947, rel=1e-9)


def test_uneven_sections_telescope_too():
    edges = row(0.0, 0.1, 0.15, 0.48, 0.77, 1.0)[None]
    opacity = neus_opacity(lambda p: 0.5 - p[..., 2], 10.0, slack=0.0)
    assert 1 - render_rays(opacity, white, *along_z(), edges).opacity.item() == pytest.approx(math.exp(-5), rel=1e-9)


def test_rays_that_leave_a_surface_meet_no_opacity():
    cosine = neus_cosine(row(0.0, 0.0, 1.0), row(0.0, 0.0, 1.0))
    assert cosine == 0
    assert neus_alpha(row(0.1), cosine, row(0.2), 10.0, slack=0.0) == 0


def test_cosine_annealing_goes_from_soft_to_exact():
    normal, ray = row(0.0, 0.0, 1.0), row(0.0, 0.6, -0.8)
    assert neus_cosine(normal, ray, 1.0).item() == pytest.approx(-0.8)
    assert neus_cosine(normal, ray, 0.0).item() == pytest.approx(-0.9)
    assert neus_cosine(normal, ray, 0.5).item() == pytest.approx(-0.85)


def test_sharpness_values():
    assert inverse_std(0.3).item() == pytest.approx(20.0855, rel=1e-5)
    assert inverse_std(0.4605170186).item() == pytest.approx(100.0, rel=1e-5)


def test_volsdf_density_values_and_integral():
    k = 20.0
    assert_close(volsdf_density(row(-10.0, 0.0, 10.0), k), row(k, k / 2, 0.0))
    assert_close(volsdf_density(row(-0.05, 0.05), k), row(k * (1 - 0.5 / math.e), k * 0.5 / math.e))
    grid = torch.linspace(-1.5, 1.5, 20001, dtype=F64)
    assert torch.trapezoid(volsdf_density(grid, k), grid).item() == pytest.approx(k * 1.5, rel=1e-6)


@pytest.mark.parametrize("sections", [1, 3, 50])
def test_a_slab_of_constant_density_lets_exp_minus_its_depth_through(sections):
    edges = even_edges(row(1.0), row(3.0), sections)
    opacity = density_opacity(lambda p: 0.7 + 0 * p[..., 0])
    out = render_rays(opacity, lambda p: torch.full_like(p, 0.25), *along_z(), edges, background=row(0.0, 0.5, 1.0))
    through = math.exp(-1.4)
    assert out.opacity.item() == pytest.approx(1 - through)
    assert_close(out.rgb[0], 0.25 * (1 - through) + through * row(0.0, 0.5, 1.0))


def test_depth_of_a_slab_tends_to_its_integral():
    def depth(sections):
        edges = even_edges(row(0.0), row(2.0), sections)
        return render_rays(density_opacity(lambda p: 0.7 + 0 * p[..., 0]), white, *along_z(), edges).depth.item()

    exact = (1 - math.exp(-1.4) * 2.4) / 0.7  # integral of 0.7 t exp(-0.7 t) on [0, 2]
    assert abs(depth(40) - exact) / abs(depth(80) - exact) == pytest.approx(4, abs=0.1)
    assert depth(80) == pytest.approx(exact, rel=1e-4)


def test_layers_composite_front_to_back():
    weights = composite_weights(row(0.5, 0.25, 1.0, 0.3))
    assert_close(weights, row(0.5, 0.125, 0.375, 0.0))
    alpha = density_alpha(row(0.3, 2.0, 0.1), row(0.5, 0.2, 3.0))
    assert composite_weights(alpha).sum().item() == pytest.approx(1 - math.exp(-0.15 - 0.4 - 0.3))


def test_compositing_has_the_gradient_of_its_product():
    alpha = row(0.2, 1.0, 0.5, 0.0).requires_grad_()
    assert gradcheck(composite_weights, (alpha.detach() * 0.9 + 0.01).requires_grad_())
    composite_weights(alpha).sum().backward()
    assert alpha.grad.isfinite().all()


def test_importance_edges_follow_the_weights():
    edges = row(0.0, 1.0, 2.0, 4.0)[None]
    even = ((torch.arange(1000, dtype=F64) + 0.5) / 1000)[None]
    drawn = importance_edges(edges, row(0.1, 0.6, 0.3)[None], even)[0]
    counts = [((drawn >= a) & (drawn < b)).sum().item() for a, b in ((0, 1), (1, 2), (2, 4))]
    assert counts == pytest.approx([100, 600, 300], abs=1)
    assert drawn[drawn >= 2].mean().item() == pytest.approx(3.0, abs=0.01)
    flat = importance_edges(edges, torch.zeros(1, 3, dtype=F64), even)[0]
    assert ((flat >= 2).sum().item()) == pytest.approx(333, abs=2)
    ends = importance_edges(edges, row(0.1, 0.6, 0.3)[None], row(0.0, 1.0)[None])[0]
    assert_close(ends, row(0.0, 4.0))


def test_importance_sampling_finds_a_thin_surface():
    origins, directions = along_z(start=-2.0)
    edges = even_edges(row(0.5), row(3.5), 16)
    opacity = neus_opacity(sphere, 200.0)
    coarse = render_rays(opacity, white, origins, directions, edges)
    fine = render_rays(opacity, white, origins, directions, edges, fine=32)
    assert fine.weights.shape[1] == 16 + 32
    assert abs(fine.depth.item() - 1.5) < min(0.01, abs(coarse.depth.item() - 1.5))
    assert_close(fine.normal[0], row(0.0, 0.0, -1.0), atol=1e-3, rtol=0)


def test_jitter_keeps_the_ends_and_the_order():
    jitter = torch.rand(5, 9, dtype=F64, generator=torch.Generator().manual_seed(0))
    edges = even_edges(row(*[1.0] * 5), row(*[2.0] * 5), 8, jitter)
    assert (edges.diff(dim=1) > 0).all()
    assert_close(edges[:, [0, -1]], row(1.0, 2.0).expand(5, 2))
    assert not torch.equal(edges, even_edges(row(*[1.0] * 5), row(*[2.0] * 5), 8))


def test_rays_enter_and_leave_the_box():
    origins = torch.tensor([[0.0, 0, -3], [0, 0, 0], [5, 0, -3]], dtype=F64)
    near, far = box_span(origins, row(0.0, 0.0, 1.0).expand(3, 3), nearest=0.0)
    assert_close(near[:2], row(2.0, 0.0))
    assert_close(far[:2], row(4.0, 1.0))
    assert near[2] == far[2]


@pytest.mark.parametrize("make", [neus_opacity, volsdf_opacity])
def test_a_sphere_is_seen_as_its_disc(make):
    camera = orbit(row(25.0), row(10.0), row(3.0), row(40.0), 24, 24)
    origins, directions = (x.flatten(0, 2) for x in camera.rays())
    near, far = box_span(origins, directions)
    out = render_rays(make(sphere, 300.0), white, origins, directions, even_edges(near, far, 64), fine=64)
    miss = (origins - (origins * directions).sum(-1, keepdim=True) * directions).norm(dim=-1)
    hit, clear = miss < 0.45, miss > 0.55
    assert out.opacity[hit].min() > 0.99
    assert out.opacity[clear].max() < 0.01
    exact = -(origins * directions).sum(-1) - (0.25 - miss**2).clamp_min(0).sqrt()
    assert (out.depth - exact)[hit].abs().max() < 0.03
    points = origins + exact[:, None] * directions
    assert (unit(out.normal)[hit] * unit(points)[hit]).sum(-1).min() > 0.99


def test_gradients_of_a_sphere_are_its_normals_and_cost_nothing():
    points = torch.randn(3, 9, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    value, gradient = value_and_gradient(sphere, points)
    assert_close(value, sphere(points))
    assert_close(gradient, points / points.norm(dim=-1, keepdim=True))
    assert_close(eikonal_loss(gradient), torch.zeros(3, dtype=F64))
    assert_close(eikonal_loss(3 * gradient), torch.full((3,), 4.0, dtype=F64))


def test_the_eikonal_loss_trains_the_field_through_its_gradient():
    scale = torch.tensor(2.0, dtype=F64, requires_grad=True)
    points = torch.randn(1, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    _, gradient = value_and_gradient(lambda p: scale * sphere(p), points, create_graph=True)
    eikonal_loss(gradient).sum().backward()
    assert scale.grad.item() == pytest.approx(2.0)  # d/ds (s - 1)^2


def test_renders_train_the_radius_of_a_sphere():
    def opacity_of(radius):
        edges = even_edges(row(0.5), row(3.5), 24)
        rays = along_z(start=-2.0)
        return render_rays(neus_opacity(lambda p: sphere(p, radius), 8.0), white, *rays, edges, trainable=True).opacity

    assert gradcheck(opacity_of, torch.tensor(0.4, dtype=F64, requires_grad=True))


@pytest.mark.parametrize("make", [density_opacity, lambda field: volsdf_opacity(lambda p: -0.1 * field(p), 8.0)])
@pytest.mark.parametrize("trainable", [False, True])
def test_values_are_trained_whether_or_not_normals_are(make, trainable):
    origins, directions = along_z(start=-2.0)
    edges = even_edges(row(0.5), row(3.5), 12)

    def opacity_of(height):
        opacity = make(lambda p: height * torch.exp(-4 * (p * p).sum(-1)))
        return render_rays(opacity, white, origins, directions, edges, trainable=trainable).opacity

    assert gradcheck(opacity_of, torch.tensor(0.8, dtype=F64, requires_grad=True))


def test_normals_carry_a_gradient_only_when_asked():
    def normal(trainable):
        squash = torch.tensor(2.0, dtype=F64, requires_grad=True)
        opacity = density_opacity(lambda p: 1 / (1 + squash * p[..., 0] ** 2 + p[..., 2] ** 2).exp() + 0 * p[..., 1])
        rays = torch.tensor([[0.2, 0.0, -2.0]], dtype=F64), row(0.0, 0.0, 1.0)[None]
        out = render_rays(opacity, white, *rays, even_edges(row(0.5), row(3.5), 6), trainable=trainable)
        (out.normal[0, 0] / out.opacity.detach()).sum().backward()
        return squash.grad.item()

    assert normal(True) != pytest.approx(normal(False), rel=1e-3)


def test_renders_in_no_grad_hold_no_graph():
    rays = along_z(start=-2.0)
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    with torch.no_grad():
        out = render_rays(
            neus_opacity(lambda p: sphere(p, weight), 8.0), white, *rays, even_edges(row(0.5), row(3.5), 6)
        )
    assert not out.opacity.requires_grad
    assert not out.normal.requires_grad
