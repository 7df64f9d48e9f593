"""Resizing: MATLAB's bicubic against its closed forms, and the plain interpolations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.restoration.degradations import imresize, mod_crop, resize
from fewstep.restoration.degradations.resize import cubic_taps

QUARTER = (0.240967, 0.181885, 0.097412, 0.022705, -0.011963, -0.018311, -0.010986, -0.001709)


def row(values: torch.Tensor) -> torch.Tensor:
    return values.double().view(1, 1, 1, -1).expand(1, 1, 8, -1)


@pytest.mark.parametrize("scale", [0.25, 1 / 3, 0.37, 1.0, 2.0, 3.5])
def test_weights_sum_to_1_and_a_constant_stays(scale):
    weights, taps = cubic_taps(20, 7, scale)
    assert_close(weights.sum(1), torch.ones(7, dtype=torch.float64))
    assert taps.min() >= 0
    assert taps.max() < 20
    assert_close(imresize(torch.full((1, 3, 9, 14), 0.7, dtype=torch.float64), scale).unique().mean(), f64(0.7))


def f64(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_quarter_has_the_known_weights():
    impulse_response = imresize(torch.eye(64, dtype=torch.float64)[None, None], 0.25)  # W I W', separable
    weights = cubic_taps(64, 16, 0.25)
    dense = torch.zeros(16, 64, dtype=torch.float64).scatter_add_(1, weights[1], weights[0])
    centre = dense[8, 24:44]  # output 8 lies at 4 * 8 + 1.5
    assert_close(centre[10:18], torch.tensor(QUARTER, dtype=torch.float64), atol=5e-7, rtol=0)
    assert_close(centre[2:10].flip(0), centre[10:18])
    assert_close(impulse_response[0, 0], dense @ dense.T)


def test_enlarging_by_2_has_the_textbook_weights():
    x = torch.zeros(16)
    x[8] = 1
    up = imresize(row(x), 2)[0, 0, 0]
    cubic = torch.tensor([-0.0234375, -0.0703125, 0.2265625, 0.8671875], dtype=torch.float64)  # at 1.75 1.25 .75 .25
    assert_close(up[13:17], cubic)
    assert_close(up[17:21], cubic.flip(0))


def test_ramps_and_parabolas_are_exact_in_the_interior():
    j = torch.arange(64)
    i = torch.arange(16).double()
    inside = slice(3, 13)
    assert_close(imresize(row(j), 0.25)[0, 0, 0, inside], (4 * i + 1.5)[inside])
    # the antialiased cubic averages: a parabola keeps its curvature and moves by a constant
    parabola = imresize(row(j.double() ** 2), 0.25)[0, 0, 0, inside] - (4 * i + 1.5)[inside] ** 2
    assert_close(parabola, parabola[:1].expand_as(parabola))
    up = imresize(row(j.double() ** 2), 2)[0, 0, 0, 8:120]
    assert_close(up, ((torch.arange(128).double() + 0.5) / 2 - 0.5)[8:120] ** 2)


def test_symmetric_edges_and_scale_1():
    x = torch.rand(1, 3, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(imresize(x, 1.0), x)
    mirrored = torch.cat([x.flip(-1), x, x.flip(-1)], -1)
    assert_close(imresize(mirrored, 0.25)[..., 5:10], imresize(x, 0.25))


def test_agrees_with_torchs_antialiased_bicubic_in_the_interior():
    x = torch.rand(2, 3, 48, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs = F.interpolate(x, (12, 16), mode="bicubic", antialias=True)
    assert_close(imresize(x, 0.25)[..., 3:-3, 3:-3], theirs[..., 3:-3, 3:-3])


def test_sizes_are_rounded_up():
    x = torch.zeros(1, 3, 9, 10)
    assert imresize(x, 0.25).shape == (1, 3, 3, 3)
    assert imresize(x, 1 / 3).shape == (1, 3, 3, 4)
    assert imresize(x, 0.01).shape == (1, 3, 1, 1)
    assert mod_crop(x, 4).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "bicubic"])
def test_plain_interpolations(interpolation):
    x = torch.rand(1, 3, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert resize(x, (12, 16), interpolation) is x
    small = resize(x, (3, 4), interpolation)
    blocks = x.view(1, 3, 3, 4, 4, 4)
    if interpolation == "area":
        expected = blocks.mean((3, 5))
    else:
        taps = {"bilinear": (0.0, 0.5, 0.5, 0.0), "bicubic": (-0.09375, 0.59375, 0.59375, -0.09375)}[interpolation]
        weights = torch.tensor(taps, dtype=torch.float64)
        expected = torch.einsum("bchiwj,i,j->bchw", blocks, weights, weights)
    assert_close(small, expected)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: imresize(torch.zeros(1, 3, 4, 4), 0), "scale: must be positive"),
        (lambda: imresize(torch.zeros(1, 3, 4, 4), float("nan")), "scale: must be positive"),
        (lambda: imresize(torch.zeros(3, 4, 4), 0.5), "must have the shape"),
        (lambda: imresize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 0.5), "must be float"),
        (lambda: imresize(torch.zeros(1, 3, 0, 4), 0.5), "at least one pixel"),
        (lambda: resize(torch.zeros(1, 3, 4, 4), (0, 4), "area"), "at least 1x1"),
        (lambda: resize(torch.zeros(1, 3, 4, 4), (2, 2), "lanczos"), "'lanczos': valid: area"),
        (lambda: mod_crop(torch.zeros(1, 3, 4, 3), 4), "smaller than scale 4"),
        (lambda: mod_crop(torch.zeros(1, 3, 4, 3), 0), "scale: must be at least 1"),
    ],
)
def test_bad_sizes_are_refused(call, match):
    with pytest.raises(UserError, match=match) as error:
        call()
    assert "\n" not in str(error.value)
