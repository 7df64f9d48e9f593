"""InstaRevive: why the noise range matters, its controllers, its place between regression and DMD."""

from __future__ import annotations

import pytest
import torch
from core.recipe_bed import QuickRng, Watched, at_level
from core.score_bed import F64
from torch import nn
from torch.testing import assert_close

from fewstep.core.analytic import GaussianTeacher, MixtureTeacher
from fewstep.core.check import format_results, run
from fewstep.core.denoiser import Backbone, Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import VP, ResidualShift
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.dmd2 import DMD2, DMD2Config
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.core.times import TimeConfig
from fewstep.restoration.recipes.instarevive import InstaRevive, InstaReviveConfig
from fewstep.restoration.recipes.scope import (
    ConstantScope,
    Discrepancy,
    DiscrepancyScope,
    LinearScope,
    ScopeConfig,
)

LINEAR = VP.linear()
CONSTANT = ScopeConfig(mode="constant")
MATCHING = {"regression_weight": 0.0, "scope": CONSTANT}


def quick(n: int, seed: int = 0) -> QuickRng:
    return QuickRng(seed, 0, tuple(range(n)))


# ---------------------------------------------------------------- the direction, and why the range matters

REAL = MixtureTeacher(LINEAR, [0.5, 0.5], [[1.0], [-1.0]], [0.1, 0.1])
MADE = GaussianTeacher(LINEAR, torch.tensor([0.8], dtype=F64), 0.1)
MANY = 400_000


def direction(config: InstaReviveConfig, teacher=REAL, fake=MADE, mean=0.8, n=MANY, target=None, ready=None):
    """The gradient of each sample of N(mean, 0.1^2) times the number of its elements: what descent goes against."""
    x0 = (mean + 0.1 * quick(n).normal("z", (1,), F64)).requires_grad_()
    roles = {"teacher": teacher, "fake_score": fake}
    recipe = InstaRevive(config, Actors(roles, LINEAR, (1,), generate=lambda batch, rng: (x0, {}), dtype=F64))
    if ready is not None:
        ready(recipe)
    data = None if target is None else torch.full((n, 1), target, dtype=F64)
    value = recipe.loss("student", Batch(n, {}, data), quick(n), 0).total()
    return torch.autograd.grad(value.sum(), x0)[0][:, 0]


@pytest.mark.parametrize(
    ("t", "mean", "wrong"),
    [
        (20, -0.0773, None),
        (50, -0.1511, None),
        (100, -0.1541, 0.03),
        (200, 0.155, 0.39),
        (300, 0.456, None),
        (400, 0.640, 0.97),
        (600, 0.779, None),
        (980, 0.800, None),
    ],
)
def test_much_noise_pulls_what_is_nearly_right_to_the_middle_of_the_data(t, mean, wrong):
    found = direction(InstaReviveConfig(time=at_level(LINEAR, t), normalise=False, **MATCHING))
    assert found.mean().item() == pytest.approx(mean, abs=5e-3)
    if wrong is not None:
        assert (found > 0).double().mean().item() == pytest.approx(wrong, abs=0.01)


def test_a_narrow_range_goes_to_the_mode_and_a_wide_one_away_from_it():
    def far(recipe):  # samples once were ten times as far from their targets
        recipe.discrepancy.value = torch.tensor([2.0, 1.0], dtype=F64)

    plain, n = {"normalise": False, "regression_weight": 0.0}, 40_000
    narrow = direction(InstaReviveConfig(time=TimeConfig(low=0.02, high=0.1), scope=CONSTANT, **plain), n=n)
    wide = direction(InstaReviveConfig(scope=CONSTANT, **plain), n=n)
    near = direction(InstaReviveConfig(**plain), n=n, target=1.0, ready=far)
    first = direction(InstaReviveConfig(**plain), n=n, target=1.0)
    assert narrow.mean() < -0.1
    assert wide.mean() > 0.4
    assert near.mean() < 0
    assert_close(first, wide)  # before anything is known, the range is the whole


@pytest.mark.parametrize("t", [20, 300, 980])
def test_the_direction_between_gaussians(t):
    m, mu, s = 0.5, 0.8, 0.3
    laws = [GaussianTeacher(LINEAR, torch.tensor([v], dtype=F64), s) for v in (m, mu)]
    config = InstaReviveConfig(time=at_level(LINEAR, t), normalise=False, **MATCHING)
    c = LINEAR.coefficients(torch.tensor(float(t)))
    want = (mu - m) * c.sigma**2 / (c.alpha**2 * s**2 + c.sigma**2)
    assert_close(direction(config, *laws, n=50), want.expand(50), rtol=1e-9, atol=1e-9)
    assert direction(config, laws[0], laws[0], n=50).abs().max() < 1e-9


class Mover(nn.Module, Denoiser):
    """Adds a number to the anchor, whatever else it is given."""

    def __init__(self, process, shift: float = 0.0) -> None:
        super().__init__()
        self.process, self.shift = process, nn.Parameter(torch.tensor(shift, dtype=F64))

    def predict(self, x_t, t, cond):
        return Prediction(cond["anchor"] + self.shift, Kind.X0)


class Follower(Denoiser):
    """The exact fake score of a :class:`Mover` on N(0.8, 0.1^2)."""

    def __init__(self, student: Mover) -> None:
        self.student, self.process = student, student.process

    def predict(self, x_t, t, cond):
        mean = (0.8 + self.student.shift.detach()).reshape(1)
        return GaussianTeacher(self.process, mean, 0.1).predict(x_t, t, cond)


@pytest.mark.parametrize(("high", "end"), [(0.1, 1.0), (0.98, 0.0)])
def test_training_ends_where_the_range_leads(high, end):
    """With normalised steps, of a size that does not depend on the noise: at the mode, or between the two."""
    student = Mover(LINEAR)
    roles = {"student": student, "teacher": REAL, "fake_score": Follower(student)}
    config = InstaReviveConfig(time=TimeConfig(low=0.02, high=high), **MATCHING)
    recipe = InstaRevive(config, Actors(roles, LINEAR, (1,), dtype=F64))
    optimizer = torch.optim.SGD(student.parameters(), 0.05)
    for step in range(120):
        rng = QuickRng(0, step, tuple(range(128)))
        batch = Batch(128, {"anchor": 0.8 + 0.1 * rng.normal("anchor", (1,), F64)})
        optimizer.zero_grad()
        recipe.loss("student", batch, rng, step).total().mean().backward()
        optimizer.step()
    assert 0.8 + student.shift.item() == pytest.approx(end, abs=0.1)


# ---------------------------------------------------------------- the student's input


class Says(Denoiser):
    """Predicts ``factor x_t`` as noise; keeps what it was asked."""

    def __init__(self, factor: float) -> None:
        self.process, self.factor, self.asked = LINEAR, factor, []

    def predict(self, x_t, t, cond):
        self.asked.append((x_t, t, cond))
        return Prediction(self.factor * x_t, Kind.EPS)


def test_the_degraded_sample_is_declared_to_be_the_state():
    c = LINEAR.coefficients(torch.tensor(400.0))
    assert (c.alpha.item(), c.sigma.item()) == pytest.approx((0.439968, 0.898013), abs=1e-6)
    factor = ((1 - c.alpha) / c.sigma).item()
    assert factor == pytest.approx(0.623634, abs=1e-6)
    student, anchor = Says(factor), quick(4).normal("anchor", (3,), F64)
    recipe = InstaRevive(InstaReviveConfig(), Actors(dict.fromkeys(ROLES, student), LINEAR, (3,), dtype=F64))
    sample = recipe.sample(Batch(4, {"anchor": anchor}), quick(4), grad=False)
    x_t, t, _ = student.asked[0]
    assert torch.equal(x_t, anchor)
    assert t.tolist() == [400.0] * 4
    assert_close(sample.x0, anchor, rtol=1e-12, atol=1e-12)
    plan = InstaRevive.plan(InstaReviveConfig(), LINEAR, 1)
    drawn = [run_plan(student, plan, quick(4, s).normal("noise", (3,), F64), sample.cond, quick(4)) for s in (0, 1)]
    assert torch.equal(drawn[0], sample.x0)  # what is trained is what is sampled
    assert torch.equal(drawn[0], drawn[1])
    with pytest.raises(UserError, match="made for 1 step"):
        InstaRevive.plan(InstaReviveConfig(), LINEAR, 2)
    with pytest.raises(UserError, match=r"recipe 'instarevive' needs cond\['anchor'\]"):
        recipe.sample(Batch(4), quick(4), grad=False)


ROLES = ("student", "teacher", "fake_score")


class Net(Backbone):
    """A small layer on the state, with the anchor joined if told to, and a prompt added if there is one."""

    def __init__(self, seed: int, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        with Rng(seed, 0, ()).network_noise("net"):
            self.layer = nn.Linear(6 if reads else 3, 3).double()

    def forward(self, x, time, cond):
        h = torch.cat([x, cond["anchor"]], 1) if self.reads else x
        return self.layer(h) + (cond["prompt"].mean(1, keepdim=True) if "prompt" in cond else 0)

    def null(self, cond):
        return {**cond, "prompt": torch.zeros_like(cond["prompt"])}


def batch(n: int = 6, prompt: bool = False) -> Batch:
    names = ("anchor", "prompt") if prompt else ("anchor",)
    return Batch(n, {name: quick(n).normal(name, (3,), F64) for name in names}, quick(n).normal("x0", (3,), F64))


def networks(reads: bool = True, process=LINEAR, cls=InstaRevive, generate=None, kind=Kind.EPS, **settings):
    made = {name: NetworkDenoiser(Net(i, reads), process, Plain(kind)) for i, name in enumerate(ROLES)}
    return cls(cls.config_type(**settings), Actors(made, process, (3,), generate, dtype=F64))


def gradients(recipe, value, role="student") -> list[torch.Tensor | None]:
    return list(torch.autograd.grad(value, recipe.actors.module(role).parameters(), allow_unused=True))


@pytest.mark.parametrize("process", [LINEAR, ResidualShift()], ids=["vp", "residual"])
@pytest.mark.parametrize("reads", [False, True], ids=["prior", "restorer"])
def test_priors_and_restoring_networks_judge_alike(reads, process):
    """A prior gives the same whatever the anchor under VP, where it is in no state either."""
    kind = Kind.EPS if process is LINEAR else Kind.X0
    recipe = networks(reads, process, kind=kind)
    values = {}
    for phase in ("fake_score", "student"):
        values[phase] = recipe.loss(phase, batch(), quick(6), 0).total()
        assert values[phase].isfinite().all()
    assert any(g.abs().sum() > 0 for g in gradients(recipe, values["student"].mean()))
    other = Batch(6, {"anchor": batch().cond["anchor"].flip(0)}, batch().x0)
    x_t, t = batch().x0, torch.full((6,), 5.0, dtype=F64)
    teacher = recipe.actors.denoiser("teacher")
    same = torch.equal(teacher.x0(x_t, t, other.cond), teacher.x0(x_t, t, batch().cond))
    assert same is not reads


def test_the_fake_score_is_told_what_the_real_one_is():
    recipe = networks(reads=False, guidance_scale=3.0)
    asked: dict[str, list] = {name: [] for name in ROLES}

    class Noted(Watched):
        def predict(self, x_t, t, cond):
            asked[self.name].append((len(x_t), dict(cond)))
            return self.inner.predict(x_t, t, cond)

    for name in ROLES:
        recipe.actors.roles[name] = Noted(recipe.actors.roles[name])
        recipe.actors.roles[name].name = name
    given = batch(prompt=True)
    for phase in ("fake_score", "student"):
        recipe.loss(phase, given, quick(6), 0)
    (rows, guided), *_ = asked["teacher"]
    assert rows == 12  # with and without the prompt
    assert torch.equal(guided["prompt"][:6], given.cond["prompt"])
    assert not guided["prompt"][6:].any()
    assert [rows for rows, _ in asked["fake_score"]] == [6, 6]  # never guided
    assert all(torch.equal(cond["prompt"], given.cond["prompt"]) for _, cond in asked["fake_score"])


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize(("phase", "own"), [("student", "student"), ("fake_score", "fake_score")])
def test_a_phase_gives_its_own_role_a_gradient_and_no_other(phase, own):
    recipe = networks()
    recipe.loss(phase, batch(), quick(6), 0).total().mean().backward()
    for name in ROLES:
        given = [p.grad is not None for p in recipe.actors.module(name).parameters()]
        assert given == [name == own] * 2


@pytest.mark.parametrize("normalise", [False, True])
def test_the_gradient_is_the_direction_over_the_number_of_elements(normalise):
    made = batch().x0.clone().requires_grad_()
    recipe = networks(generate=lambda given, rng: (made, given.cond), normalise=normalise, **MATCHING)
    value = recipe.loss("student", batch(), quick(6), 0).total()
    (found,) = torch.autograd.grad(value.sum(), made)
    sample = recipe.sample(batch(), quick(6), grad=False)
    at = recipe.noised(sample, recipe.config.time, quick(6), 0)
    real, fake = (recipe.actors.denoiser(n).x0(at.x_t, at.t, batch().cond) for n in ("teacher", "fake_score"))
    size = (made - real).abs().mean(1, keepdim=True) if normalise else 1.0
    assert_close(found, ((fake - real) / size / 3).detach(), rtol=1e-9, atol=1e-12)


def test_a_sample_where_the_teacher_puts_it_has_a_finite_gradient():
    class There(Denoiser):
        process = LINEAR

        def predict(self, x_t, t, cond):
            return Prediction(made.detach(), Kind.X0)

    made = torch.zeros(6, 3, dtype=F64, requires_grad=True)
    recipe = networks(generate=lambda given, rng: (made, given.cond), **MATCHING)
    recipe.actors.roles["teacher"] = There()
    value = recipe.loss("student", batch(), quick(6), 0).total().sum()
    assert torch.autograd.grad(value, made)[0].isfinite().all()


def test_constant_range_without_regression_is_dmd_bit_for_bit():
    def generate(given, rng):
        return networks().sample(given, rng, grad=True)

    law = TimeConfig(low=0.02, high=0.98)
    fake = FakeScoreConfig(time=TimeConfig(low=0.0, high=1.0), weighting="native")
    ours = networks(time=law, fake=fake, **MATCHING)

    def sampled(given, rng):
        return ours.sample(given, rng, grad=torch.is_grad_enabled())

    theirs = networks(cls=DMD2, generate=sampled, time=law, fake=fake)
    for step in (0, 7):
        rng = Rng.for_batch(0, step, 6)
        for phase in ("fake_score", "student"):
            mine, plain = (r.loss(phase, batch(), rng, step).total() for r in (ours, theirs))
            assert torch.equal(mine, plain)
        roles = [gradients(ours, r.loss("student", batch(), rng, step).total().mean()) for r in (ours, theirs)]
        assert all(torch.equal(a, b) for a, b in zip(*roles, strict=True))
    assert type(theirs.config) is DMD2Config


def test_a_scope_that_always_says_the_same_is_the_constant_one_bit_for_bit():
    ours = networks(**MATCHING)
    plain = ours.loss("student", batch(), quick(6), 0).total()
    ours.scope = LinearScope(0.98, 0.98, 5)
    assert torch.equal(ours.loss("student", batch(), quick(6), 0).total(), plain)
    ours.scope = LinearScope(0.1, 0.1, 5)
    assert not torch.equal(ours.loss("student", batch(), quick(6), 0).total(), plain)


def test_without_matching_there_is_regression_only():
    recipe = networks(matching_weight=0.0, loss_control=False)
    terms = recipe.loss("student", batch(), quick(6), 0)
    assert set(terms.terms) == {"regression"}
    sample = recipe.sample(batch(), quick(6), grad=False)
    assert_close(terms.total(), 0.25 * (sample.x0 - batch().x0).square().mean(1), rtol=1e-12, atol=0)
    config = recipe.config
    assert [spec.name for spec in InstaRevive.role_specs(config)] == ["student", "teacher"]
    assert [phase.name for phase in InstaRevive.phases(config)] == ["student"]
    both = InstaReviveConfig()
    assert [spec.name for spec in InstaRevive.role_specs(both)] == list(ROLES)
    assert [phase.name for phase in InstaRevive.phases(both)] == ["fake_score", "student"]
    assert set(networks().loss("student", batch(), quick(6), 0).terms) == {"matching", "regression"}


# ---------------------------------------------------------------- controllers


def ready(unit: float, steps: int = 5) -> Discrepancy:
    found = Discrepancy(steps)
    found.value = torch.tensor([unit * steps, float(steps)], dtype=F64)
    return found


def test_the_range_grows_with_the_distance_between_its_ends_and_per_sample():
    target = torch.ones(5, 3, dtype=F64)
    z = target * (1 + torch.tensor([0.0, 0.1, 0.2, 0.4, 4.0], dtype=F64)[:, None]).requires_grad_()
    found = DiscrepancyScope(0.1, 0.98, ready(0.4))(z, target, 3)
    assert_close(found, 0.1 + 0.88 * torch.tensor([0.0, 0.25, 0.5, 1.0, 1.0], dtype=F64), rtol=1e-9, atol=1e-9)
    assert not found.requires_grad
    alone = DiscrepancyScope(0.1, 0.98, ready(0.4))(z[2:3], target[2:3], 3)
    assert torch.equal(alone, found[2:3])
    assert ConstantScope(0.3)(z, None, 9).tolist() == [0.3] * 5
    falling = LinearScope(0.1, 0.9, 10)
    assert [falling(z[:1], None, step).item() for step in (0, 5, 10, 99)] == pytest.approx([0.9, 0.5, 0.1, 0.1])
    with pytest.raises(UserError, match="there is none"):
        DiscrepancyScope(0.1, 0.98, ready(0.4))(z, None, 0)


def test_noise_levels_stay_within_each_samples_range():
    n = 4000
    recipe = networks(generate=lambda given, rng: (given.x0 * FACTOR[:n, None], given.cond), regression_weight=0.0)
    recipe.discrepancy.value = torch.tensor([1.0, 1.0], dtype=F64)
    given = batch(n)
    sample = recipe.sample(given, quick(n), grad=False)
    high = recipe.scope(sample.x0, given.x0, 0)
    t = recipe.noised_within(sample, given.x0, quick(n), 0).t
    fraction = LINEAR.time_to_unit(t)
    assert (fraction <= high + 1e-3).all()
    assert (fraction >= 0.02 - 1e-3).all()
    inside = (fraction - 0.02) / (high - 0.02)
    assert inside.mean().item() == pytest.approx(0.5, abs=0.02)  # uniform up to there
    assert high.min() < 0.15
    assert high.max() == 0.98


FACTOR = 1 + torch.linspace(0, 1.2, 4000, dtype=F64)


def test_the_unit_is_the_mean_of_the_first_steps_however_the_batch_is_cut():
    target = torch.ones(12, 3, dtype=F64)

    def samples(step: int) -> torch.Tensor:
        return target + (1 + step) * torch.linspace(0, 1, 12, dtype=F64)[:, None]

    def after(cuts: list[list[tuple[int, int]]], steps: int) -> torch.Tensor:
        """One process per list of micro-batches."""
        processes = [Discrepancy(2) for _ in cuts]
        for step in range(steps):
            for each, mine in zip(processes, cuts, strict=True):
                for start, stop in mine:
                    each.add(samples(step)[start:stop], target[start:stop])
            together = torch.stack([each._sums for each in processes]).sum(0)
            for each in processes:
                each.finish(lambda sums, total=together: total)
        return processes[-1].state()

    whole = after([[(0, 12)]], 5)
    assert_close(whole[0] / whole[1], torch.tensor((0.5 + 1.0) / 2, dtype=F64))  # steps 0 and 1 of five
    for cuts in ([[(0, 1), (1, 12)]], [[(0, 4), (4, 6)], [(6, 12)]]):
        assert_close(after(cuts, 5), whole, rtol=1e-12, atol=0)


def test_the_loss_is_the_same_in_pieces_and_after_a_restart():
    def losses(cuts, recipe=None, steps=range(4)) -> tuple[list[torch.Tensor], InstaRevive]:
        recipe, found = recipe or networks(scope=ScopeConfig(first_steps=3)), []
        for step in steps:
            rng = Rng.for_batch(0, step, 6)
            parts = [recipe.loss("student", batch().select(*c), rng.select(*c), step).total() for c in cuts]
            found.append(torch.cat(parts).detach())
            recipe.after_step(step)
        return found, recipe

    whole, recipe = losses([(0, 6)])
    for cuts in ([(0, 3), (3, 6)], [(0, 1), (1, 2), (2, 6)]):
        for one, other in zip(losses(cuts)[0], whole, strict=True):
            assert_close(one, other, rtol=1e-9, atol=1e-12)
    _, half = losses([(0, 6)], steps=range(2))
    again = networks(scope=ScopeConfig(first_steps=3))
    again.load_state(half.state())
    rest, _ = losses([(0, 6)], again, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[2:], strict=True))
    with pytest.raises(UserError, match="no 'discrepancy'"):
        again.load_state({})
    assert recipe.state()["discrepancy"][1] == 3


def test_a_step_that_is_not_finite_is_not_remembered():
    found = Discrepancy(5)
    for z in (2.0, float("nan"), 4.0):
        found.add(torch.full((2, 3), z), torch.ones(2, 3))
        found.finish(None)
    assert found.state().tolist() == [1.0 + 3.0, 2.0]
    found.finish(None)  # a step of another phase alone
    assert found.state()[1] == 2


def test_each_control_has_its_own_switch():
    def terms(**settings):
        recipe = networks(**settings)
        recipe.discrepancy.value = torch.tensor([1e3, 1.0], dtype=F64)  # all samples are close by now
        return recipe.loss("student", batch(), quick(6), 0).terms

    neither = terms(scope=CONSTANT, loss_control=False)
    ranged, weighed, both = terms(loss_control=False), terms(scope=CONSTANT), terms()
    assert_close(weighed["regression"], 0.2 * neither["regression"])
    assert torch.equal(ranged["regression"], neither["regression"])
    assert torch.equal(weighed["matching"], neither["matching"])
    assert not torch.equal(ranged["matching"], neither["matching"])
    assert torch.equal(both["matching"], ranged["matching"])
    assert torch.equal(both["regression"], weighed["regression"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"student_steps": 2}, "makes one evaluation"),
        ({"student_times": (0.6, 0.4)}, "makes one evaluation"),
        ({"matching_weight": -1.0}, "matching_weight must not be negative"),
        ({"matching_weight": 0.0, "regression_weight": 0.0}, "one must be positive"),
        ({"loss_floor": 2.0}, "loss_floor"),
        ({"fake_guidance_scale": 2.0}, "never guided"),
        ({"fake": FakeScoreConfig(guidance_scale=2.0)}, "never guided"),
        ({"fake": FakeScoreConfig(time=TimeConfig(low=0.02, high=0.5))}, "fake.time must cover time"),
        ({"time": TimeConfig(low=0.2)}, "scope.low must lie above time.low=0.2"),
        ({"time": TimeConfig(high=0.05)}, "scope.low must lie above"),
        ({"time": TimeConfig(law="lognormal")}, "plain uniform law"),
        ({"time": TimeConfig(shared=True)}, "plain uniform law"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        InstaReviveConfig(**given)


def test_bad_scopes_are_refused():
    for given in ({"low": 0.0}, {"first_steps": 0}, {"decay_steps": 0}):
        with pytest.raises(UserError, match=f"scope.{next(iter(given))}"):
            ScopeConfig(**given)
    with pytest.raises(UserError, match="'instarevive' needs clean samples"):
        networks().loss("student", Batch(6, batch().cond), quick(6), 0)
    assert networks(**MATCHING).loss("student", Batch(6, batch().cond), quick(6), 0).total().isfinite().all()


@pytest.mark.parametrize("settings", [{}, MATCHING, {"matching_weight": 0.0}])
def test_it_passes_the_laws_of_any_recipe(settings):
    results = run(InstaRevive, InstaReviveConfig(**settings), ResidualShift())
    assert all(result.passed for result in results), format_results(results)
