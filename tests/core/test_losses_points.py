"""Losses of point clouds against brute force and closed forms, and under the moves that must not change them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fewstep.core import neighbours
from fewstep.core.errors import UserError
from fewstep.core.losses import points as module
from fewstep.core.losses.points import (
    chamfer_loss,
    scene_loss,
    select_key_points,
    structural_loss,
    surface_variation,
)
from fewstep.core.neighbours import mutual_nearest, nearest


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shuffled(x, seed=3):
    return x[:, torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))]


def rotation(seed=5):
    return torch.linalg.qr(normal(3, 3, seed=seed)).Q


def brute(p, q):
    return (p[:, None] - q[None]).norm(dim=2)


# Clouds on a coarse lattice have ties, duplicates and coincident points.
clouds = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.tuples(*[st.integers(-3, 3)] * 3), min_size=n, max_size=n).map(
        lambda rows: torch.tensor(rows, dtype=torch.float64) / 2
    )
)


# neighbours


@given(clouds, clouds, st.integers(1, 12))
def test_nearest_agrees_with_brute_force(p, q, k):
    k = min(k, len(q))
    expected = brute(p, q).sort(1).values[:, :k]
    for found in (nearest(p, q, k), neighbours._by_pieces(p, q, k)):
        assert_close(found.distances, expected, rtol=0, atol=1e-7)
        assert_close((p[:, None] - q[found.rows]).norm(dim=2), expected, rtol=0, atol=1e-7)
        assert all(len(set(row.tolist())) == k for row in found.rows)
    for found, expected in zip(mutual_nearest(p, q), (brute(p, q), brute(q, p)), strict=True):
        assert_close(found.distances[:, 0], expected.min(1).values, rtol=0, atol=1e-12)


def test_the_gpu_path_is_exact_far_from_the_origin_and_in_pieces(monkeypatch):
    monkeypatch.setattr(neighbours, "PIECE", 1000)
    p, q = (1e4 + 0.1 * normal(333, 3, seed=s) for s in (1, 2))
    found = neighbours._by_pieces(p.float(), q.float(), 3)
    assert_close(found.distances, nearest(p.float(), q.float(), 3).distances, rtol=0, atol=1e-9)


def test_nearest_says_what_is_wrong():
    with pytest.raises(UserError, match="4 nearest of 3 points"):
        nearest(torch.ones(2, 3), torch.ones(3, 3), 4)
    with pytest.raises(UserError, match="not finite"):
        nearest(torch.ones(2, 3), torch.full((3, 3), torch.nan))
    with pytest.raises(UserError, match="neither may be empty"):
        mutual_nearest(torch.ones(2, 3), torch.ones(0, 3))
    assert nearest(torch.ones(0, 3), torch.ones(2, 3)).rows.shape == (0, 1)


# Chamfer


@given(clouds, clouds)
def test_chamfer_agrees_with_brute_force(p, q):
    d = brute(p, q)
    near = (d.min(1).values, d.min(0).values)
    assert chamfer_loss(p[None], q[None]).item() == pytest.approx(sum(float(x.mean()) for x in near) / 2, abs=2e-6)
    squared = chamfer_loss(p[None], q[None], squared=True).item()
    assert squared == pytest.approx(sum(float(x.square().mean()) for x in near) / 2, abs=1e-12)


@pytest.mark.parametrize("squared", [False, True])
def test_chamfer_is_zero_on_itself_in_any_order_and_blind_to_order(squared):
    p, q = normal(2, 40, 3, seed=1), normal(2, 30, 3, seed=2)
    assert_close(chamfer_loss(p, shuffled(p), squared=squared), torch.zeros(2).double(), rtol=0, atol=0)
    value = chamfer_loss(p, q, squared=squared)
    assert_close(chamfer_loss(shuffled(p), shuffled(q), squared=squared), value, rtol=1e-12, atol=0)
    assert_close(chamfer_loss(q, p, squared=squared), value, rtol=1e-12, atol=0)
    assert_close(chamfer_loss(p.flip(0), q.flip(0), squared=squared), value.flip(0), rtol=1e-12, atol=0)


def test_chamfer_of_one_point_and_its_shift():
    shift = torch.tensor([[[1.0, -2, 2]]]).double()
    assert chamfer_loss(shift, 0 * shift).item() == pytest.approx(3, abs=2e-6)
    assert chamfer_loss(shift, 0 * shift, squared=True).item() == pytest.approx(9, abs=1e-12)


@pytest.mark.parametrize("squared", [False, True])
def test_chamfer_gradient(squared):
    p, q = normal(2, 5, 3, seed=1).requires_grad_(), normal(2, 7, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, q: chamfer_loss(p, q, squared=squared), (p, q))


def test_gradients_of_coincident_points_are_finite_and_zero():
    p = normal(1, 6, 3).float()
    p[0, 1] = p[0, 0]
    q = p.clone()
    for loss in (chamfer_loss, lambda p, q: structural_loss(p, q, torch.arange(6)[None])):
        x = p.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, q).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=0)
        assert second.isfinite().all()


def test_half_precision_is_computed_in_float32():
    p = normal(1, 6, 3).half()
    assert chamfer_loss(p, p + 1).dtype == torch.float32


# scene term


def test_row_against_row_pulls_to_the_middle_where_the_order_is_random():
    x, target = normal(1, 5, 3, seed=1).requires_grad_(), normal(1, 5, 3, seed=2) + 3
    orders = torch.tensor(list(itertools.permutations(range(5))))
    loss = scene_loss(x.expand(len(orders), -1, -1), target[0][orders], correspondence="index")
    (gradient,) = torch.autograd.grad(loss.mean(), x)
    assert_close(gradient, 2 * (x.detach() - target.mean(1, keepdim=True)) / (3 * 5), rtol=0, atol=1e-12)


def test_scene_terms():
    p, q = normal(2, 8, 3, seed=1), normal(2, 8, 3, seed=2)
    assert_close(scene_loss(p, q), chamfer_loss(p, q))
    assert_close(scene_loss(p, q, squared=True), chamfer_loss(p, q, squared=True))
    assert_close(scene_loss(p, q, correspondence="index"), (p - q).square().mean((1, 2)))
    with pytest.raises(UserError, match="8 and 7 points"):
        scene_loss(p, q[:, :7], correspondence="index")
    with pytest.raises(UserError, match="none empty"):
        scene_loss(p, q[:, :0])


# surface variation


def test_planes_and_lines_do_not_vary():
    plane = normal(1, 60, 3) * torch.tensor([1.0, 2, 0]).double() @ rotation() + 5
    line = normal(1, 60, 3) * torch.tensor([1.0, 0, 0]).double() @ rotation() + 5
    for flat in (plane, line, torch.ones(1, 60, 3).double()):
        assert surface_variation(flat, 10).abs().max() < 1e-12


@pytest.mark.parametrize(("k", "median"), [(180, 0.28), (1999, 0.32)])
def test_variation_of_a_gaussian_cloud(k, median):
    found = surface_variation(normal(1, 2000, 3), k)
    assert found.median().item() == pytest.approx(median, abs=0.01)
    assert 0 <= found.min() <= found.max() <= 1 / 3


def test_variation_is_the_loop_over_points_and_blind_to_similarity(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 100)
    x = normal(2, 80, 3)
    found = surface_variation(x, 12)
    for cloud, values in zip(x, found, strict=True):
        for i, value in enumerate(values.tolist()):
            near = cloud[(cloud - cloud[i]).norm(dim=1).argsort()[1:13]]
            spread = torch.linalg.eigvalsh(torch.cov(near.T, correction=0))
            assert value == pytest.approx(float(spread[0] / spread.sum()), abs=1e-9)
    assert_close(surface_variation(3 * x @ rotation() - 7, 12), found, rtol=0, atol=1e-9)
    assert_close(surface_variation(x.flip(1), 12), found.flip(1), rtol=0, atol=1e-12)
    assert_close(surface_variation(x.float(), 12), found.float(), rtol=0, atol=1e-5)


def test_variation_gradient_and_errors():
    x = normal(1, 8, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: surface_variation(x, 5), (x,))
    with pytest.raises(UserError, match="k=8 nearest others"):
        surface_variation(x, 8)


# key points and the point term


def test_key_points_are_the_most_curved_of_a_random_share():
    """Half of the points are on a plane, half fill a ball far away: the key points are in the ball."""
    flat = normal(200, 3, seed=1) * torch.tensor([5.0, 5, 0]).double()
    cloud = torch.cat([flat, normal(200, 3, seed=2) + 100])[None].repeat(2, 1, 1)
    uniforms = torch.rand(2, 400, generator=torch.Generator().manual_seed(0))
    found = select_key_points(cloud, uniforms, share=0.5, k=10, keep=0.25)
    assert found.shape == (2, 50)
    assert (found >= 200).all()
    subset = uniforms.argsort(1)[:, :200]
    for row, allowed in zip(found.tolist(), subset.tolist(), strict=True):
        assert len(set(row)) == 50
        assert set(row) <= set(allowed)
    assert select_key_points(cloud, uniforms, share=0.5, k=10).shape == (2, 67)
    with pytest.raises(UserError, match=r"must be in \(0, 1\]"):
        select_key_points(cloud, uniforms, share=0.0)


def distance_matrices(p, q):
    return (torch.cdist(p, p) - torch.cdist(q, q)).square().mean((1, 2))


def test_point_term_by_definition(monkeypatch):
    p, q = normal(2, 30, 3, seed=1), normal(2, 20, 3, seed=2)
    keys = torch.stack([torch.arange(0, 20, 2), torch.arange(1, 20, 2)])
    chosen = torch.stack([x[row] for x, row in zip(q, keys, strict=True)])
    matched = torch.stack([x[brute(y, x).argmin(1)] for x, y in zip(p, chosen, strict=True)])
    x = p.clone().requires_grad_()
    whole = structural_loss(x, q, keys)
    assert_close(whole, distance_matrices(matched, chosen), rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(whole.sum(), x)
    monkeypatch.setattr(module, "PIECE", 60)  # three rows of the matrices at a time
    pieces = structural_loss(x, q, keys)
    assert_close(pieces, whole, rtol=1e-12, atol=0)
    assert_close(torch.autograd.grad(pieces.sum(), x)[0], gradient, rtol=1e-10, atol=1e-14)
    with pytest.raises(UserError, match="30 and 20 points"):
        structural_loss(p, q, keys, correspondence="index")
    rows = structural_loss(p[:, :20], q, keys, correspondence="index")
    same_rows = torch.stack([x[row] for x, row in zip(p, keys, strict=True)])
    assert_close(rows, distance_matrices(same_rows, chosen), rtol=1e-5, atol=1e-7)


def test_structure_is_zero_on_the_target_in_any_order():
    p, keys = normal(2, 30, 3), torch.arange(10).expand(2, -1)
    zero = torch.zeros(2).double()
    assert_close(structural_loss(shuffled(p), p, keys), zero, rtol=0, atol=0)
    assert_close(scene_loss(shuffled(p), p), zero, rtol=0, atol=0)
    assert (structural_loss(shuffled(p), p, keys, correspondence="index") > 0).all()


def test_point_term_sees_shape_and_not_place():
    q = torch.cartesian_prod(*[torch.arange(3.0).double()] * 3)[None] * 10  # far apart: small moves keep the pairs
    keys = torch.arange(27)[None]
    angle = torch.tensor(0.02).double()
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]]).double()
    assert structural_loss(q @ turn + 0.3, q, keys).item() == pytest.approx(0, abs=1e-10)
    stretched = q * torch.tensor([1.0, 1, 1.1]).double()
    assert structural_loss(stretched, q, keys).item() == pytest.approx(distance_matrices(stretched, q).item(), rel=1e-5)
    assert structural_loss(stretched, q, keys) > 0.1


@pytest.mark.parametrize("correspondence", ["nearest", "index"])
def test_point_term_gradient(correspondence):
    p, q = normal(1, 6, 3, seed=1).requires_grad_(), normal(1, 6, 3, seed=2).requires_grad_()
    keys = torch.tensor([[0, 2, 3, 5]])
    assert torch.autograd.gradcheck(lambda p, q: structural_loss(p, q, keys, correspondence=correspondence), (p, q))


def test_shapes_are_enough():
    """A plan of memory runs the losses without numbers."""
    p = torch.empty(2, 50, 3, device="meta").requires_grad_()
    keys = select_key_points(p.detach(), torch.empty(2, 50, device="meta"), share=0.5, k=5)
    (scene_loss(p, p.detach()) + structural_loss(p, p.detach(), keys)).sum().backward()
    assert p.grad.shape == p.shape


@pytest.mark.gpu
def test_both_paths_agree_on_a_scan():
    p, q = 30 * normal(20_000, 3, seed=1).float(), 30 * normal(18_000, 3, seed=2).float()
    for on_cpu, on_gpu in zip(mutual_nearest(p, q), mutual_nearest(p.cuda(), q.cuda()), strict=True):
        assert_close(on_gpu.distances.cpu(), on_cpu.distances, rtol=0, atol=1e-6)
    assert_close(chamfer_loss(p[None].cuda(), q[None].cuda()).cpu(), chamfer_loss(p[None], q[None]), rtol=1e-5, atol=0)
    curved = surface_variation(p[None].cuda(), 30).cpu()
    assert_close(curved, surface_variation(p[None], 30), rtol=0, atol=1e-5)
