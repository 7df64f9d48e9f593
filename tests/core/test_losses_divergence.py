"""f-divergences: every row's f, h, h', psi against each other, and E_p f against the golden values."""

from __future__ import annotations

import math

import pytest
import torch
from core.score_bed import F64, bed

from fewstep.core.errors import UserError
from fewstep.core.losses.divergence import DIVERGENCES, FDivergence, density_ratio, find_divergence

RATIOS = torch.logspace(-3, 3, 41, dtype=F64)
ALL = sorted(DIVERGENCES)


@pytest.mark.parametrize("name", ALL)
def test_h_is_the_curvature_of_f(name):
    divergence, r = DIVERGENCES[name], RATIOS.clone().requires_grad_()
    (first,) = torch.autograd.grad(divergence.f(r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(divergence.h(RATIOS), RATIOS**2 * second, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_slope_and_psi_follow_from_h(name):
    divergence, r = DIVERGENCES[name], RATIOS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(divergence.h(r).sum(), r)
    torch.testing.assert_close(divergence.slope(RATIOS), slope, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(divergence.psi(RATIOS), divergence.h(RATIOS) - RATIOS * slope, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "psi"),
    [
        ("reverse_kl", lambda r: r**0),
        ("forward_kl", lambda r: r * 0),
        ("jensen_shannon", lambda r: (r / (1 + r)) ** 2),
        ("jeffreys", lambda r: r**0),
        ("chi2", lambda r: -2 * r**2),
        ("neyman", lambda r: 4 / r),
        ("hellinger", lambda r: r.sqrt() / 4),
        ("softened_reverse_kl", lambda r: (1 + 2 * r) / (1 + r) ** 2),
    ],
)
def test_psi_in_closed_form(name, psi):
    torch.testing.assert_close(DIVERGENCES[name].psi(RATIOS), psi(RATIOS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "r1", "r2"),
    [
        ("reverse_kl", 1.12092919, 0.21801770),
        ("forward_kl", 0.45878565, 0.20002331),
        ("jensen_shannon", 0.26057238, 0.10035656),
        ("chi2", 0.80470978, 0.42937781),
        ("hellinger", 0.29749213, 0.10235375),
        ("jeffreys", 1.12092919 + 0.45878565, 0.21801770 + 0.20002331),
    ],
)
def test_values_of_the_divergences(name, r1, r2):
    for bed_name, golden in (("R1", r1), ("R2", r2)):
        here = bed(bed_name)
        value = here.mean(DIVERGENCES[name].f(here.log_ratio().exp())).item()
        assert value == pytest.approx(golden, abs=2e-8)


def test_divergences_are_nonnegative_and_zero_at_equal_densities():
    """E_p f(r) - f(1) >= 0 (Jensen), for the affine part of f drops out of a mean with E_p r = 1."""
    here, one = bed("R2"), torch.ones(1, dtype=F64)
    ratio = here.log_ratio().exp()
    assert here.mean(ratio).item() == pytest.approx(1, abs=1e-9)
    for divergence in DIVERGENCES.values():
        assert here.mean(divergence.f(ratio)).item() - divergence.f(one).item() > 0.01
        assert divergence.h(one).item() > 0


def test_the_ratio_is_clamped_and_attached():
    logs = torch.tensor([-30.0, 0.5, 30.0], dtype=F64, requires_grad=True)
    ratio = density_ratio(logs)
    assert ratio.tolist() == pytest.approx([math.exp(-10), math.exp(0.5), math.exp(10)])
    ratio.sum().backward()
    assert logs.grad.tolist() == pytest.approx([0.0, math.exp(0.5), 0.0])


def test_a_misspelt_divergence_is_named():
    with pytest.raises(UserError, match="did you mean 'jeffreys'"):
        find_divergence("jefreys")
    own = FDivergence("own", torch.log, torch.log, torch.log)
    assert find_divergence(own) is own
