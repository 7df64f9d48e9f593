"""AccVideo: segments of trajectories in closed form, heads that stay apart, a chain of the student's own states."""

from __future__ import annotations

import itertools

import pytest
import torch
from core.score_bed import F64, gaussian
from torch import nn
from torch.testing import assert_close

from fewstep.core.denoiser import Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.grids import time_grid
from fewstep.core.networks.discriminator import Discriminator, DiscriminatorConfig, FeatureDiscriminator
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import EDM, VP, CosineVP, RectifiedFlow, times
from fewstep.core.recipe import STATES, TIMES, Actors, Batch
from fewstep.core.recipes import find_recipe
from fewstep.core.recipes.accvideo import AccVideo, AccVideoConfig, head
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan, teacher_sample, teacher_trajectory
from fewstep.core.solvers import SOLVERS
from fewstep.core.steps import back_out, level
from fewstep.core.training.settings import OptimConfig, PhaseOptimConfig

FLOW = RectifiedFlow(shift=7.0)
PAPER = [1.0, 28 / 29, 21 / 23, 14 / 17, 7 / 11]
B, DIM = 6, 3


class Critic(Discriminator):
    """A linear discriminator that remembers what it was shown."""

    def __init__(self, seed=0):
        super().__init__()
        self.a = nn.Parameter(torch.randn(DIM, generator=torch.Generator().manual_seed(seed), dtype=F64))
        self.seen = []

    def patch_logits(self, x_t, t, cond):
        self.seen.append((x_t, t, cond))
        return (x_t @ self.a)[:, None]


class Moving(Denoiser):
    """A student whose one number stands for its weights: x0 = x cos(b) + b."""

    def __init__(self, process):
        self.process = process
        self.b = torch.tensor(0.3, dtype=F64, requires_grad=True)

    def predict(self, x_t, t, cond):
        return Prediction(x_t * self.b.cos() + self.b, Kind.X0)


class Lands(Denoiser):
    """A student whose steps land on given states, wherever it is asked."""

    def __init__(self, process, grid, states):
        self.process, self.grid, self.states = process, torch.tensor(grid, dtype=F64), states

    def predict(self, x_t, t, cond):
        i = int((self.grid - t[0]).abs().argmin())
        end = None if i + 1 == len(self.grid) else times(float(self.grid[i + 1]), len(x_t))
        before, after = self.process.coefficients(t), level(self.process, end, x_t)
        return Prediction(back_out(x_t, self.states[:, i + 1], before, after), Kind.X0)


def states_of(m, batch=B, seed=0, dim=DIM):
    """States on no trajectory at all: the laws of landing hold for any."""
    return torch.randn(batch, m + 1, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def recipe_of(config=None, process=FLOW, **roles):
    config = config or AccVideoConfig()
    heads = {head(k): Critic(k) for k in range(config.segments)}
    made = {"student": Moving(process), "teacher": gaussian(process, 0.7, 0.5), **heads}
    return AccVideo(config, Actors(made | roles, process, (DIM,), dtype=F64))


def batch_of(states, **cond):
    return Batch(len(states), {STATES: states, **cond}, states[:, -1])


def rng_of(step, phase="student", batch=B):
    return Rng.for_batch(0, step, batch).fork(phase)


def student_loss(recipe, states, step):
    return recipe.loss("student", batch_of(states), rng_of(step, batch=len(states)), step)


def run_step(recipe, states, step, **cond):
    """One step as the loop makes it: the heads whose turn it is, the student, what comes after."""
    for phase in recipe.phases(recipe.config):
        if phase.due(step):
            recipe.loss(phase.name, batch_of(states, **cond), rng_of(step, phase.name, len(states)), step)
    recipe.after_step(step)


def test_it_is_found_by_name():
    assert find_recipe("accvideo") is AccVideo


# ---------------------------------------------------------------- the grid


def test_key_times_are_the_papers_and_every_tenth_of_fifty():
    config = AccVideoConfig()
    assert_close(config.grid(FLOW), tuple(PAPER), rtol=0, atol=1e-12)
    assert [round(t, 4) for t in config.grid(FLOW)] == [1.0, 0.9655, 0.913, 0.8235, 0.6364]
    assert config.grid(FLOW) == time_grid(FLOW, 50)[::10]


@pytest.mark.parametrize("process", [FLOW, VP.scaled_linear(), CosineVP(), VP.linear(60, 1e-3, 0.2)])
@pytest.mark.parametrize(("m", "n"), [(5, 50), (10, 50), (4, 12), (1, 7)])
def test_trajectories_made_here_and_stored_ones_have_the_same_times(process, m, n):
    config = AccVideoConfig(student_steps=m, segment_steps=n // m)
    assert_close(config.fine_grid(process), time_grid(process, n), rtol=1e-9, atol=1e-9)
    assert_close(config.grid(process), config.fine_grid(process)[:: n // m], rtol=0, atol=0)


def test_the_plan_is_deterministic_steps_on_exactly_the_key_times():
    plan = AccVideo.plan(AccVideoConfig(), FLOW, 5)
    assert (plan.times, plan.mode, plan.end) == (AccVideoConfig().grid(FLOW), "deterministic", "clean")
    for steps in (1, 4, 10):
        with pytest.raises(UserError, match="was made for 5 step"):
            AccVideo.plan(AccVideoConfig(), FLOW, steps)


# ---------------------------------------------------------------- the regression

KEYS = [(1.0,), (1.0, 0.5), (1.0, 0.93, 0.2), (1.0, 0.8, 0.6, 0.4, 0.2), (0.9, 0.89, 0.05)]


@pytest.mark.parametrize("process", [FLOW, VP.scaled_linear(), EDM(), CosineVP()])
@pytest.mark.parametrize("fractions", KEYS)
def test_what_is_taught_telescopes_to_the_stored_sample(process, fractions):
    config = AccVideoConfig(student_steps=len(fractions), student_times=fractions, segment_steps=0)
    states = states_of(config.segments)
    perfect = Lands(process, config.grid(process), states)
    recipe = recipe_of(config, process, student=perfect)
    for step in range(config.segments):
        assert float(student_loss(recipe, states, step).terms["trajectory"].max()) < 1e-18
    plan = AccVideo.plan(config, process, config.segments)
    noise = states[:, 0] / process.initial_scale(torch.tensor(plan.times[0], dtype=F64))
    made = run_plan(perfect, plan, noise, {}, rng_of(0))
    assert_close(made, states[:, -1], rtol=0, atol=1e-10)


def test_with_flow_the_loss_is_the_squared_error_of_the_average_velocity():
    recipe, states, grid = recipe_of(), states_of(5), [*AccVideoConfig().grid(FLOW), 0.0]
    for k in range(5):
        x, t = states[:, k], grid[k]
        velocity = (x - (x * recipe.actors.roles["student"].b.cos() + recipe.actors.roles["student"].b)) / t
        average = (states[:, k + 1] - x) / (grid[k + 1] - t)
        found = student_loss(recipe, states, k).terms["trajectory"]
        assert_close(found, (velocity - average).square().mean(1), rtol=1e-10, atol=0)


class Affine(Denoiser):
    """A flow network with a line per time: v = a_i x + b_i."""

    def __init__(self, process, grid):
        self.process, self.grid = process, torch.tensor(grid, dtype=F64)
        self.line = torch.zeros(len(grid), 2, dtype=F64, requires_grad=True)

    def predict(self, x_t, t, cond):
        a, b = self.line[int((self.grid - t[0]).abs().argmin())]
        return Prediction(a * x_t + b, Kind.FLOW)


def gaussian_states(mu, s, grid, batch=64):
    """Exact states of the flow to N(mu, s^2)."""
    z = torch.randn(batch, DIM, generator=torch.Generator().manual_seed(3), dtype=F64)
    t = torch.tensor([*grid, 0.0], dtype=F64)[:, None, None]
    states = (1 - t) * mu + ((1 - t) ** 2 * s**2 + t**2).sqrt() * z
    return states.transpose(0, 1), z


@pytest.mark.parametrize("m", [1, 2, 5])
def test_the_optimum_for_a_gaussian_is_its_flow_map_and_a_line_reaches_it(m):
    mu, s = 0.7, 0.5
    config = AccVideoConfig(student_steps=m, adversarial_weight=0.0)
    grid = config.grid(FLOW)
    states, z = gaussian_states(mu, s, grid)
    student = Affine(FLOW, grid)
    recipe = recipe_of(config, FLOW, student=student)
    for step in range(m):  # quadratic in the line: one Newton step is the optimum
        loss = student_loss(recipe, states, step).total().mean()
        (slope,) = torch.autograd.grad(loss, student.line, create_graph=True)
        rows = [torch.autograd.grad(slope[step, i], student.line, retain_graph=True)[0][step] for i in range(2)]
        with torch.no_grad():
            student.line[step] -= torch.linalg.solve(torch.stack(rows), slope[step])
        assert float(student_loss(recipe, states, step).total().detach().max()) < 1e-20
        a, b = grid[step], [*grid, 0.0][step + 1]
        std = [((1 - t) ** 2 * s**2 + t**2) ** 0.5 for t in (a, b)]
        gain = (std[1] / std[0] - 1) / (b - a)
        offset = ((1 - b) * mu - std[1] / std[0] * (1 - a) * mu) / (b - a)
        assert_close(student.line[step].detach(), torch.tensor([gain, offset], dtype=F64), rtol=1e-9, atol=1e-9)
    plan = AccVideo.plan(config, FLOW, m)
    with torch.no_grad():
        assert_close(run_plan(student, plan, z, {}, rng_of(0)), mu + s * z, rtol=0, atol=1e-9)


# ---------------------------------------------------------------- trajectories of the teacher


class TwoPoints(Denoiser):
    """The exact flow teacher of -1 and 1, equally likely."""

    process = FLOW

    def predict(self, x_t, t, cond):
        level = t[:, None]
        return Prediction(((1 - level) * x_t / level**2).tanh(), Kind.X0)


def quantiles(n):
    """A unit normal as evenly weighted points, none of them 0."""
    return torch.special.ndtri((torch.arange(n, dtype=F64) + 0.5) / n)


class Quantiles(Rng):
    def normal(self, stream, shape, dtype=F64):
        return quantiles(len(self.ids))[:, None]


@pytest.mark.parametrize(("steps", "mean", "worst"), [(200, 1.0, 1.0), (50, 0.9997, 0.0)])
def test_the_teacher_of_two_points_ends_at_the_sign_of_the_noise(steps, mean, worst):
    rng = Quantiles(0, 0, tuple(range(20_000)))
    states = teacher_trajectory(TwoPoints(), (1,), {}, rng, grid=time_grid(FLOW, steps), keys=5, dtype=F64)
    size = states[:, -1] * states[:, 0].sign()
    assert float(size.mean()) == pytest.approx(mean, abs=5e-5)
    assert float(size.min()) >= worst
    assert bool((states.sign() == states[:, :1].sign()).all()), "no stored state lies on the other point's side"


@pytest.mark.parametrize(("t", "share"), [(0.5, 0.159), (7 / 11, 0.284), (0.8, 0.401), (28 / 29, 0.486)])
def test_noised_data_points_lie_on_the_other_points_side_as_often_as_the_paper_fears(t, share):
    noise = quantiles(200_001)
    data = torch.ones_like(noise)
    x = FLOW.add_noise(data[:, None], noise[:, None], times(t, len(noise)))
    states = teacher_trajectory(
        TwoPoints(), (1,), {}, Quantiles(0, 0, tuple(range(2000))), grid=time_grid(FLOW, 200), keys=5, dtype=F64
    )
    assert float((x < 0).double().mean()) == pytest.approx(share, abs=6e-4)
    assert bool((states[:, -1].round() == states.sign().transpose(0, 1)).all())


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
def test_a_trajectory_ends_where_the_teacher_samples(solver):
    teacher, rng = gaussian(VP.scaled_linear(), 0.7, 0.5), rng_of(0)
    grid = time_grid(teacher.process, 12)
    states = teacher_trajectory(teacher, (1,), {}, rng, grid=grid, keys=4, solver=solver, dtype=F64)
    whole = teacher_sample(teacher, (1,), {}, rng, steps=12, solver=solver, dtype=F64)
    assert states.shape == (B, 5, 1)
    assert torch.equal(states[:, -1], whole)
    assert torch.equal(states[:, 0], rng.normal("noise", (1,), F64))


def test_a_trajectory_with_noise_on_its_way_is_refused():
    teacher, grid = gaussian(FLOW, 0.7, 0.5), time_grid(FLOW, 4)
    for solver in (name for name, each in SOLVERS.items() if each.stochastic):
        with pytest.raises(UserError, match="adds noise on its way"):
            teacher_trajectory(teacher, (1,), {}, rng_of(0), grid=grid, keys=2, solver=solver)
    with pytest.raises(UserError, match="4 steps cannot be cut into 3 equal parts"):
        teacher_trajectory(teacher, (1,), {}, rng_of(0), grid=grid, keys=3)


def test_data_without_trajectories_gets_the_guided_teachers():
    config = AccVideoConfig(student_steps=2, segment_steps=4)
    recipe, rng = recipe_of(config), rng_of(3, "head_1")
    made = recipe.trajectory(Batch(B), rng)
    assert torch.equal(made, recipe.trajectory(Batch(B), rng_of(3, "student"))), "all phases of a step see the same"
    fork = rng.across_phases("trajectory")
    teacher = recipe.actors.roles["teacher"]
    expected = teacher_trajectory(teacher, (DIM,), {}, fork, grid=time_grid(FLOW, 8), keys=2, dtype=F64)
    assert_close(made, expected)
    with pytest.raises(UserError, match="prepare it with --keys 5"):
        recipe_of(AccVideoConfig(segment_steps=0)).trajectory(Batch(B), rng)


# ---------------------------------------------------------------- heads


def phases_at(m, step):
    return [phase.name for phase in AccVideo.phases(AccVideoConfig(student_steps=m)) if phase.due(step)]


def test_heads_take_turns_from_the_noisiest_key_time_to_the_clean_one():
    assert [phases_at(5, step)[0] for step in range(7)] == [head(k) for k in (4, 3, 2, 1, 0, 4, 3)]
    assert all(phases_at(5, step)[1:] == ["student"] for step in range(7))
    assert phases_at(1, 0) == phases_at(1, 1) == ["head_0", "student"]


def test_all_heads_share_settings_of_their_optimizers():
    config = OptimConfig(lr=1e-5, phases={"head": PhaseOptimConfig(lr=1e-3), "head_0": PhaseOptimConfig(lr=1e-2)})
    rates = [config.for_phase(name).lr for name in ("head_0", "head_3", "student", "fake_score")]
    assert rates == [1e-2, 1e-3, 1e-5, 1e-5]


def test_each_key_time_is_judged_by_its_own_heads_at_its_own_time():
    recipe, states = recipe_of(), states_of(5)
    grid = recipe.grid
    for step in range(5):
        run_step(recipe, states, step)
    for k in range(5):
        seen = recipe.actors.roles[head(k)].seen
        time = grid[5 - k] if k else FLOW.t_min
        assert len(seen) == 3, "the real and the student's state for the heads, the student's for the student"
        assert all(float((t - time).abs().max()) == 0 for _, t, _ in seen)
        assert torch.equal(seen[0][0], states[:, 5 - k])
        assert torch.equal(seen[1][0], seen[2][0].detach())
        assert all(STATES not in cond for _, _, cond in seen)


def test_both_adversarial_losses_have_the_papers_weight():
    recipe, states = recipe_of(AccVideoConfig(adversarial_weight=0.1)), states_of(5)
    terms = recipe.loss("head_4", batch_of(states), rng_of(0, "head_4"), 0)
    assert_close(terms.total(), 0.1 * terms.terms["discriminator"])
    terms = student_loss(recipe, states, 0)
    assert_close(terms.total(), terms.terms["trajectory"] + 0.1 * terms.terms["adversarial"])
    alone = recipe_of(AccVideoConfig(adversarial_weight=0.0))
    assert set(student_loss(alone, states, 0).terms) == {"trajectory"}
    assert [spec.name for spec in AccVideo.role_specs(alone.config)] == ["student", "teacher"]


def network_roles(config, **settings):
    """Real networks: a tiny U-Net, its copies, heads on its features."""
    backbone = UNet2DBackbone.make(1, 8, widths=(8, 16), seed=0)
    teacher = NetworkDenoiser(backbone.double(), FLOW, Plain(Kind.FLOW))
    roles = RolesConfig(discriminator=DiscriminatorConfig(width=8, **settings))
    made = build_roles(teacher, AccVideo.role_specs(config), roles, 0, shape=(1, 8, 8))
    for name, role in made.items():
        if name.startswith("head"):
            role.double()
    return AccVideo(config, Actors(made, FLOW, (1, 8, 8), dtype=F64))


def gradients(recipe):
    return {
        name
        for name in recipe.actors.roles
        for p in recipe.actors.module(name).parameters()
        if p.grad is not None and float(p.grad.abs().sum()) > 0
    }


def test_a_step_moves_one_key_times_heads_and_the_student_and_never_the_teacher():
    config = AccVideoConfig(student_steps=3)
    recipe = network_roles(config)
    states = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    for step in range(3):
        k = 2 - step
        recipe.loss(head(k), batch_of(states), rng_of(step, head(k), 2), step).total().sum().backward()
        assert gradients(recipe) == {head(k)}
        for name in recipe.actors.roles:
            recipe.actors.module(name).zero_grad()
        terms = recipe.loss("student", batch_of(states), rng_of(step, "student", 2), step)
        student = list(recipe.actors.module("student").parameters())
        through = torch.autograd.grad(terms.terms["adversarial"].sum(), student, allow_unused=True)
        assert any(g is not None and float(g.abs().sum()) > 0 for g in through), "through the teacher's activations"
        assert gradients(recipe) == set()
        recipe.after_step(step)


def test_clean_samples_may_be_judged_on_other_features():
    config = AccVideoConfig(student_steps=2, clean_taps=("unet.conv_in",))
    recipe = network_roles(config, taps="bottleneck")
    clean, noisy = (recipe.actors.roles[head(k)] for k in (0, 1))
    assert isinstance(clean, FeatureDiscriminator)
    assert clean.taps == ("unet.conv_in",)
    assert noisy.taps != clean.taps


# ---------------------------------------------------------------- the chain of the student's own states


def one_step(value, grid, segment, x):
    """An Euler step of the student with the number ``value``."""
    t, s = [*grid, 0.0][segment : segment + 2]
    x0 = x * torch.cos(torch.tensor(value, dtype=F64)) + value
    return x + (s - t) * (x - x0) / t


def test_an_item_pushed_as_noise_leaves_as_a_sample_of_the_snapshots_it_met():
    recipe, m = recipe_of(), 5
    student, snapshots = recipe.actors.roles["student"], [0.3 + 0.1 * i for i in range(2 * m)]
    expected = torch.empty(0)
    for step, value in enumerate(snapshots):
        student.b.data.fill_(value)
        states = states_of(m, seed=step // m)  # data of the round's first step travel with the noise
        given = states if step % m == 0 else states_of(m, seed=100 + step)
        label = torch.arange(B) + 10 * step
        run_step(recipe, given, step, label=label)
        segment = step % m
        if segment == 0:
            expected = rng_of(step).across_phases("accvideo").normal("noise", (DIM,), F64)
        expected = one_step(value, recipe.grid, segment, expected)
        real, fake, again = recipe.actors.roles[head(m - 1 - segment)].seen[-3:]
        assert_close(fake[0], expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(real[0], states[:, segment + 1]), "the real counterpart is that of the item's own trajectory"
        assert torch.equal(again[2]["label"], torch.arange(B) + 10 * (step - segment)), "and so is its condition"
        held = [(i, entry) for i, queue in enumerate(recipe.queues.queues) for entry in queue]
        assert [i for i, _ in held] == ([segment + 1] if segment + 1 < m else [])
        for _, entry in held:
            assert_close(entry.x, expected, rtol=1e-12, atol=1e-12)
            assert not entry.x.requires_grad


def test_a_longer_queue_is_first_in_first_out_and_never_longer():
    recipe, m, length = recipe_of(AccVideoConfig(student_steps=2, queue_length=3)), 2, 3
    pushed, popped = [], []
    for step in range(6 * m):
        run_step(recipe, states_of(m, seed=step), step)
        assert all(len(queue) <= length for queue in recipe.queues.queues)
        seen = recipe.actors.roles[head(m - 1 - step % m)].seen[-2:]
        if step % m == 0:
            pushed.append(seen[1][0].detach())
        else:
            popped.append(seen[0][0])
    b = float(recipe.actors.roles["student"].b.detach())
    early, late = popped[: length - 1], popped[length - 1 :]
    for i, landed in enumerate(early):  # the queue is not full: the stored state is stepped from
        assert_close(landed, one_step(b, recipe.grid, 1, states_of(m, seed=2 * i + 1)[:, 1]))
    for landed, entry in zip(late, pushed, strict=False):
        assert_close(landed, one_step(b, recipe.grid, 1, entry))


def test_a_state_that_is_not_finite_does_not_live_on():
    recipe, states = recipe_of(), states_of(5)
    states[1, 0] = float("nan")
    student = recipe.actors.roles["student"]
    student.b.data.fill_(float("inf"))
    run_step(recipe, states_of(5), 0)
    (entry,) = recipe.queues.queues[1]
    assert_close(entry.x, states_of(5)[:, 1])


def trained(recipe, steps, *, start=0, cuts=()):
    """Run steps in micro-batches."""
    found = []
    for step in range(start, steps):
        recipe.actors.roles["student"].b.data.fill_(0.3 + 0.05 * step)
        whole = batch_of(states_of(5, seed=step), label=torch.arange(B))
        for phase in (phase for phase in recipe.phases(recipe.config) if phase.due(step)):
            rng = rng_of(step, phase.name)
            for a, b in itertools.pairwise([0, *cuts, B]):
                found.append(recipe.loss(phase.name, whole.select(a, b), rng.select(a, b), step).total().detach())
        recipe.after_step(step)
    return torch.cat(found), recipe.state()


@pytest.mark.parametrize("length", [1, 2])
def test_micro_batches_and_stops_change_nothing(length):
    config = AccVideoConfig(queue_length=length)
    whole, state = trained(recipe_of(config), 13)
    assert state
    pieces, same = trained(recipe_of(config), 13, cuts=(1, 4))
    assert_close(pieces, whole, rtol=0, atol=0)
    assert state.keys() == same.keys()
    assert all(torch.equal(state[name], same[name]) for name in state)
    first = recipe_of(config)
    trained(first, 7)
    again = recipe_of(config)
    again.load_state({name: value.clone() for name, value in first.state().items()})
    rest, end = trained(again, 13, start=7)
    assert_close(rest, whole[-len(rest) :], rtol=0, atol=0)
    assert all(torch.equal(state[name], end[name]) for name in state)


def test_a_retried_step_starts_from_the_state_before():
    """Out of memory half-way through a batch: what came by then is forgotten."""
    recipe, twin = recipe_of(), recipe_of()
    trained(recipe, 2)
    trained(twin, 2)
    before = {name: value.clone() for name, value in recipe.state().items()}
    batch, rng = batch_of(states_of(5, seed=2), label=torch.arange(B)), rng_of(2)
    recipe.loss("student", batch.select(0, 2), rng.select(0, 2), 2)
    recipe.load_state(before)
    states = [trained(each, 3, start=2)[1] for each in (recipe, twin)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_processes_put_the_whole_batch_together():
    def part(first, last, total):
        recipe = recipe_of()
        recipe.actors.total = total
        for step in range(2):
            rng = rng_of(step).select(first, last)
            recipe.loss(
                "student", batch_of(states_of(5, seed=step), label=torch.arange(B)).select(first, last), rng, step
            )
            recipe.after_step(step)
        return recipe

    alone = part(0, B, None).state()
    halves = [part(a, b, lambda x: x).state() for a, b in ((0, 2), (2, B))]  # what each adds to the sum
    names = [name for name in alone if not name.endswith("ids")]
    assert all(torch.equal(halves[0][name] + halves[1][name], alone[name]) for name in names)
    assert all(torch.equal(half["2/0/ids"], torch.arange(B)) for half in halves)
    again = part(0, 2, lambda x: x)
    again.load_state(alone)
    again.actors.total = lambda x: 2 * x  # two processes with the same
    assert all(torch.equal(value, alone[name]) for name, value in again.state().items()), "what is whole is not summed"


def test_a_checkpoint_of_other_queues_is_refused():
    state = trained(recipe_of(), 4)[1]
    with pytest.raises(UserError, match="entry 0 in queue 4, this run 2 queues of 1"):
        recipe_of(AccVideoConfig(student_steps=2)).load_state(state)


# ---------------------------------------------------------------- what users get wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segment_steps": -5}, "segment_steps must not be negative, got -5"),
        ({"adversarial_weight": -0.1}, "must not be negative"),
        ({"queue_length": 0}, "queue_length must be at least 1"),
        ({"adversarial_weight": 0.0, "clean_taps": ("x",)}, "clean_taps belong to heads"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(UserError, match=message):
        AccVideoConfig(**settings)


def test_a_table_too_short_for_the_teachers_steps_is_named():
    recipe = recipe_of(AccVideoConfig(), VP.linear(20, 1e-3, 0.2))
    with pytest.raises(UserError, match="5 times 10 segment_steps on a table of 20 noise levels"):
        recipe.trajectory(Batch(B), rng_of(0))


def test_trajectories_of_another_grid_are_refused():
    recipe = recipe_of()
    with pytest.raises(UserError, match=r"5 student steps need trajectories of 6 states .* got \(5, 3\)"):
        student_loss(recipe, states_of(4), 0)
    other = torch.tensor(AccVideoConfig().grid(RectifiedFlow(shift=3.0)), dtype=F64).expand(B, -1)
    with pytest.raises(UserError, match=r"stored at the times 1, 0.92.* the student steps from 1, 0.9655"):
        recipe.loss("student", batch_of(states_of(5), **{TIMES: other}), rng_of(0), 0)
    own = torch.tensor(recipe.grid, dtype=F64).expand(B, -1)
    recipe.loss("student", batch_of(states_of(5), **{TIMES: own}), rng_of(0), 0)


def test_an_eps_student_says_nothing_from_pure_noise():
    student = NetworkDenoiser(UNet2DBackbone.make(1, 8, widths=(8,)), FLOW, Plain(Kind.EPS))
    with pytest.raises(UserError, match="eps"):
        recipe_of(student=student)


def test_heads_without_parameters_are_refused():
    heads = {head(k): FeatureDiscriminator(gaussian(FLOW, 0.7, 0.5), (), ()) for k in range(5)}
    with pytest.raises(UserError, match="learned heads"):
        recipe_of(**heads)
    with pytest.raises(UserError, match="must be a Discriminator"):
        recipe_of(head_2=nn.Linear(1, 1))
