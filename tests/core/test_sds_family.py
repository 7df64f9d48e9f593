"""The score-distillation family on exact teachers: goldens and identities, by losses and by recipes."""

from __future__ import annotations

import pytest
import torch
from core.score_bed import F64, Mixture

from fewstep.core.guidance import Guided
from fewstep.core.losses.integral import asd_loss, csd_loss, normalizing_weight, sds_weight
from fewstep.core.process import VP, times

SD = VP.scaled_linear()
POINT, NOISE = torch.tensor([[0.3, 0.7]], dtype=F64), torch.tensor([[0.5, -1.0]], dtype=F64)
TWO = Mixture(SD, [0.5, 0.5], [[1.0, -2.0], [-1.0, 0.5]], [0.5, 0.5])
PROMPT = {"label": torch.tensor([0])}
T = times(400.0, 1)
LEVEL = SD.coefficients(T)
X_T = SD.add_noise(POINT, NOISE, T)


def pulled(loss_of, x=POINT):
    """The gradient a loss gives a point."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss_of(x).sum(), x)[0]


# ---------------------------------------------------------------- normalisers


@pytest.mark.parametrize(
    ("name", "size", "golden"),
    [("clean", 4.814879, (-0.763912, 0.954890)), ("noisy", 5.795146, (-0.636886, 0.796107))],
)
def test_golden_of_the_normalised_difference(name, size, golden):
    """Against progressive rendering distillation at guidance 7.5, where ASD at the same time is CSD times 6.5."""
    guided, cond = Guided(TWO, 7.5).eps(X_T, T, PROMPT), TWO.eps(X_T, T, PROMPT)
    weight = normalizing_weight(name, POINT, guided, NOISE, LEVEL.alpha, LEVEL.sigma)
    assert (1 / weight - 0.1).item() == pytest.approx(size, abs=1e-6)
    weight = weight * sds_weight("tau", LEVEL.alpha, LEVEL.sigma)
    got = pulled(lambda x: asd_loss(x, guided, cond, weight=weight))
    assert got[0].tolist() == pytest.approx(golden, abs=1e-6)
    csd = pulled(lambda x: csd_loss(x, cond, TWO.eps(X_T, T, {}), weight=6.5 * weight))
    torch.testing.assert_close(got, csd, rtol=1e-9, atol=0)


def test_a_normaliser_is_per_sample_and_detached_and_none_is_one():
    x = torch.cat([POINT, 3 * POINT]).requires_grad_()
    at = (torch.ones(2, dtype=F64), 2 * torch.ones(2, dtype=F64))
    eps = 0 * x.detach()
    for name in ("clean", "noisy"):
        found = normalizing_weight(name, x, x, eps, *at, floor=0.5)
        assert not found.requires_grad
        torch.testing.assert_close(found, 1 / (2 * x.detach().abs().mean(1) + 0.5))
    assert normalizing_weight("none", x, x, eps, *at).tolist() == [1, 1]
