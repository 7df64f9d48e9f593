"""The oracle of the loss tests is itself right: golden pointwise values, scores that are gradients of densities."""

from __future__ import annotations

import pytest
import torch
from core.score_bed import F64, VP_LEVEL, Mixture, bed

from fewstep.core.process import CosineVP


@pytest.mark.parametrize(
    ("x", "golden"),
    [
        (0.5, (1.1425856066, 0.5688124306, 1.1501902368, -0.1248612653, -0.3078475756)),
        (-1.0, (-1.7251013731, -0.8379578246, -1.0557808291, 0.9156492786, -0.3710518791)),
    ],
)
def test_pointwise_values(x, golden):
    here = bed("R2", nodes=3)
    x_t, t = torch.tensor([[x]], dtype=F64), torch.tensor([VP_LEVEL], dtype=F64)
    ratio = here.teacher.log_density(x_t, t) - here.fake.log_density(x_t, t)
    got = [f(x_t, t, {}).item() for f in (here.teacher.x0, here.fake.x0, here.teacher.score, here.fake.score)]
    assert [*got, ratio.item()] == pytest.approx(golden, abs=2e-10)


def test_the_score_is_the_gradient_of_the_log_density_in_two_dimensions():
    teacher = Mixture(CosineVP(), [0.3, 0.7], [[-1.0, 0.5], [1.0, 0.2]], [0.4, 0.6])
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=F64, requires_grad=True)
    t = torch.linspace(0.1, 0.9, 7, dtype=F64)
    (gradient,) = torch.autograd.grad(teacher.log_density(x, t).sum(), x)
    torch.testing.assert_close(teacher.score(x, t, {}), gradient, rtol=0, atol=1e-12)


def test_labels_pick_components_and_null_is_the_mixture():
    teacher = Mixture(CosineVP(), [0.3, 0.7], [-2.0, 1.5], [0.4, 0.6])
    x, t = torch.zeros(2, 1, dtype=F64), torch.full((2,), 0.2, dtype=F64)
    cond = {"label": torch.tensor([0, 1])}
    alone = [Mixture(CosineVP(), [1.0], [m], [s]).x0(x[:1], t[:1], {}) for m, s in ((-2.0, 0.4), (1.5, 0.6))]
    torch.testing.assert_close(teacher.x0(x, t, cond), torch.cat(alone))
    torch.testing.assert_close(teacher.x0(x, t, teacher.null(cond)), teacher.x0(x, t, {}))
