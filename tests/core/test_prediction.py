"""Predictions: every kind stands for one pair (x0, eps), under every process."""

from __future__ import annotations

import itertools

import pytest
import torch
from core.processes import PROCESSES, anchored, at, inner_times, randoms
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.prediction import Clean, Kind, Prediction, check_kind, compose, convert, decompose
from fewstep.core.process import VP, CosineVP, RectifiedFlow, TrigFlow

F64 = torch.float64


def pair(n=4, seed=0):
    return Clean(randoms(n, 3, seed=seed), randoms(n, 3, seed=seed + 1))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("name", PROCESSES)
@settings(max_examples=12)
@given(u=st.floats(0.02, 0.98), seed=st.integers(0, 50))
def test_composed_predictions_decompose_into_what_they_were(name, kind, u, seed):
    process, clean = PROCESSES[name], pair(2, seed)
    anchor = anchored(process, 2, 3).get("anchor")
    t = process.unit_to_time(at(u, 2))
    x_t = process.add_noise(clean.x0, clean.eps, t, anchor)
    value = compose(clean, kind, t, process, anchor)
    found = decompose(Prediction(value, kind), x_t, t, process, anchor)
    # dividing by the smaller of alpha and sigma amplifies rounding by their ratio
    scale = float(max(process.tau(t).max(), (1 / process.tau(t)).max(), torch.tensor(1.0))) ** 2
    assert_close(found.x0, clean.x0, rtol=0, atol=1e-12 * scale)
    assert_close(found.eps, clean.eps, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize(("first", "second"), itertools.permutations(Kind, 2))
@pytest.mark.parametrize("name", ["vp", "edm", "shifted", "trigflow", "offset", "residual"])
def test_conversions_go_there_and_back(name, first, second):
    process = PROCESSES[name]
    anchor = anchored(process, 5, 3).get("anchor")
    t, x_t, value = inner_times(process, 5, 0.2, 0.8), randoms(5, 3, seed=7), randoms(5, 3)
    over = convert(Prediction(value, first), second, x_t, t, process, anchor)
    back = convert(Prediction(over, second), first, x_t, t, process, anchor)
    assert_close(back, value, rtol=1e-8, atol=1e-7)


def test_the_table_of_conversions():
    """The rows of the theory sheets, written out."""
    t, x, value = torch.tensor([0.3, 0.6], dtype=F64), randoms(2, 3), randoms(2, 3, seed=1)
    flow = RectifiedFlow()
    found = decompose(Prediction(value, Kind.FLOW), x, t, flow)
    assert_close(found.x0, x - t[:, None] * value)
    assert_close(found.eps, x + (1 - t[:, None]) * value)
    assert_close(convert(Prediction(value, Kind.FLOW), Kind.VELOCITY, x, t, flow), value)
    process = CosineVP()
    c = process.coefficients(t)
    a, s = c.alpha[:, None], c.sigma[:, None]
    found = decompose(Prediction(value, Kind.V), x, t, process)
    assert_close(found.x0, a * x - s * value)
    assert_close(found.eps, s * x + a * value)
    assert_close(convert(Prediction(value, Kind.X0), Kind.SCORE, x, t, process), (a * value - x) / s**2)
    assert_close(convert(Prediction(value, Kind.SCORE), Kind.X0, x, t, process), (x + s**2 * value) / a)
    trig = TrigFlow(0.5)
    found = decompose(Prediction(0.5 * value, Kind.VELOCITY), x, t, trig)
    assert_close(found.x0, t[:, None].cos() * x - t[:, None].sin() * 0.5 * value)
    assert_close(0.5 * found.eps, t[:, None].sin() * x + t[:, None].cos() * 0.5 * value)


def test_velocity_is_the_derivative_of_the_state():
    for name in ("cosine", "shifted", "trigflow", "residual", "edm"):
        process, clean, h = PROCESSES[name], pair(3), 1e-6
        anchor = anchored(process, 3, 3).get("anchor")
        t = inner_times(process, 3, 0.3, 0.8)
        late, early = (process.add_noise(clean.x0, clean.eps, t + d, anchor) for d in (h, -h))
        velocity = compose(clean, Kind.VELOCITY, t, process, anchor)
        assert_close((late - early) / (2 * h), velocity, rtol=1e-6, atol=1e-6)


def test_the_anchor_moves_with_the_state_and_not_with_the_prediction():
    process = PROCESSES["residual"]
    t, x, value, y = inner_times(process, 4), randoms(4, 2), randoms(4, 2, seed=1), randoms(4, 2, seed=2)
    moved = process.offset(x, t, y, sign=1.0)
    for kind in (Kind.X0, Kind.EPS, Kind.V, Kind.FLOW, Kind.SCORE):
        bare = decompose(Prediction(value, kind), x, t, process, torch.zeros_like(y))
        there = decompose(Prediction(value, kind), moved, t, process, y)
        assert_close(there.x0, bare.x0)
        assert_close(there.eps, bare.eps)
    with pytest.raises(UserError, match=r"cond\['anchor'\]"):
        decompose(Prediction(value, Kind.X0), x, t, process)


def test_score_of_eps_is_finite_where_alpha_is_not():
    t, x = at(1.0, 2), randoms(2, 3)
    assert_close(convert(Prediction(x, Kind.EPS), Kind.SCORE, x, t, CosineVP()), -x)


@pytest.mark.parametrize("process", [CosineVP(), TrigFlow(), RectifiedFlow()])
@pytest.mark.parametrize("kind", [Kind.V, Kind.FLOW, Kind.VELOCITY])
def test_velocities_are_well_conditioned_at_both_ends(process, kind):
    clean = pair(2)
    for end in (process.t_min, process.t_max):
        t = at(end, 2)
        x_t = process.add_noise(clean.x0, clean.eps, t)
        found = decompose(Prediction(compose(clean, kind, t, process), kind), x_t, t, process)
        assert_close(found.x0, clean.x0, rtol=0, atol=1e-14)
        assert_close(found.eps, clean.eps, rtol=0, atol=1e-14)


def test_maths_is_float32_at_least():
    """eps of a bfloat16 network at Stable Diffusion's last level, where alpha is 0.068: x0 as exact as eps itself."""
    process, t = VP.scaled_linear(), at(999, 64)
    x0, eps = randoms(64, 3), randoms(64, 3, seed=1).bfloat16().double()
    x_t = process.add_noise(x0, eps, t)
    found = decompose(Prediction(eps.bfloat16(), Kind.EPS), x_t.float(), t, process)
    assert found.x0.dtype == torch.float32
    assert_close(found.x0.double(), x0, rtol=0, atol=1e-5)
    assert convert(Prediction(eps.bfloat16(), Kind.EPS), Kind.EPS, x_t.float(), t, process).dtype == torch.float32


def test_kinds_that_say_nothing_of_x0_are_refused_where_alpha_is_zero():
    for kind in (Kind.EPS, Kind.SCORE):
        with pytest.raises(UserError, match="says nothing of x0"):
            check_kind(CosineVP(), kind, 1.0)
        check_kind(CosineVP(), kind, 0.99)
    for kind in (Kind.V, Kind.FLOW, Kind.X0, Kind.VELOCITY):
        check_kind(CosineVP(), kind, 1.0)
