"""Triplanes and heads: planes that hold their own coordinates, and networks that start as a sphere or a blob."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.fields.heads import ColourHead, DensityHead, SDFHead
from fewstep.threed.fields.triplane import CORRECTED, IMAGE_LIKE, LAYOUTS, ORIGINAL, sample_triplane, split_planes

F64 = torch.float64
POINT = torch.tensor([[[0.3, -0.2, 0.5]]], dtype=F64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def coordinate_planes(height=8, width=16):
    v = (2 * torch.arange(height, dtype=F64) + 1) / height - 1
    u = (2 * torch.arange(width, dtype=F64) + 1) / width - 1
    plane = torch.stack([u.expand(height, width), v[:, None].expand(height, width)])
    return plane.expand(1, 3, 2, height, width)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (CORRECTED, [0.3, -0.2, 0.3, 0.5, 0.5, -0.2]),
        (ORIGINAL, [0.3, -0.2, 0.3, 0.5, 0.5, 0.3]),
        (IMAGE_LIKE, [-0.2, 0.3, -0.3, -0.5, -0.2, -0.5]),
    ],
)
def test_planes_of_coordinates_read_the_axes_of_their_layout(layout, expected):
    read = sample_triplane(coordinate_planes(), POINT, layout, "concat")
    assert_close(read[0, 0], torch.tensor(expected, dtype=F64))


def test_a_texel_is_read_at_its_own_centre_and_nothing_outside():
    planes = torch.zeros(1, 3, 1, 4, 4, dtype=F64)
    planes[0, 0, 0, 1, 2] = 1.0
    centre = torch.tensor([[[0.25, -0.25, 0.9], [1.5, 0.0, 0.0]]], dtype=F64)
    assert_close(sample_triplane(planes, centre)[0, :, 0], torch.tensor([1.0, 0.0], dtype=F64))
    assert_close(sample_triplane(torch.ones_like(planes), centre)[0, 1, 0], torch.tensor(1.0, dtype=F64))


def test_sum_and_mean_are_those_of_the_concatenation():
    planes = torch.randn(2, 3, 5, 4, 6, dtype=F64, generator=generator())
    points = torch.rand(2, 7, 3, dtype=F64, generator=generator()) * 2 - 1
    parts = sample_triplane(planes, points, aggregate="concat").unflatten(-1, (3, 5))
    assert_close(sample_triplane(planes, points), parts.sum(2))
    assert_close(sample_triplane(planes, points, aggregate="mean"), parts.mean(2))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_sampling_is_twice_differentiable(layout):
    planes = torch.randn(1, 3, 2, 4, 4, dtype=F64, generator=generator()).requires_grad_()
    points = (torch.rand(1, 3, 3, dtype=F64, generator=generator(2)) * 1.4 - 0.7).requires_grad_()

    def sample(planes, points):
        return sample_triplane(planes, points, layout)

    assert gradcheck(sample, (planes, points))
    assert gradgradcheck(sample, (planes, points))


def test_sdf_starts_as_a_sphere_and_density_as_a_blob():
    points = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 1, 0]])
    features = torch.randn(3, 4, generator=generator())
    assert_close(SDFHead(4)(features, points), torch.tensor([-0.5, 0.0, 0.5]))
    expected = torch.tensor([math.log1p(math.exp(10)), math.log(2), math.log1p(math.exp(-10))])
    assert_close(DensityHead(4)(features, points), expected)


def test_colours_reach_a_thousandth_beyond_their_range():
    head = ColourHead(2)
    torch.nn.init.zeros_(head.mlp.layers[-1].weight)
    head.mlp.layers[-1].bias.data = torch.tensor([-100.0, 0.0, 100.0])
    assert_close(head(torch.zeros(1, 2))[0], torch.tensor([-0.001, 0.5, 1.001]))


def test_geometry_comes_before_texture():
    planes = torch.arange(6.0)[None, :, None, None, None].expand(2, 6, 1, 2, 2)
    geometry, texture = split_planes(planes)
    assert geometry[0, :, 0, 0, 0].tolist() == [0, 1, 2]
    assert texture[0, :, 0, 0, 0].tolist() == [3, 4, 5]


def test_planes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="do not fit"):
        sample_triplane(torch.zeros(2, 3, 1, 2, 2), torch.zeros(1, 4, 3))
    with pytest.raises(UserError, match="six planes"):
        split_planes(torch.zeros(1, 3, 1, 2, 2))
