"""Processes: clocks that invert each other, coefficients of published schedules, forward kernels that compose."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from core.processes import PROCESSES, anchored, at, inner_times, randoms
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.process import (
    EDM,
    VP,
    CosineVP,
    LocalOffset,
    RectifiedFlow,
    ResidualShift,
    TrigFlow,
    process_from_scheduler,
    times,
)

F64 = torch.float64
fractions = st.floats(0.001, 0.999)


# ---------------------------------------------------------------- clocks


@pytest.mark.parametrize("name", PROCESSES)
@settings(max_examples=40)
@given(u=fractions)
def test_clocks_invert_each_other(name, u):
    process = PROCESSES[name]
    t = process.unit_to_time(at(u))
    assert process.t_min <= t.item() <= process.t_max
    assert process.time_to_unit(t).item() == pytest.approx(u, abs=1e-12)
    assert process.time_from_tau(process.tau(t)).item() == pytest.approx(t.item(), rel=1e-9, abs=1e-9)
    assert process.time_from_log_snr(process.log_snr(t)).item() == pytest.approx(t.item(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_ends_of_the_clocks(name):
    process = PROCESSES[name]
    ends = process.unit_to_time(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == pytest.approx([process.t_min, process.t_max], rel=1e-12)
    assert process.time_to_unit(ends).tolist() == pytest.approx([0, 1], abs=1e-12)
    # levels beyond the range become the ends
    beyond = process.time_from_tau(torch.tensor([0.0, math.inf], dtype=F64))
    assert beyond[0].item() == pytest.approx(process.t_min, abs=1e-12)
    assert beyond[1].item() == pytest.approx(process.t_max, abs=1e-12)
    assert process.time_from_tau(at(1e12)).item() == pytest.approx(process.t_max, rel=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_grows_with_time(name):
    process = PROCESSES[name]
    t = process.unit_to_time(torch.linspace(0, 1, 301))
    assert bool((process.tau(t).diff() > 0).all())
    assert bool((process.log_snr(t).diff() < 0).all())
    assert_close(process.log_snr(t)[1:-1], -2 * process.tau(t)[1:-1].log(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PROCESSES)
def test_rates_are_derivatives(name):
    process, h = PROCESSES[name], 1e-5
    t = inner_times(process, 9)
    step = h * (process.t_max - process.t_min) / 100
    low, high = process.coefficients(t - step), process.coefficients(t + step)
    for before, after, rate in zip(low, high, process.rates(t), strict=True):
        assert_close((after - before) / (2 * step), rate, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_coefficients_are_double_whatever_the_time_s_type(name):
    process = PROCESSES[name]
    t = process.unit_to_time(torch.tensor([0.25, 0.5]))
    t = t.round() if process.discrete else torch.tensor([0.25, 0.5]) * process.t_max
    for dtype in (torch.float32, torch.bfloat16, F64):
        found = process.coefficients(t.to(dtype).to(F64).to(dtype))
        assert all(c.dtype == F64 for c in found)
        assert all(c.dtype == F64 for c in process.rates(t.to(dtype)))
    assert process.round(t.float()).dtype == F64


def test_rounding_is_to_levels_networks_were_trained_at():
    assert PROCESSES["vp"].round(torch.tensor([-3.0, 0.4, 499.6, 1200.0])).tolist() == [0, 0, 500, 999]
    assert PROCESSES["residual"].round(torch.tensor([3.4, 13.6])).tolist() == [3, 14]
    assert PROCESSES["flow"].round(torch.tensor([0.25])).tolist() == [0.25]


def test_times_repeats_a_number_and_keeps_a_list():
    assert times(3.0, 2).tolist() == [3.0, 3.0]
    assert times([1.0, 2.0], 2).dtype == F64


# ---------------------------------------------------------------- families


@settings(max_examples=40)
@given(u=fractions)
@pytest.mark.parametrize("name", ["vp", "ddpm", "cosine"])
def test_variance_is_preserved_between_levels_too(name, u):
    c = PROCESSES[name].coefficients(PROCESSES[name].unit_to_time(at(u)))
    assert (c.alpha**2 + c.sigma**2).item() == pytest.approx(1, abs=1e-14)


def test_shapes_of_the_continuous_processes():
    t = torch.tensor([0.3, 0.9], dtype=F64)
    flow, trig, edm = PROCESSES["flow"].coefficients(t), TrigFlow(0.5).coefficients(t), EDM().coefficients(t)
    assert_close(flow.alpha + flow.sigma, torch.ones(2, dtype=F64))
    assert_close(trig.alpha**2 + (trig.sigma / 0.5) ** 2, torch.ones(2, dtype=F64))
    assert edm.alpha.tolist() == [1, 1]
    assert edm.sigma.tolist() == t.tolist()
    offset = PROCESSES["offset"].coefficients(at(500))
    assert offset.alpha.item() == 1
    residual = PROCESSES["residual"].coefficients(torch.tensor([0.0, 5.0, 14.0]))
    assert_close(residual.alpha + residual.anchor, torch.ones(3, dtype=F64))
    assert_close(residual.sigma**2, 4 * residual.anchor)


def test_pure_noise_is_exactly_that():
    for process in (CosineVP(), TrigFlow(), RectifiedFlow()):
        end = process.coefficients(at(process.t_max))
        assert end.alpha.item() == 0
        assert process.tau(at(process.t_max)).item() == math.inf
    assert TrigFlow().coefficients(torch.tensor([math.pi / 2])).alpha.item() == 0  # rounded upwards in float32
    assert TrigFlow(0.7).coefficients(at(math.pi / 2)).sigma.item() == pytest.approx(0.7)


def test_scale_of_the_first_noise():
    assert [PROCESSES[n].initial_scale(at(PROCESSES[n].t_max)).item() for n in ("vp", "cosine", "edm", "flow")] == [
        1,
        1,
        80,
        1,
    ]
    assert PROCESSES["residual"].initial_scale(at(14)).item() == pytest.approx(2 * 0.99)
    assert LocalOffset.linear().initial_scale(at(999)).item() == pytest.approx(0.98518, abs=5e-6)
    # the student of an offset process may start anywhere; TrigFlow's noise carries the scale of the data
    assert TrigFlow(0.5).initial_scale(at(math.pi / 2)).item() == 0.5


def test_time_inputs_of_networks():
    t = torch.tensor([0.5], dtype=F64)
    assert EDM().time_input(t).item() == pytest.approx(math.log(0.5) / 4)
    assert RectifiedFlow().time_input(t).item() == 500
    assert CosineVP().time_input(t).item() == 500
    assert TrigFlow().time_input(t).item() == 0.5
    assert VP.linear().time_input(torch.tensor([417.0])).item() == 417


# ---------------------------------------------------------------- published numbers


def test_stable_diffusion_s_schedule():
    process = VP.scaled_linear()
    abar = process.coefficients(torch.tensor([0.0, 400.0, 999.0])).alpha ** 2
    assert abar.tolist() == pytest.approx([0.99915, 0.4244830, 0.004660], abs=5e-7)
    assert process.tau(at(625)).item() == pytest.approx(2.502, abs=5e-4)
    assert VP.linear().tau(at(440)).item() == pytest.approx(2.502, abs=5e-4)
    assert round(process.time_from_tau(at(2.502)).item()) == 625


def test_karras_ramp():
    assert EDM().unit_to_time(torch.tensor([0.2, 0.5, 0.8])).tolist() == pytest.approx(
        [0.0851, 2.515, 24.41], abs=5e-3, rel=1e-3
    )


def test_shift_of_rectified_flow():
    process = RectifiedFlow(shift=3.0)
    assert process.unit_to_time(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx([0.5, 0.75, 0.9])
    assert process.coefficients(at(0.5)).alpha.item() == 0.5  # the clock moves, not the process
    half = RectifiedFlow(shift=3.0, t_min=0.1, t_max=0.9)
    assert half.unit_to_time(torch.tensor([0.5])).item() == pytest.approx(0.1 + 0.75 * 0.8)


@pytest.mark.parametrize(
    ("process", "roots"),
    [
        (
            ResidualShift(),
            [
                0.02,
                0.117165,
                0.176305,
                0.233629,
                0.291574,
                0.351009,
                0.412356,
                0.475858,
                0.541672,
                0.60991,
                0.680658,
                0.753985,
                0.829951,
                0.908606,
                0.99,
            ],
        ),
        (ResidualShift(num_steps=4, min_noise=0.2), [0.1, 0.520096, 0.761382, 0.99]),
        (ResidualShift(num_steps=4, min_noise=0.2, cap=math.sqrt(1e-3)), [0.031623, 0.376440, 0.667323, 0.99]),
    ],
)
def test_resshift_tables(process, roots):
    t = torch.arange(process.num_steps, dtype=F64)
    assert process.root_eta(t).tolist() == pytest.approx(roots, abs=1e-6)
    c = process.coefficients(t)
    assert_close(c.anchor, process.root_eta(t) ** 2)


def test_resshift_input_scales():
    sigma = ResidualShift().coefficients(torch.tensor([0.0, 14.0])).sigma
    assert (sigma**2 + 1).sqrt().tolist() == pytest.approx([1.000800, 2.218197], abs=1e-6)


def test_lidiff_s_offsets():
    process = LocalOffset.linear()
    assert process.coefficients(torch.tensor([0.0, 500.0, 999.0])).sigma.tolist() == pytest.approx(
        [0.005916, 0.76817, 0.98518], abs=5e-6
    )
    assert process.alphas_cumprod[-1].sqrt().item() == pytest.approx(0.17155, abs=5e-6)
    # points are moved, never rescaled: the offsets do not know where the points are
    x, eps, t = randoms(3, 7, 3), randoms(3, 7, 3, seed=1), torch.tensor([0.0, 500.0, 999.0])
    assert_close(process.add_noise(x + 10, eps, t) - 10, process.add_noise(x, eps, t))


# ---------------------------------------------------------------- noising


@pytest.mark.parametrize("name", PROCESSES)
@settings(max_examples=25)
@given(first=fractions, second=fractions, seed=st.integers(0, 99))
def test_renoising_keeps_the_marginal(name, first, second, seed):
    """x_t from x_s has the mean and variance of x_t from x0: the forward kernel composes."""
    process = PROCESSES[name]
    s, t = (process.unit_to_time(at(u)) for u in sorted((first, second)))
    x0, zero = randoms(1, 3, seed=seed), torch.zeros(1, 3, dtype=F64)
    anchor = anchored(process, 1, 3).get("anchor")
    clean_s = process.add_noise(x0, zero, s, anchor)
    assert_close(process.renoise(clean_s, zero, s, t, anchor), process.add_noise(x0, zero, t, anchor))
    one = torch.ones(1, 3, dtype=F64)
    moved = process.renoise(process.add_noise(x0, one, s, anchor), zero, s, t, anchor)
    kept = moved - process.add_noise(x0, zero, t, anchor)
    fresh = process.renoise(clean_s, one, s, t, anchor) - process.add_noise(x0, zero, t, anchor)
    sigma = process.coefficients(t).sigma
    assert_close((kept**2 + fresh**2).mean(1), sigma**2, rtol=1e-9, atol=1e-12)


def test_renoising_rectified_flow_is_not_the_difference_of_sigmas():
    zero, one = torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64)
    assert_close(PROCESSES["flow"].renoise(zero, one, at(0.5), at(0.75)), one * 0.5**0.5)


@pytest.mark.parametrize("name", PROCESSES)
def test_no_way_is_no_noise_and_offset_undoes_the_anchor(name):
    process = PROCESSES[name]
    x, eps, t = randoms(4, 2), randoms(4, 2, seed=1), inner_times(process, 4)
    anchor = anchored(process, 4, 2).get("anchor")
    x_t = process.add_noise(x, eps, t, anchor)
    assert_close(process.renoise(x_t, 7 * eps, t, t, anchor), x_t, rtol=0, atol=1e-7)
    c = process.coefficients(t)
    assert_close(process.offset(x_t, t, anchor), c.alpha[:, None] * x + c.sigma[:, None] * eps)


def test_noise_stays_in_the_sample_s_precision_class():
    process, t = VP.scaled_linear(), torch.tensor([10.0, 900.0])
    for taken, made in ((torch.float32, torch.float32), (F64, F64), (torch.bfloat16, torch.float32)):
        x = randoms(2, 3).to(taken)
        assert process.add_noise(x, x, t).dtype == made


def test_an_anchor_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"cond\['anchor'\]"):
        PROCESSES["residual"].add_noise(randoms(1, 2), randoms(1, 2), at(3))


def test_bad_tables_are_refused():
    with pytest.raises(UserError, match=r"\[0, 1\)"):
        VP(torch.tensor([1.0, 0.5]))
    with pytest.raises(UserError, match="must grow in noise"):
        VP(torch.tensor([0.5, 0.7]))
    with pytest.raises(UserError, match="at least two"):
        VP(torch.tensor([0.5]))
    with pytest.raises(UserError, match="sigma_min < sigma_max"):
        EDM(sigma_min=3.0, sigma_max=2.0)
    with pytest.raises(UserError, match="num_steps >= 2"):
        ResidualShift(num_steps=1)


# ---------------------------------------------------------------- diffusers

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
SDXL = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
SD21 = diffusers.DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False, steps_offset=1)
KARRAS = diffusers.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True, algorithm_type="sde-dpmsolver++")


def saved(scheduler):
    """The config as a model repository has it, which a scheduler made in memory lacks the class of."""
    return {"_class_name": type(scheduler).__name__, **scheduler.config}


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [
        (SD15, "eps"),
        (SDXL, "eps"),
        (SD21, "v"),
        (KARRAS, "eps"),
        (diffusers.LCMScheduler(**BETAS), "eps"),
        (diffusers.TCDScheduler(**BETAS), "eps"),
        (diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"), "x0"),
        (diffusers.DDPMScheduler(num_train_timesteps=100, beta_end=0.1), "eps"),
    ],
)
def test_table_schedulers_are_read(scheduler, kind):
    process, found = process_from_scheduler(scheduler.config)
    assert found == kind
    assert isinstance(process, VP)
    abar = scheduler.alphas_cumprod.double()
    t = torch.arange(len(abar), dtype=F64)
    assert_close(process.coefficients(t).alpha ** 2, abar, rtol=2e-6, atol=1e-9)
    assert process.t_max == len(abar) - 1


def test_zero_terminal_snr_is_finite_everywhere():
    config = diffusers.DDIMScheduler(**BETAS, rescale_betas_zero_snr=True, prediction_type="v_prediction").config
    process, kind = process_from_scheduler(config)
    assert kind == "v"
    t = torch.tensor([0.0, 500.0, 998.5, 999.0], dtype=F64)
    c = process.coefficients(t)
    assert c.alpha[-1].item() == pytest.approx(0, abs=1e-6)
    assert c.alpha[-2].item() > 1e-4
    assert all(bool(part.isfinite().all()) for part in (*c, *process.rates(t)))
    assert process.time_from_tau(process.tau(t)).tolist() == pytest.approx(t.tolist(), abs=1e-3)
    x = randoms(4, 2)
    assert bool(process.add_noise(x, x, t).isfinite().all())


def test_flow_schedulers_are_read():
    sd3 = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    process, kind = process_from_scheduler(saved(sd3))
    assert (process, kind) == (RectifiedFlow(shift=3.0), "flow")
    # the scheduler's training levels are the natural clock's
    u = torch.linspace(1, 1000, 1000).flip(0) / 1000
    assert_close(process.unit_to_time(u), sd3.sigmas[:1000].double(), rtol=0, atol=2e-6)
    assert_close(process.time_input(process.unit_to_time(u)), sd3.timesteps.double(), rtol=0, atol=2e-3)
    flux = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    assert process_from_scheduler(saved(flux))[0] == RectifiedFlow()
    sana = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    assert process_from_scheduler(sana.config) == (RectifiedFlow(shift=3.0), "flow")


def test_edm_and_trigflow_schedulers_are_read():
    edm = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, sigma_data=0.7, rho=5.0)
    assert process_from_scheduler(saved(edm)) == (EDM(0.01, 50.0, 0.7, 5.0), "x0")
    edm.set_timesteps(9)
    ramp = process_from_scheduler(saved(edm))[0].unit_to_time(torch.linspace(1, 0, 9))
    assert_close(ramp, edm.sigmas[:9].double(), rtol=1e-5, atol=1e-6)
    assert process_from_scheduler(saved(diffusers.SCMScheduler(sigma_data=0.5))) == (TrigFlow(0.5), "velocity")


def test_schedulers_that_say_something_else_are_refused():
    with pytest.raises(UserError, match="prediction_type 'noise' is unknown"):
        process_from_scheduler({"_class_name": "DDPMScheduler", "prediction_type": "noise"})
    with pytest.raises(UserError, match="scheduler config"):
        process_from_scheduler({"_class_name": "DDPMScheduler", "beta_schedule": "mystery"})
    with pytest.raises(UserError, match="cannot read a CMStochasticIterativeScheduler"):
        process_from_scheduler(saved(diffusers.CMStochasticIterativeScheduler()))
    with pytest.raises(UserError, match="no '_class_name' and no betas"):
        process_from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config)
