"""Guidance: one convention, the same in every parameterisation, and the published identities of its variants."""

from __future__ import annotations

import pytest
import torch
from core.processes import at, randoms
from torch.testing import assert_close

from fewstep.core.analytic import MixtureTeacher
from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided, guide, perp_neg, perpendicular, rescale
from fewstep.core.prediction import Kind
from fewstep.core.process import EDM, VP, ResidualShift
from fewstep.core.tensors import sample_sum

PROCESS = VP.scaled_linear()


def teacher(kind=Kind.EPS, process=PROCESS):
    return MixtureTeacher(process, [0.5, 0.5], [[1.0, -2.0], [-1.0, 0.5]], [0.5, 0.5], kind=kind)


def labels(*values):
    return {"label": torch.tensor(values)}


class Counting(Denoiser):
    """How many rows a denoiser is asked for, in how many calls."""

    def __init__(self, inner):
        self.inner, self.process, self.calls = inner, inner.process, []

    def predict(self, x_t, t, cond: Cond):
        self.calls.append(len(x_t))
        return self.inner.predict(x_t, t, cond)

    def null(self, cond: Cond) -> Cond:
        return self.inner.null(cond)


def test_the_convention():
    cond, uncond = randoms(3, 2), randoms(3, 2, seed=1)
    assert_close(guide(cond, uncond, 1.0), cond)
    assert_close(guide(cond, uncond, 0.0), uncond)
    # papers that write cond + w (cond - uncond) have scale w + 1
    assert_close(guide(cond, uncond, 7.5), cond + 6.5 * (cond - uncond))
    scales = torch.tensor([0.0, 1.0, 3.0])
    per_sample = guide(cond, uncond, scales)
    for i, scale in enumerate(scales.tolist()):
        assert_close(per_sample[i : i + 1], guide(cond[i : i + 1], uncond[i : i + 1], scale))
    assert guide(cond.bfloat16(), uncond.bfloat16(), 2.0).dtype == torch.float32


@pytest.mark.parametrize("kind", Kind)
def test_guiding_any_kind_is_the_same(kind):
    x, t, cond = randoms(4, 2), torch.tensor([10.0, 400.0, 800.0, 999.0]), labels(0, 1, 0, 1)
    reference = Guided(teacher(Kind.X0), 4.0)
    assert_close(Guided(teacher(kind), 4.0).x0(x, t, cond), reference.x0(x, t, cond), rtol=1e-8, atol=1e-8)
    assert_close(Guided(teacher(kind), 4.0).eps(x, t, cond), reference.eps(x, t, cond), rtol=1e-8, atol=1e-8)


def test_the_golden_two_class_mixture():
    """e_c and e_u of the score-distillation sheet at t = 400, and their combination at 7.5."""
    x0, n, t = torch.tensor([[0.3, 0.7]]).double(), torch.tensor([[0.5, -1.0]]).double(), at(400)
    x_t, inner = PROCESS.add_noise(x0, n, t), teacher()
    e_c, e_u = inner.eps(x_t, t, labels(0)), inner.eps(x_t, t, {})
    assert e_c[0].tolist() == pytest.approx([-0.0854215, 1.1134897], abs=1e-6)
    assert e_u[0].tolist() == pytest.approx([0.4106495, 0.4934010], abs=1e-6)
    guided = Guided(inner, 7.5).eps(x_t, t, labels(0))
    assert (guided - n)[0].tolist() == pytest.approx([-3.8098830, 6.1440666], abs=2e-6)


def test_scale_one_is_one_evaluation_and_others_one_doubled_batch():
    x, t, cond = randoms(3, 2), at(500, 3), labels(0, 1, 0)
    inner = Counting(teacher())
    assert_close(Guided(inner, 1.0).x0(x, t, cond), teacher().x0(x, t, cond))
    assert inner.calls == [3]
    Guided(inner, 2.0).x0(x, t, cond)
    assert inner.calls == [3, 6]
    assert_close(Guided(inner, 0.0).x0(x, t, cond), teacher().x0(x, t, {}))


def test_the_scale_may_be_a_condition_entry_the_network_never_sees():
    x, t, scales = randoms(3, 2), at(500, 3), torch.tensor([1.0, 2.0, 6.0]).double()
    cond = labels(0, 1, 0)
    found = Guided(teacher(), "scale").x0(x, t, cond | {"scale": scales})
    for i, scale in enumerate(scales.tolist()):
        one = {"label": cond["label"][i : i + 1]}
        assert_close(found[i : i + 1], Guided(teacher(), scale).x0(x[i : i + 1], t[i : i + 1], one))


def test_a_negative_condition_takes_the_place_of_null_and_keeps_the_rest():
    x, t = randoms(2, 2), at(500, 2)
    inner = teacher()
    found = Guided(inner, 3.0, negative=labels(1, 1)).x0(x, t, labels(0, 0))
    assert_close(found, guide(inner.x0(x, t, labels(0, 0)), inner.x0(x, t, labels(1, 1)), 3.0))
    shifted = teacher(Kind.X0, ResidualShift())
    anchor = {"anchor": randoms(2, 2, seed=3)}
    found = Guided(shifted, 3.0, negative=labels(1, 1)).x0(x, at(7, 2), labels(0, 0) | anchor)
    parts = [shifted.x0(x, at(7, 2), labels(k, k) | anchor) for k in (0, 1)]
    assert_close(found, guide(*parts, 3.0))


def test_rescaled_guidance_has_the_conditional_spread():
    cond, guided = randoms(3, 40), 5 * randoms(3, 40, seed=1) + 2
    full = rescale(guided, cond, 1.0)
    assert_close(full.std(1), cond.std(1))
    assert_close(rescale(guided, cond, 0.0), guided)
    assert_close(rescale(guided, cond, 0.7), 0.7 * full + 0.3 * guided)
    wrapped = Guided(teacher(process=EDM()), 6.0, phi=1.0)
    x, t, label = randoms(5, 2), at(3.0, 5), labels(0, 1, 0, 1, 0)
    assert_close(wrapped.x0(x, t, label).std(1), teacher(process=EDM()).x0(x, t, label).std(1))


def test_perpendicular_parts():
    x, y = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0, -1.0]]).double()
    assert perpendicular(x, y)[0].tolist() == pytest.approx([0.7, 2.1])
    x, y = randoms(6, 2, 3), randoms(6, 2, 3, seed=1)
    assert_close(sample_sum(perpendicular(x, y) * y), torch.zeros(6).double(), rtol=0, atol=1e-12)
    assert_close(perpendicular(x, torch.zeros_like(y)), x)  # nothing to be orthogonal to
    assert_close(perpendicular(perpendicular(x, y), y), perpendicular(x, y))


def test_perp_neg():
    cond, uncond, negative = (randoms(4, 3, seed=k) for k in range(3))
    assert_close(perp_neg(cond, uncond, [], [], 7.5), guide(cond, uncond, 7.5))
    assert_close(perp_neg(cond, uncond, [negative], [0.0], 7.5), guide(cond, uncond, 7.5))
    # a negative along the positive direction changes nothing
    along = uncond + 0.3 * (cond - uncond)
    assert_close(perp_neg(cond, uncond, [along], [-2.0], 7.5), guide(cond, uncond, 7.5))
    # pushing away from a negative never moves along the positive direction
    moved = perp_neg(cond, uncond, [negative], [-2.0], 7.5) - guide(cond, uncond, 7.5)
    assert_close(sample_sum(moved * (cond - uncond)), torch.zeros(4).double(), rtol=0, atol=1e-11)
    assert bool((sample_sum(moved * (negative - uncond)) < 0).all())
    per_sample = perp_neg(cond, uncond, [negative], [torch.tensor([0.0, -2.0, -2.0, 0.0]).double()], 7.5)
    assert_close(per_sample[1:3], (guide(cond, uncond, 7.5) + moved)[1:3])
    with pytest.raises(UserError, match="weights must be <= 0"):
        perp_neg(cond, uncond, [negative], [0.1], 7.5)


def test_a_network_without_a_null_condition_says_so():
    class Bare(Counting):
        null = Denoiser.null

    with pytest.raises(UserError, match="no unconditional prediction"):
        Guided(Bare(teacher()), 2.0).x0(randoms(1, 2), at(3), labels(0))
