from __future__ import annotations

import math

import pytest
import torch
from core.gaussian_bed import MEAN, PROCESSES, STD, ExactConsistency, ExactGaussian, ExactJump, col
from torch.testing import assert_close

from fewstep.core.boundary import ConsistencyFunction
from fewstep.core.errors import UserError
from fewstep.core.grids import knot_grid, time_grid
from fewstep.core.losses.trajectory import even_knots
from fewstep.core.models.stock import stock_sampler
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import EDM, VP, CosineVP, RectifiedFlow, ResidualShift, TrigFlow
from fewstep.core.recipe import StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state, jump_end, run_plan, sample_from, teacher_sample
from fewstep.core.solvers import solve

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
VP_SD = VP.from_scheduler(SD)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Wavy(ExactGaussian):
    """A network that is not linear: errors in the step coefficients cannot cancel. Predicts ``kind``."""

    def predict(self, x_t, t, cond):
        prediction = super().predict(x_t, t, cond)
        c = self.process.coefficients(t)
        wave = 0.1 * torch.sin(3 * x_t / torch.hypot(c.alpha, c.sigma).reshape(-1, 1))
        return type(prediction)(prediction.value + wave, prediction.kind)


class Draws:
    """Stands in for the generator so that two samplers see the same noise: ``randn_tensor`` and ``Rng`` alike."""

    def __init__(self, monkeypatch, module, shape, seed=7):
        self.shape, self.seed, self.calls = shape, seed, 0
        monkeypatch.setattr(module, "randn_tensor", self.randn)

    def at(self, i):
        return noise(*self.shape, seed=self.seed + i)

    def randn(self, shape, generator=None, device=None, dtype=None):
        self.calls += 1
        return self.at(self.calls - 1).to(dtype or torch.float64)


class ReplayRng(Rng):
    """An Rng whose i-th step's draw is the i-th of :class:`Draws`."""

    def normal_like(self, stream, x):
        return noise(*x.shape, seed=7 + int(stream.rsplit("/", 1)[1]))


REPLAY = ReplayRng.for_batch(0, 0, 4)


def run_diffusers(scheduler, network, x, process, n, **step_options):
    """A stock sampling loop; the network is asked at the scheduler's own timesteps."""
    scheduler.set_timesteps(n)
    x = x * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        inputs = scheduler.scale_model_input(x, timestep)
        value = network.predict(inputs, timestep.double().expand(len(x)), {}).value
        x = scheduler.step(value, timestep, x, return_dict=False, **step_options)[0]
    return x


# ---------------------------------------------------------------- agreement with diffusers, step by step


@pytest.mark.parametrize("kind", [(Kind.EPS, "epsilon"), (Kind.V, "v_prediction"), (Kind.X0, "sample")])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddim_agrees_with_diffusers(kind, spacing):
    from diffusers import DDIMScheduler

    options = {"prediction_type": kind[1], "timestep_spacing": spacing, "steps_offset": 1, "clip_sample": False}
    network, x = Wavy(VP_SD, kind[0]), noise(4, 3)
    for n in (1, 4, 20):
        ours = solve(network, x, time_grid(VP_SD, n, spacing, offset=1), {}, "ddim").x
        theirs = run_diffusers(DDIMScheduler(**SD, **options, set_alpha_to_one=True), network, x, VP_SD, n)
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_ddim_that_ends_at_the_first_noise_level_agrees_with_diffusers():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SD, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False)
    network, x = Wavy(VP_SD, Kind.EPS), noise(4, 3)
    theirs = run_diffusers(scheduler, network, x, VP_SD, 5)
    assert_close(solve(network, x, [*time_grid(VP_SD, 5), 0.0], {}, to_clean=False).x, theirs, rtol=1e-4, atol=1e-4)


def test_ddim_eta_and_ddpm_agree_with_diffusers(monkeypatch):
    import diffusers.schedulers.scheduling_ddim as ddim
    import diffusers.schedulers.scheduling_ddpm as ddpm

    from fewstep.core.solvers import DDIM

    network, x = Wavy(VP_SD, Kind.EPS), noise(4, 3)
    Draws(monkeypatch, ddim, (4, 3))
    scheduler = ddim.DDIMScheduler(**SD, timestep_spacing="trailing", clip_sample=False)
    theirs = run_diffusers(
        scheduler, network, x, VP_SD, 5, eta=0.6
    )  # a divisor of 1000: their steps do not fit otherwise
    ours = solve(network, x, time_grid(VP_SD, 5), {}, DDIM(eta=0.6), rng=REPLAY).x
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    Draws(monkeypatch, ddpm, (4, 3))
    scheduler = ddpm.DDPMScheduler(**SD, timestep_spacing="trailing", clip_sample=False)
    theirs = run_diffusers(scheduler, network, x, VP_SD, 5)
    ours = solve(network, x, time_grid(VP_SD, 5), {}, "ddpm", rng=REPLAY).x
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_euler_and_heun_agree_with_diffusers(name):
    from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

    cls = {"euler": EulerDiscreteScheduler, "heun": HeunDiscreteScheduler}[name]
    network, x = Wavy(VP_SD, Kind.EPS), noise(4, 3)
    scheduler = cls(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(6)
    # the same state: theirs is x/alpha
    start = x * VP_SD.tau(col(999.0)) / scheduler.init_noise_sigma
    theirs = run_diffusers(scheduler, network, start, VP_SD, 6)
    sigma = VP_SD.coefficients(col(999.0)).sigma
    ours = solve(network, x * sigma, time_grid(VP_SD, 6), {}, name).x
    assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [4, 20])
@pytest.mark.parametrize("kind", [(Kind.EPS, "epsilon"), (Kind.V, "v_prediction")])
def test_dpm_solver_multistep_agrees_with_diffusers(n, kind):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        **SD, prediction_type=kind[1], algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing"
    )
    network, x = Wavy(VP_SD, kind[0]), noise(4, 3)
    theirs = run_diffusers(scheduler, network, x, VP_SD, n)
    assert_close(solve(network, x, time_grid(VP_SD, n), {}, "dpmpp_2m").x, theirs, rtol=1e-3, atol=1e-3)


def test_inversion_step_agrees_with_diffusers():
    from diffusers import DDIMInverseScheduler

    from fewstep.core.prediction import Prediction, decompose
    from fewstep.core.steps import ddim_step

    scheduler = DDIMInverseScheduler(**SD, clip_sample=False)
    scheduler.set_timesteps(10)
    x, eps = noise(4, 3), noise(4, 3, seed=1)
    for upper in scheduler.timesteps[1:]:
        lower = upper - 100
        theirs = scheduler.step(eps, int(upper), x, return_dict=False)[0]
        clean = decompose(Prediction(eps, Kind.EPS), x, col(float(lower), 4), VP_SD)
        assert_close(ddim_step(clean, col(float(upper), 4), VP_SD), theirs, rtol=1e-5, atol=1e-5)


def test_flow_match_euler_agrees_with_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    process = RectifiedFlow(shift=3.0)
    network, x = Wavy(process, Kind.FLOW), noise(4, 3)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])  # shift is applied on top
    theirs = x
    for timestep in scheduler.timesteps:
        value = network.predict(theirs, (timestep.double() / 1000).expand(4), {}).value
        theirs = scheduler.step(value, timestep, theirs, return_dict=False)[0].double()
    assert_close(solve(network, x, time_grid(process, 4), {}).x, theirs, rtol=1e-4, atol=1e-4)


def test_edm_euler_agrees_with_diffusers():
    from diffusers import EDMEulerScheduler

    process = EDM()
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(8)
    network, x = ExactGaussian(process), noise(4, 3)
    theirs = start = x * 80.0
    for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        scheduler.scale_model_input(theirs, timestep)
        s = sigma.double()
        denoised = network.x0(theirs, s.expand(4), {})
        skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt()
        theirs = scheduler.step((denoised - skip * theirs) / out, timestep, theirs, return_dict=False)[0].double()
    assert_close(solve(network, start, time_grid(process, 8), {}).x, theirs, rtol=1e-4, atol=1e-4)


def test_renoise_plan_agrees_with_the_lcm_scheduler(monkeypatch):
    import diffusers.schedulers.scheduling_lcm as lcm

    scheduler = lcm.LCMScheduler(**SD, clip_sample=False)
    Draws(monkeypatch, lcm, (4, 3))
    student, x = Wavy(VP_SD, Kind.EPS), noise(4, 3)
    theirs = run_diffusers(scheduler, student, x, VP_SD, 4)
    times = even_knots(knot_grid(VP_SD, 50), 4)
    assert times == (999.0, 759.0, 499.0, 259.0)
    ours = run_plan(ConsistencyFunction(student, "lcm"), StepPlan(times), x, {}, REPLAY)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_jump_plan_agrees_with_the_tcd_scheduler(monkeypatch, eta):
    import diffusers.schedulers.scheduling_tcd as tcd

    scheduler = tcd.TCDScheduler(**SD, clip_sample=False)
    Draws(monkeypatch, tcd, (4, 3))
    student, x = Wavy(VP_SD, Kind.EPS), noise(4, 3)
    theirs = run_diffusers(scheduler, student, x, VP_SD, 4, eta=eta)
    plan = StepPlan((999.0, 759.0, 499.0, 259.0), mode="jump", gamma=eta, end="t_min")
    assert_close(run_plan(student, plan, x, {}, REPLAY), theirs, rtol=1e-4, atol=1e-4)


def test_renoise_plan_agrees_with_the_scm_scheduler(monkeypatch):
    import diffusers.schedulers.scheduling_scm as scm

    process = TrigFlow()
    scheduler = scm.SCMScheduler(sigma_data=0.5)
    Draws(monkeypatch, scm, (4, 3))
    scheduler.set_timesteps(2, max_timesteps=1.5, intermediate_timesteps=1.1)
    student, x = Wavy(process, Kind.VELOCITY), noise(4, 3)
    # their scheduler works on x / sigma_data throughout ... and draws noise of std sigma_data: undo neither
    theirs = x * 0.5
    for i, timestep in enumerate([1.5, 1.1]):
        value = student.predict(theirs, col(timestep, 4), {}).value
        theirs, denoised = scheduler.step(value, scheduler.timesteps[i], theirs, return_dict=False)
    start = initial_state(process, x, math.pi / 2)
    ours = sample_from(student, StepPlan((1.5, 1.1)), start, {}, REPLAY)
    assert_close(ours, denoised, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- exact students reproduce exact marginals


def moments(x: torch.Tensor) -> tuple[float, float]:
    return x.mean().item(), x.var().item()


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.0])
def test_exact_jumps_reproduce_the_marginal_for_every_gamma(gamma):
    """Mean sqrt(abar_0) m = 0.29987 and variance 0.25064 at index 0 (start: the exact marginal at the last index)."""

    class Student(ExactJump):
        def predict(self, x_t, t, cond):
            return super().predict(x_t, t, {"end": cond["end_time"]})

    process, n = PROCESSES["vp"], 400_000
    t_max = col(process.t_max)
    teacher = ExactGaussian(process)
    start = process.coefficients(t_max).alpha * MEAN + teacher.spread(t_max) * noise(1, n)
    plan = StepPlan((999.0, 759.0, 499.0, 259.0), mode="jump", gamma=gamma, end="t_min", end_time=True)
    mean, var = moments(sample_from(Student(process), plan, start, {}, Rng.for_batch(1, 0, 1)))
    assert mean == pytest.approx(0.29987, abs=3 * 0.5 / n**0.5)
    assert var == pytest.approx(0.25064, abs=3 * 0.25 * (2 / n) ** 0.5)


def test_exact_consistency_function_reproduces_the_marginal_under_renoising():
    process, n = EDM(), 400_000
    teacher = ExactGaussian(process)
    start = MEAN + teacher.spread(col(80.0)) * noise(1, n)
    out = sample_from(ExactConsistency(process), StepPlan((80.0, 5.0, 0.8)), start, {}, Rng.for_batch(1, 0, 1))
    mean, var = moments(out)
    assert mean == pytest.approx(MEAN, abs=3 * 0.5 / n**0.5)
    # each restart adds the noise of a level to a sample that still has that of t_min
    assert var == pytest.approx(STD**2, abs=3 * 0.25 * (2 / n) ** 0.5 + 1e-4)


def test_one_step_from_unit_noise_has_the_published_bias():
    """abar_999 > 0: starting the map to clean from N(0, 1), not the marginal, gives mean 0.28974 and std 0.50088."""
    process = PROCESSES["vp"]

    class ToClean(ExactGaussian):
        def predict(self, x_t, t, cond):
            alpha = process.coefficients(t).alpha[:, None]
            return Prediction(MEAN + STD / self.spread(t)[:, None] * (x_t - alpha * MEAN), Kind.X0)

    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    out = run_plan(ToClean(process), StepPlan((999.0,)), x, {}, Rng.for_batch(0, 0, 2))
    assert out[0].item() == pytest.approx(0.28974, abs=1e-5)
    assert (out[1] - out[0]).item() == pytest.approx(0.50088, abs=1e-5)


def test_teacher_sampling_has_the_moments_of_the_data():
    for process, solver in ((CosineVP(), "heun"), (EDM(), "dpmpp_2m"), (RectifiedFlow(), "ddpm"), (TrigFlow(), "ddim")):
        kind = Kind.X0 if isinstance(process, EDM) else Kind.V
        rng = Rng.for_batch(3, 0, 1)
        x = teacher_sample(
            ExactGaussian(process, kind), (100_000,), {}, rng, steps=100, solver=solver, dtype=torch.float64
        )
        assert x.mean().item() == pytest.approx(MEAN, abs=0.008)
        assert x.std().item() == pytest.approx(STD, abs=0.02)


# ---------------------------------------------------------------- plans


def test_plan_modes_differ_only_in_what_replaces_the_predicted_noise():
    process, rng = CosineVP(), Rng.for_batch(0, 0, 4)
    student, x = Wavy(process, Kind.V), noise(4, 3)
    jump0 = run_plan(student, StepPlan((1.0, 0.5), mode="jump", gamma=0.0), x, {}, rng)
    still = run_plan(student, StepPlan((1.0, 0.5), mode="deterministic"), x, {}, rng)
    assert_close(jump0, still, rtol=0, atol=0)
    # gamma 1 goes through t_min, which is clean here: re-noising
    fresh = run_plan(student, StepPlan((1.0, 0.5), mode="jump", gamma=1.0), x, {}, rng)
    assert_close(fresh, run_plan(student, StepPlan((1.0, 0.5)), x, {}, rng), rtol=1e-12, atol=1e-12)
    x0 = student.x0(x, col(1.0, 4), {})
    again = process.add_noise(x0, rng.normal_like("plan/0", x), col(0.5, 4))
    assert_close(fresh, student.x0(again, col(0.5, 4), {}), rtol=1e-12, atol=1e-12)


def test_student_is_told_where_each_step_ends_and_given_the_constants():
    seen = []

    class Spy(ExactGaussian):
        def predict(self, x_t, t, cond):
            seen.append((t[0].item(), cond["end_time"][0].item(), cond["guidance"][0].item()))
            return super().predict(x_t, t, {})

    plan = StepPlan((999.0, 500.0), mode="jump", gamma=0.3, extras={"guidance": 4.0}, end_time=True)
    run_plan(Spy(PROCESSES["vp"], Kind.V), plan, noise(2, 1).float(), {}, Rng.for_batch(0, 0, 2))
    assert seen == [(999.0, 350.0, 4.0), (500.0, 0.0, 4.0)]


def test_jump_ends_are_whole_indices_of_tables():
    assert jump_end(PROCESSES["vp"], 759.0, 0.3) == math.floor(0.7 * 759)
    assert jump_end(PROCESSES["vp"], 10.0, 1.0) == 0
    assert jump_end(CosineVP(), 0.5, 0.3) == pytest.approx(0.35)
    assert jump_end(CosineVP(), 0.5, 0.0) == 0.5


def test_anchored_students_start_at_the_anchor_and_renoise_around_it():
    process, y = ResidualShift(), noise(4, 2, seed=5)
    x, rng = noise(4, 2), Rng.for_batch(0, 0, 4)
    start = initial_state(process, x, process.t_max, {"anchor": y})
    assert_close(start, y + 2 * 0.99 * x, rtol=1e-12, atol=1e-12)
    with pytest.raises(UserError, match="anchor"):
        initial_state(process, x, process.t_max, {})
    student = ExactGaussian(process)
    out = run_plan(student, StepPlan((14.0, 7.0)), x, {"anchor": y}, rng)
    x0 = student.x0(start, col(14.0, 4), {"anchor": y})
    x7 = process.add_noise(x0, rng.normal_like("plan/0", x), col(7.0, 4), y)
    assert_close(out, student.x0(x7, col(7.0, 4), {"anchor": y}), rtol=1e-12, atol=1e-12)


def test_a_plan_may_start_from_the_anchor_itself():
    """The state at its first time is the anchor, whatever the noise; later steps add theirs as ever."""
    y, rng = noise(4, 2, seed=5), Rng.for_batch(0, 0, 4)
    for process in (VP_SD, ResidualShift()):
        student, t = ExactGaussian(process), process.t_max - 6
        one = [run_plan(student, StepPlan((t,), start="anchor"), x, {"anchor": y}, rng) for x in (y * 0, noise(4, 2))]
        assert_close(one[0], student.x0(y, col(t, 4), {"anchor": y}), rtol=1e-12, atol=1e-12)
        assert torch.equal(one[0], one[1])
        two = run_plan(student, StepPlan((t, 2.0), start="anchor"), y * 0, {"anchor": y}, rng)
        x2 = process.add_noise(one[0], rng.normal_like("plan/0", y), col(2.0, 4), y)
        assert_close(two, student.x0(x2, col(2.0, 4), {"anchor": y}), rtol=1e-12, atol=1e-12)
    with pytest.raises(UserError, match="starts from cond\\['anchor'\\]"):
        run_plan(student, StepPlan((t,), start="anchor"), y, {}, rng)
    with pytest.raises(UserError, match="stock pipelines start from noise"):
        stock_sampler(StepPlan((400.0,), start="anchor"), VP_SD, SD, math.inf)


def test_sampling_is_the_same_in_pieces_and_a_bad_plan_is_refused():
    process, rng = CosineVP(), Rng.for_batch(0, 0, 6)
    student, x, plan = Wavy(process, Kind.V), noise(6, 3), StepPlan((1.0, 0.6, 0.2))
    whole = run_plan(student, plan, x, {}, rng)
    parts = [run_plan(student, plan, x[i : i + 2], {}, rng.select(i, i + 2)) for i in (0, 2, 4)]
    assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    with pytest.raises(UserError, match="fall"):
        run_plan(student, StepPlan((0.2, 0.6)), x, {}, rng)


def test_half_precision_states_come_back_in_their_type():
    out = run_plan(
        ExactGaussian(CosineVP(), Kind.V), StepPlan((1.0, 0.5)), noise(2, 3).bfloat16(), {}, Rng.for_batch(0, 0, 2)
    )
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
