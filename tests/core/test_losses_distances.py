"""Distances: closed forms, limits, and derivatives against autograd."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.errors import UserError
from fewstep.core.losses.distances import (
    Power,
    PseudoHuber,
    SquaredL2,
    huber_scale,
    l1,
    l2,
    pseudo_huber,
    pseudo_huber_elementwise,
)

X = torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]], dtype=torch.float64)
ZERO = torch.zeros_like(X)


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=0, atol=tolerance)


def test_values_by_hand():
    close(l1(X, ZERO), [1.5, 2.0, 0.0])
    close(l1(X, ZERO, reduction="sum"), [3.0, 4.0, 0.0])
    close(l2(X, ZERO), [4.5, 8.0, 0.0])
    close(l2(X, ZERO, reduction="sum"), [9.0, 16.0, 0.0])
    close(pseudo_huber(X, ZERO, 4.0), [1.0, math.sqrt(32) - 4, 0.0])
    both = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    close(pseudo_huber(both, both * 0, 12.0), [1.0])
    close(pseudo_huber_elementwise(both, both * 0, 4.0), [(1 + math.sqrt(32) - 4) / 2])
    assert huber_scale(torch.zeros(2, 3, 32, 32)) == pytest.approx(0.00054 * math.sqrt(3072))


def test_pseudo_huber_keeps_its_digits_near_zero():
    y = torch.full((1, 4), 1e-4)
    expected = 4e-8 / 2  # |y|^2 / (2c), from the series; the naive difference is 0 in float32
    assert pseudo_huber(y, torch.zeros_like(y), 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_limits_of_pseudo_huber():
    y = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(1e5 * pseudo_huber(y, y * 0, 1e5), l2(y, y * 0, reduction="sum") / 2, 1e-6)
    close(pseudo_huber(y, y * 0, 1e-9), y.norm(dim=1), 1e-8)


@pytest.mark.parametrize("distance", [SquaredL2(), PseudoHuber(0.7), Power(1.5), Power(3.0)])
def test_derivatives_are_those_of_the_values(distance):
    y = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(distance.value(y).sum(), y)
    close(distance.gradient(y), gradient)


def test_power_two_is_squared_l2():
    y = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    close(Power(2.0, floor=0.0).gradient(y), SquaredL2().gradient(y))


def test_a_power_below_two_has_a_finite_derivative_at_zero():
    assert torch.equal(Power(1.0).gradient(ZERO), ZERO)


def test_half_precision_is_computed_in_float32():
    assert l2(X.half(), ZERO.half()).dtype == torch.float32


@pytest.mark.parametrize("make", [lambda: pseudo_huber(X, ZERO, 0.0), lambda: PseudoHuber(-1.0), lambda: Power(0.5)])
def test_bad_scales_are_refused(make):
    with pytest.raises(UserError, match="must be"):
        make()
