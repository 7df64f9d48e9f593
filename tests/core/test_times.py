"""Laws of the noise levels drawn in training: ranges, annealing, sharing, and their distributions."""

from __future__ import annotations

import math

import pytest
import torch
from core.processes import PROCESSES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.process import EDM, VP, RectifiedFlow, TrigFlow
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig

F64 = torch.float64
N = 20000
RNG = Rng.for_batch(0, 0, N)


def quantiles(values, *levels):
    return torch.quantile(values, torch.tensor(levels, dtype=F64)).tolist()


@pytest.mark.parametrize("name", PROCESSES)
@settings(max_examples=10)
@given(low=st.floats(0, 0.6), width=st.floats(0.1, 0.4))
def test_uniform_times_fill_their_range_on_the_natural_clock(name, low, width):
    process, law = PROCESSES[name], TimeConfig(low=low, high=low + width)
    t = law.draw(process, RNG.select(0, 2000), "t")
    ends = process.round(process.unit_to_time(torch.tensor([low, low + width], dtype=F64)))
    assert t.dtype == F64
    assert ends[0] - 1e-9 <= t.min() <= t.max() <= ends[1] + 1e-9
    if process.discrete:
        assert torch.equal(t, t.round())
    else:
        u = (process.time_to_unit(t) - low) / width
        assert u.mean().item() == pytest.approx(0.5, abs=0.04)
        assert u.std().item() == pytest.approx(12**-0.5, abs=0.02)


def test_uniform_indices_of_a_table():
    t = TimeConfig(low=0.02, high=0.98).draw(VP.scaled_linear(), RNG, "t")
    assert (t.min().item(), t.max().item()) == (20, 979)
    counts = torch.histc(t, 12, 20, 980) / N
    assert_close(counts, torch.full((12,), 1 / 12, dtype=F64), rtol=0, atol=0.012)


def test_the_karras_index_of_sid():
    """u ~ U(0, 0.8) on the ramp: levels up to 24.4, half of them below 1.2."""
    t = TimeConfig(low=0.0, high=0.8).draw(EDM(), RNG, "t")
    assert t.max().item() == pytest.approx(24.408, rel=1e-2)
    middle = EDM().unit_to_time(torch.tensor([0.4])).item()
    assert quantiles(t, 0.5)[0] == pytest.approx(middle, rel=0.05)


def test_lognormal_levels_are_edm_s_in_every_process():
    law = TimeConfig(law="lognormal", mean=-1.2, std=1.2)
    for process in (EDM(1e-6, 1e6), RectifiedFlow(), TrigFlow()):
        level = process.tau(law.draw(process, RNG, "t")).log()
        assert level.mean().item() == pytest.approx(-1.2, abs=0.05)
        assert level.std().item() == pytest.approx(1.2, abs=0.03)
    clamped = law.draw(EDM(), RNG, "t")
    assert clamped.min().item() >= 0.002
    assert clamped.max().item() <= 80
    # the same draw in other clothes
    drawn = [p.tau(law.draw(p, RNG, "t")) for p in (RectifiedFlow(), TrigFlow())]
    assert_close(drawn[0], drawn[1], rtol=1e-9, atol=1e-9)


def test_the_arctan_law_of_continuous_time_consistency():
    """t = atan(exp(N(mean, std)) / sigma_data) (arXiv 2410.11081): ln(sigma_data tan t) is normal."""
    t = TimeConfig(law="lognormal", mean=-0.8, std=1.6).draw(TrigFlow(0.5), RNG, "t")
    level = (0.5 * t.tan()).log()
    z = (level + 0.8) / 1.6
    expected = torch.special.ndtri(torch.tensor([0.1, 0.5, 0.9], dtype=F64)).tolist()
    assert quantiles(z, 0.1, 0.5, 0.9) == pytest.approx(expected, abs=0.04)


def test_logit_normal_levels():
    law = TimeConfig(law="logit_normal", mean=1.0, std=1.0, low=0.0, high=1.0)
    u = RectifiedFlow().time_to_unit(law.draw(RectifiedFlow(), RNG, "t"))
    z = torch.logit(u) - 1
    assert z.mean().item() == pytest.approx(0, abs=0.04)
    assert z.std().item() == pytest.approx(1, abs=0.03)
    narrow = TimeConfig(law="logit_normal", mean=0.0, std=1.0, low=0.25, high=0.5)
    t = narrow.draw(RectifiedFlow(), RNG, "t")
    assert 0.25 <= t.min().item() < t.max().item() <= 0.5
    assert quantiles(t, 0.5)[0] == pytest.approx(0.375, abs=0.005)


@pytest.mark.parametrize("law", ["uniform", "lognormal", "logit_normal"])
def test_a_shared_time_is_one_for_all_and_has_the_law(law):
    config = TimeConfig(law=law, shared=True)
    process = RectifiedFlow()
    drawn = torch.stack([config.draw(process, Rng.for_batch(0, i, 3), "t") for i in range(1500)])
    assert bool((drawn == drawn[:, :1]).all())
    assert torch.equal(config.draw(process, Rng(0, 7, (5, 9)), "t"), drawn[7, :2])
    own = TimeConfig(law=law).draw(process, RNG, "t")
    assert quantiles(drawn[:, 0], 0.2, 0.5, 0.8) == pytest.approx(quantiles(own, 0.2, 0.5, 0.8), abs=0.05)


def test_annealing_moves_the_range_linearly_and_stops():
    law = TimeConfig(low=0.1, high=1.0, low_end=0.2, high_end=0.5, anneal_steps=100)
    assert law.bounds(0) == (0.1, 1)
    assert law.bounds(50) == pytest.approx((0.15, 0.75))
    assert law.bounds(100) == law.bounds(10**9) == pytest.approx((0.2, 0.5))
    t = law.draw(RectifiedFlow(), RNG, "t", step=1000)
    assert (t.min().item(), t.max().item()) == pytest.approx((0.2, 0.5), abs=1e-3)
    assert TimeConfig(low_end=0.5).bounds(10**6) == (0.02, 0.98)  # no steps, no annealing


def steps_of(law, *steps):
    return [law.bounds(step) for step in steps]


def test_schedules_of_score_distillation():
    """DreamFusion, VSD's drop, MVDream, DreamGaussian, HiFA, ASD and DreamCraft3D, as their papers have them."""
    table = VP.scaled_linear()
    own = TimeConfig().draw(table, RNG.select(0, 50), "t")
    assert own.unique().numel() > 20  # independent per item
    drop = TimeConfig(high_end=0.5, anneal_start=4999, anneal_steps=1)
    assert steps_of(drop, 0, 4999, 5000, 9000) == [(0.02, 0.98), (0.02, 0.98), (0.02, 0.5), (0.02, 0.5)]
    mvdream = TimeConfig(low=0.98, high=0.98, low_end=0.02, high_end=0.5, anneal_steps=8000, shared=True)
    assert steps_of(mvdream, 0, 4000, 8000) == [(0.98, 0.98), pytest.approx((0.5, 0.74)), pytest.approx((0.02, 0.5))]
    iterations = 500
    falling = {"low": 0.98, "high": 0.98, "low_end": 0.02, "high_end": 0.02}
    gaussian = TimeConfig(**falling, anneal_start=10, anneal_steps=480)
    for step in (0, 7, 10, 100, 250, 490, 499):
        t = 1000 * min(max(1 - step / iterations, 0.02), 0.98)
        drawn = gaussian.draw(table, RNG.select(0, 4), "t", step)
        assert bool((drawn == drawn[0]).all())
        assert drawn[0].item() == pytest.approx(t, abs=1.5)
    hifa = TimeConfig(low=0.98, high=0.98, low_end=0.3, high_end=0.3, anneal_steps=1000, anneal="sqrt")
    for step in (0, 40, 250, 1000, 2000):
        expected = 0.3 + 0.68 * (1 - min(step / 1000, 1) ** 0.5)
        assert hifa.bounds(step) == pytest.approx((expected, expected))
    assert TimeConfig(low=0.5, low_end=0.02, high_end=0.5, anneal_steps=10).bounds(5) == pytest.approx((0.26, 0.74))
    craft = TimeConfig(low=0.7, high=0.85, low_end=0.2, high_end=0.5, anneal_steps=200)
    assert steps_of(craft, 0, 200) == [(0.7, 0.85), pytest.approx((0.2, 0.5))]


def test_micro_batches_draw_what_the_batch_does():
    for law in ("uniform", "lognormal", "logit_normal"):
        config, whole = TimeConfig(law=law), RNG.select(0, 6)
        assert torch.equal(config.draw(EDM(), whole.select(2, 5), "t"), config.draw(EDM(), whole, "t")[2:5])
        assert not torch.equal(config.draw(EDM(), whole, "t"), config.draw(EDM(), whole, "s"))
        assert config.draw(EDM(), whole, "t", step=3).equal(config.draw(EDM(), whole, "t"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"low": 0.6, "high": 0.5}, "low <= high"),
        ({"low": -0.1}, "0 <= low"),
        ({"high": 1.5}, "<= 1"),
        ({"std": 0.0}, "std must be positive"),
        ({"low_end": 0.99, "anneal_steps": 5}, "low <= high"),
        ({"anneal_start": 5}, "give anneal_steps"),
    ],
)
def test_impossible_ranges_are_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        TimeConfig(**wrong)


def test_levels_stay_finite_where_draws_are_extreme():
    extreme = TimeConfig(law="lognormal", mean=0.0, std=400.0)
    for process in (EDM(), RectifiedFlow(), TrigFlow(), VP.linear(), PROCESSES["residual"]):
        t = extreme.draw(process, RNG.select(0, 500), "t")
        assert bool(t.isfinite().all())
        assert process.t_min <= t.min() <= t.max() <= process.t_max
        assert math.isfinite(float(process.coefficients(t).sigma.max()))
