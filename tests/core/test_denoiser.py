"""Denoisers: networks read through processes and scalings, and one process seen through another."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from core.processes import PROCESSES, at, inner_times, randoms
from torch.testing import assert_close

from fewstep.core.analytic import GaussianTeacher, MixtureTeacher
from fewstep.core.denoiser import (
    Backbone,
    EDMScaling,
    MicroBatched,
    NetworkDenoiser,
    Plain,
    Reprocessed,
    TrigFlowScaling,
    batch_of,
    concat,
    edm_sigma_data,
)
from fewstep.core.errors import UserError
from fewstep.core.prediction import Kind
from fewstep.core.process import EDM, VP, CosineVP, RectifiedFlow, ResidualShift, TrigFlow
from fewstep.core.solvers import solve

F64 = torch.float64


class Recorder(Backbone):
    """``a x + b time + c`` that remembers what it was given."""

    def __init__(self, a=0.5, b=0.0, c=0.1):
        super().__init__()
        self.a, self.b, self.c, self.seen = a, b, c, []

    def forward(self, x, time, cond):
        self.seen.append((x, time, dict(cond)))
        return self.a * x + self.b * time.reshape(-1, *([1] * (x.ndim - 1))) + self.c


# ---------------------------------------------------------------- scalings


@pytest.mark.parametrize("kind", Kind)
def test_a_plain_network_means_what_it_says(kind):
    process, net = PROCESSES["shifted"], Recorder()
    x, t = randoms(3, 2), torch.tensor([0.2, 0.5, 0.8], dtype=F64)
    denoiser = NetworkDenoiser(net, process, Plain(kind))
    assert_close(denoiser.view(kind, x, t, {}), 0.5 * x + 0.1)
    seen, time, _ = net.seen[0]
    assert torch.equal(seen, x)
    assert_close(time, 1000 * t)
    clean = denoiser.clean(x, t, {})
    assert_close(process.add_noise(clean.x0, clean.eps, t), x)
    assert_close(denoiser.x0(x, t, {}), clean.x0)
    assert_close(denoiser.eps(x, t, {}), clean.eps)
    assert_close(denoiser.score(x, t, {}), -clean.eps / t[:, None])
    assert_close(denoiser.velocity(x, t, {}), clean.eps - clean.x0)


def test_networks_are_fed_in_the_type_of_the_state():
    net = Recorder()
    denoiser = NetworkDenoiser(net, VP.scaled_linear(), Plain(Kind.EPS))
    found = denoiser.x0(randoms(2, 3).bfloat16(), torch.tensor([10.0, 900.0]), {})
    assert found.dtype == torch.float32
    assert [v.dtype for v in net.seen[0][:2]] == [torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize("name", ["edm", "vp", "shifted", "trigflow", "offset"])
def test_karras_preconditioning(name):
    """D = c_skip y + c_out F(c_in y, ln(sigma)/4) in variance-exploding coordinates, for any process."""
    process, net, sd = PROCESSES[name], Recorder(0.7, 0.3, -0.2), 0.5
    t, x = inner_times(process, 5), randoms(5, 2)
    denoiser = NetworkDenoiser(net, process, EDMScaling(sd))
    sigma, y = process.tau(t)[:, None], x / process.coefficients(t).alpha[:, None]
    norm = (sigma**2 + sd**2).sqrt()
    raw = 0.7 * y / norm + 0.3 * sigma.log() / 4 - 0.2
    assert_close(denoiser.x0(x, t, {}), sd**2 / norm**2 * y + sigma * sd / norm * raw)
    assert_close(net.seen[0][0], y / norm)
    assert_close(net.seen[0][1], sigma[:, 0].log() / 4)


def test_preconditioning_is_the_best_linear_denoiser_when_the_network_is_silent():
    """F = 0 is exact for N(0, sigma_data^2), and the network's target has unit variance there."""
    process = EDM()
    silent = NetworkDenoiser(Recorder(0.0, 0.0, 0.0), process, EDMScaling(0.5))
    x, t = randoms(6, 2), torch.tensor([0.002, 0.1, 0.5, 2.0, 20.0, 80.0], dtype=F64)
    assert_close(silent.x0(x, t, {}), GaussianTeacher(process, 0.0, 0.5).x0(x, t, {}), rtol=0, atol=1e-13)


def test_trigflow_scaling():
    net, process = Recorder(0.7, 0.3, -0.2), TrigFlow(0.5)
    denoiser = NetworkDenoiser(net, process, TrigFlowScaling(0.5))
    x, t = randoms(3, 2), torch.tensor([0.0, 0.7, math.pi / 2], dtype=F64)
    raw = 0.7 * x / 0.5 + 0.3 * t[:, None] - 0.2
    assert_close(denoiser.x0(x, t, {}), t[:, None].cos() * x - t[:, None].sin() * 0.5 * raw, rtol=0, atol=1e-14)
    assert_close(denoiser.velocity(x, t, {}), 0.5 * raw)
    assert_close(denoiser.x0(x, t, {})[0], x[0])
    assert_close(denoiser.x0(x, t, {})[2], -0.5 * raw[2], rtol=0, atol=1e-14)
    with pytest.raises(UserError, match="needs the TrigFlow process"):
        NetworkDenoiser(net, EDM(), TrigFlowScaling(0.5))


def test_conditions_reach_the_network_anchor_included():
    net = Recorder()
    cond = {"anchor": randoms(2, 3, seed=1), "label": torch.tensor([0, 1])}
    NetworkDenoiser(net, ResidualShift(), Plain(Kind.X0)).x0(randoms(2, 3), at(5, 2), cond)
    assert set(net.seen[0][2]) == {"anchor", "label"}


def test_a_backbone_without_null_says_so_and_with_backbone_keeps_the_reading():
    denoiser = NetworkDenoiser(Recorder(), EDM(), EDMScaling(0.7))
    with pytest.raises(UserError, match="unconditional class"):
        denoiser.null({})
    other = denoiser.with_backbone(Recorder(0.0, 0.0, 0.0))
    assert (other.process, other.scaling) == (denoiser.process, denoiser.scaling)
    assert_close(other.x0(randoms(2, 2), at(1.0, 2), {}), 0.49 / 1.49 * randoms(2, 2))


# ---------------------------------------------------------------- other processes


def mixture(process, kind=Kind.V):
    return MixtureTeacher(process, [0.3, 0.7], [[-1.0, 0.5], [1.0, 0.2]], [0.4, 0.6], kind=kind)


UNANCHORED = ["vp", "cosine", "shifted", "trigflow", "edm"]


@pytest.mark.parametrize(("inner", "outer"), itertools.permutations(UNANCHORED, 2))
def test_an_exact_teacher_of_one_process_is_exact_in_another(inner, outer):
    process = PROCESSES[outer]
    seen = Reprocessed(mixture(PROCESSES[inner]), process)
    # levels both processes have
    t = process.time_from_tau(torch.tensor([0.05, 0.3, 1.0, 4.0, 12.0], dtype=F64))
    x, cond = randoms(5, 2), {"label": torch.tensor([0, 1, -1, 0, 1])}
    exact = mixture(process)
    assert_close(seen.x0(x, t, cond), exact.x0(x, t, cond), rtol=1e-9, atol=1e-9)
    assert_close(seen.velocity(x, t, cond), exact.velocity(x, t, cond), rtol=1e-8, atol=1e-8)
    assert_close(seen.x0(x, t, seen.null(cond)), exact.x0(x, t, {}), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_rectified_flow_is_trigflow_to_machine_precision(sigma_data):
    """A flow teacher wrapped as TrigFlow is the native TrigFlow teacher (sCM, SANA-Sprint), at both ends too."""
    process = TrigFlow(sigma_data)
    native, wrapped = (
        GaussianTeacher(process, 0.3, 0.5, kind=Kind.VELOCITY),
        Reprocessed(GaussianTeacher(RectifiedFlow(), 0.3, 0.5, kind=Kind.FLOW), process),
    )
    t = torch.tensor([0.0, 1e-3, *torch.linspace(0.01, 1.56, 20).tolist(), math.pi / 2], dtype=F64)
    x = randoms(len(t), 3)
    assert_close(wrapped.velocity(x, t, {}), native.velocity(x, t, {}), rtol=0, atol=1e-12)
    assert_close(wrapped.x0(x, t, {}), native.x0(x, t, {}), rtol=0, atol=1e-12)


def test_the_published_formula_of_the_flow_to_trigflow_wrapper():
    """t_F = sin/(sin + cos), F = [(1 - 2 t_F) z + (1 - 2 t_F + 2 t_F^2) u] / l, z = l x at unit data scale."""
    net = Recorder(0.6, 2e-4, 0.1)
    flow = NetworkDenoiser(net, RectifiedFlow(), Plain(Kind.FLOW))
    t, x = torch.linspace(0.1, 1.5, 6, dtype=F64), randoms(6, 2)
    found = Reprocessed(flow, TrigFlow(1.0)).velocity(x, t, {})
    time = (t.sin() / (t.sin() + t.cos()))[:, None]
    length = (time**2 + (1 - time) ** 2).sqrt()
    z = length * x
    u = 0.6 * z + 2e-4 * 1000 * time + 0.1
    assert_close(found, ((1 - 2 * time) * z + (1 - 2 * time + 2 * time**2) * u) / length, rtol=0, atol=1e-12)
    assert_close(net.seen[0][0], z)
    # and back: t = atan2(t_F, 1 - t_F)
    assert_close(torch.atan2(time, 1 - time)[:, 0], t)


def test_first_order_sampling_is_the_same_in_both_processes():
    """DDIM does not know the process: fifty TrigFlow rotations are fifty Euler steps of the flow on matched knots."""
    flow, trig = mixture(RectifiedFlow()), TrigFlow(1.0)
    grid = [0.99, *torch.linspace(0.95, 0.02, 49, dtype=F64).tolist()]
    knots = [math.atan2(t, 1 - t) for t in grid]
    x = randoms(4, 2)
    scale = math.hypot(grid[0], 1 - grid[0])
    there = solve(flow, x * scale, grid, {}, "ddim").x
    here = solve(Reprocessed(flow, trig), x, knots, {}, "ddim").x
    assert_close(here, there, rtol=0, atol=1e-10)


def test_levels_beyond_the_inner_process_use_its_nearest():
    inner = mixture(VP.scaled_linear())
    far = Reprocessed(inner, EDM(1e-5, 1e4))
    assert bool(far.x0(randoms(2, 2), torch.tensor([1e-5, 1e4]).double(), {}).isfinite().all())


def test_differentiable_through_the_wrapper():
    wrapped, native = Reprocessed(mixture(RectifiedFlow()), TrigFlow()), mixture(TrigFlow())
    x, t = randoms(3, 2).requires_grad_(), torch.tensor([0.3, 0.8, 1.4], dtype=F64)
    found = [torch.autograd.grad(d.x0(x, t, {}).square().sum(), x)[0] for d in (wrapped, native)]
    assert_close(*found, rtol=1e-10, atol=1e-10)


def test_anchored_processes_are_not_wrapped():
    with pytest.raises(UserError, match="anchor"):
        Reprocessed(mixture(CosineVP()), ResidualShift())
    with pytest.raises(UserError, match="anchor"):
        Reprocessed(mixture(ResidualShift()), CosineVP())


# ---------------------------------------------------------------- pieces


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_micro_batches_give_the_same_numbers(size):
    inner = mixture(EDM())
    x, t = randoms(5, 2), torch.tensor([0.1, 0.5, 1.0, 5.0, 50.0], dtype=F64)
    cond = {"label": torch.tensor([0, 1, -1, 0, 1])}
    pieces = MicroBatched(inner, size)
    assert_close(pieces.x0(x, t, cond), inner.x0(x, t, cond))
    assert pieces.predict(x, t, cond).kind is Kind.V
    assert pieces.null(cond)["label"].tolist() == [-1] * 5


def test_conditions_are_cut_and_joined():
    cond = {"label": torch.arange(4), "text": randoms(4, 2, 3)}
    again = concat([batch_of(cond, 0, 1), batch_of(cond, 1, 4)])
    assert all(torch.equal(again[k], cond[k]) for k in cond)
    assert concat([]) == {}


def test_declared_data_spread():
    assert edm_sigma_data(EDM(sigma_data=0.7)) == 0.7
    assert edm_sigma_data(TrigFlow(1.0)) == 1.0
    assert edm_sigma_data(VP.scaled_linear()) == 0.5
