"""Distillation-DPO as a recipe: closed forms with exact fake scores, symmetries, labels, who draws what."""

from __future__ import annotations

import math

import pytest
import torch
from core.recipe_bed import QuickRng, at_level, descend, plane
from core.score_bed import F64, gaussian
from torch.testing import assert_close

from fewstep.core.denoiser import Backbone, Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import TrainingError, UserError
from fewstep.core.losses.points import chamfer_loss
from fewstep.core.losses.preference import choose
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import EDM, VP, LocalOffset
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.distillation_dpo import DistillationDPO, DistillationDPOConfig
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.recipes.pairs import Pair, ranked
from fewstep.core.recipes.rollout import time_of_fraction
from fewstep.core.recipes.vsd import VSD, VSDConfig
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig

THETA, B, A, MU, S = 0.2, 0.5, 0.3, 0.7, 0.76723


# ---------------------------------------------------------------- exact fake scores


class SkewNormal(Denoiser):
    """The exact denoiser of the larger (sign 1) or smaller (-1) of two samples of N(theta, b^2), alpha = 1."""

    def __init__(self, sign: float, theta=THETA) -> None:
        self.process, self.sign, self.theta = EDM(), sign, theta

    def predict(self, x_t, t, cond):
        s = t.reshape(-1, 1)
        omega = (B**2 + s**2).sqrt()
        skew, u = self.sign / (1 + 2 * s**2 / B**2).sqrt(), (x_t - self.theta) / omega
        ratio = (-((skew * u) ** 2) / 2 - torch.special.log_ndtr(skew * u)).exp() / math.sqrt(2 * math.pi)
        return Prediction(-s * (-u / omega + skew / omega * ratio), Kind.EPS)


class Idle(Denoiser):
    """Stands for a student whose samples the test makes itself."""

    process = EDM()

    def predict(self, x_t, t, cond):
        raise AssertionError


def exact(mu: float, theta, **settings):
    config = DistillationDPOConfig(time=at_level(EDM(), S), **settings)
    roles = {"student": Idle(), "teacher": gaussian(EDM(), mu, A)}
    roles |= {"fake_winner": SkewNormal(1.0, theta), "fake_loser": SkewNormal(-1.0, theta)}
    far = {"far right": lambda x, batch: 100 - x[:, 0]}
    return DistillationDPO(config, Actors(roles, EDM(), (1,), dtype=F64, judges=far))


class FixedNoise(Rng):
    """The noise of the student's phase is the quadrature's."""

    def normal_like(self, stream, x):
        assert stream == "noised/eps"
        return NOISE[0]


NOISE: list[torch.Tensor] = []


def expected(mu: float = MU, theta: float = THETA, **settings) -> float:
    """The gradient of the expected loss with respect to a shift of all samples.

    The larger of two unit normals has the density 2 phi Phi, the smaller is its mirror image: one axis for both.
    """
    axis = torch.linspace(-8, 8, 161, dtype=F64)
    z, e = (grid.reshape(-1, 1) for grid in torch.meshgrid(axis, axis, indexing="ij"))
    mass = torch.exp(-(z**2) / 2 - e**2 / 2) * torch.special.ndtr(z)
    mass = (mass / mass.sum())[:, 0]
    shift = torch.tensor(theta, dtype=F64, requires_grad=True)
    pair = Pair(shift + B * z, shift - B * z, torch.ones(len(z), dtype=torch.bool), 2 * B * z[:, 0].detach())
    NOISE[:] = [e]
    recipe = exact(mu, theta, **settings)
    terms = recipe.student_loss(pair, Batch(len(z)), FixedNoise(0, 0, tuple(range(len(z)))), 0)
    return torch.autograd.grad((mass * terms.total()).sum(), shift)[0].item()


@pytest.mark.parametrize("mu", [-1.0, 0.7, 5.0])
def test_a_shift_of_exchangeable_samples_goes_from_winners_to_losers_whatever_the_teacher(mu):
    want = S * 2 * B / math.sqrt(math.pi) / (A**2 + S**2)
    assert want == pytest.approx(0.637837, abs=1e-6)
    assert expected(mu) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("theta", [-0.4, 0.2, 0.9])
def test_winners_alone_are_brought_to_the_teacher(theta):
    winners = theta + B / math.sqrt(math.pi)
    want = S * (winners - MU) / (A**2 + S**2)
    assert expected(theta=theta, loser_weight=0.0) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("loser_weight", [0.0, 0.3, 0.6])
def test_at_rest_a_shift_is_behind_the_teacher_the_more_the_more_losers_count(loser_weight):
    """Where the student ends: ``mu - b/sqrt(pi) (1 + w)/(1 - w)``."""
    rest = MU - B / math.sqrt(math.pi) * (1 + loser_weight) / (1 - loser_weight)
    assert expected(theta=rest, loser_weight=loser_weight) == pytest.approx(0, abs=1e-6)
    assert expected(theta=rest + 0.1, loser_weight=loser_weight) > 1e-3
    assert expected(theta=rest - 0.1, loser_weight=loser_weight) < -1e-3


def test_the_fake_scores_of_this_test_are_exact():
    """Noise predicted at their own noised samples has mean zero, and its error no gradient with respect to a shift."""
    axis = torch.linspace(-8, 8, 321, dtype=F64)
    z, e = (grid.reshape(-1, 1) for grid in torch.meshgrid(axis, axis, indexing="ij"))
    for sign in (1.0, -1.0):
        mass = torch.exp(-(z**2) / 2 - e**2 / 2) * torch.special.ndtr(sign * z)
        mass, t = mass / mass.sum(), torch.full((len(z),), S, dtype=F64)
        fake = SkewNormal(sign)
        eps = fake.eps(THETA + B * z + S * e, t, {})
        assert (mass * eps).sum().item() == pytest.approx(0, abs=1e-9)
        assert (mass * eps * (e - eps)).sum().item() == pytest.approx(0, abs=1e-8)  # the error is orthogonal
        other = SkewNormal(-sign).eps(THETA + B * z + S * e, t, {})
        assert abs((mass * other).sum().item()) > 0.1


# ---------------------------------------------------------------- networks


class LinearNet(Backbone):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layer = torch.nn.Linear(3, 3, dtype=F64)
        with torch.no_grad():
            for p in self.layer.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))

    def forward(self, x, time, cond):
        return self.layer(x) * (1 + time[:, None] / 1000)


LOCAL = LocalOffset.linear()


def linear(seed: int) -> NetworkDenoiser:
    return NetworkDenoiser(LinearNet(seed), LOCAL, Plain(Kind.EPS))


def left(x, batch):
    assert not x.requires_grad
    assert not torch.is_grad_enabled()
    return x[:, 0]


def recipe_of(roles=None, judge=left, **settings) -> DistillationDPO:
    given = {"student": linear(0), "teacher": linear(1), "fake_winner": linear(2), "fake_loser": linear(3)}
    actors = Actors(given | (roles or {}), LOCAL, (3,), dtype=F64, judges={"left": judge})
    return DistillationDPO(DistillationDPOConfig(**settings), actors)


def rng_of(n: int = 12, step: int = 0) -> Rng:
    return Rng.for_batch(3, step, n)


def gradient(recipe, value: torch.Tensor | None = None) -> torch.Tensor:
    if value is None:
        value = recipe.loss("student", Batch(12), rng_of(), 0).total().sum()
    parameters = list(recipe.actors.module("student").parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


@pytest.mark.parametrize("dpo_sigmoid", [None, 0.7])
@pytest.mark.parametrize("loser_weight", [1.0, 0.25])
def test_the_student_follows_the_sheet_of_the_method(loser_weight, dpo_sigmoid):
    """Everything again by hand: the pair, its order, the directions, the margin, from the generator's own streams."""
    recipe = recipe_of(loser_weight=loser_weight, dpo_sigmoid=dpo_sigmoid)
    student, teacher, fake_w, fake_l = (recipe.actors.denoiser(n).backbone for n in recipe.actors.roles)
    rng = rng_of()
    z, eps = rng.normal("student/noise", (3,), F64), rng.normal("noised/eps", (3,), F64)
    sigma, last = LOCAL.coefficients(torch.tensor([999.0])).sigma, torch.full((12,), 999.0, dtype=F64)
    x1, x2 = (scale * sigma * z - sigma * student(scale * sigma * z, last, {}) for scale in (1.0, 1.1))
    with torch.no_grad():
        first = left(x1.detach(), None) < left(x2.detach(), None)
    assert 0 < first.sum() < 12
    better, worse = choose(first, x1, x2), choose(first, x2, x1)
    t = LOCAL.round(999 * rng.uniform("noised/t"))
    s = LOCAL.coefficients(t).sigma[:, None]
    with torch.no_grad():
        ew, fw, el, fl = (
            net(x + s * eps, t, {})
            for net, x in ((teacher, better), (fake_w, better), (teacher, worse), (fake_l, worse))
        )
        margin = ((eps - ew) ** 2 - (eps - fw) ** 2 - (eps - el) ** 2 + (eps - fl) ** 2).mean(1, keepdim=True)
        weight = 1.0 if dpo_sigmoid is None else torch.sigmoid(-dpo_sigmoid * margin)
    want = (weight * ((ew - fw) * better - loser_weight * (el - fl) * worse)).mean(1).sum()
    assert_close(gradient(recipe), gradient(recipe, want), rtol=1e-9, atol=1e-9)
    metrics = recipe.loss("student", Batch(12), rng, 0).metrics
    assert_close(metrics["switch"], first.double())
    assert_close(metrics["margin"], margin[:, 0])
    assert_close(metrics["direction_winner"], (ew - fw).abs().mean(1))
    assert_close(metrics["direction_loser"], (el - fl).abs().mean(1))


def test_exchanged_labels_and_fake_scores_turn_the_gradient_around_exactly():
    other = recipe_of({"fake_winner": linear(3), "fake_loser": linear(2)}, judge=lambda x, batch: -left(x, batch))
    one, two = gradient(recipe_of()), gradient(other)
    assert one.norm() > 0.1
    assert torch.equal(one, -two)


def test_twins_under_equal_fake_scores_do_not_push():
    same = {"fake_winner": linear(2), "fake_loser": linear(2)}
    assert torch.equal(gradient(recipe_of(same, noise_scale=1.0)), torch.zeros(12, dtype=F64))
    assert gradient(recipe_of(same)).norm() > 1e-3


def test_the_better_of_two_twins_is_score_distillation_bit_for_bit():
    recipe = recipe_of(noise_scale=1.0, loser_weight=0.0)
    roles = {"student": linear(0), "teacher": linear(1), "fake_score": linear(2)}
    law = recipe.config.time
    vsd = VSD(VSDConfig(time=law, weight="uniform"), Actors(roles, LOCAL, (3,), dtype=F64))
    assert torch.equal(gradient(recipe), gradient(vsd))
    assert gradient(vsd).norm() > 0.1


def test_without_losers_there_is_one_fake_score():
    config = DistillationDPOConfig(loser_weight=0.0)
    assert [spec.name for spec in DistillationDPO.role_specs(config)] == ["student", "teacher", "fake_winner"]
    recipe = recipe_of(loser_weight=0.0)
    assert recipe.phases(recipe.config)[0].trains == ("fake_winner",)
    assert list(recipe.loss("fake_score", Batch(12), rng_of(), 0).terms) == ["denoise_winner"]
    with_margin = DistillationDPOConfig(loser_weight=0.0, dpo_sigmoid=1.0)
    assert DistillationDPO.fakes(with_margin) == ("fake_winner", "fake_loser")


def test_a_small_beta_halves_the_gradient():
    assert_close(gradient(recipe_of(dpo_sigmoid=1e-14)), gradient(recipe_of()) / 2, rtol=1e-10, atol=1e-12)


def test_means_are_sums_over_the_number_of_elements():
    assert_close(gradient(recipe_of(reduction="sum")), 3 * gradient(recipe_of()), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- the generator's draws


class Recording(Rng):
    """Notes the streams of noise and times that were drawn."""

    def _fill(self, stream, shape, ids, normal, double):
        DRAWN.append(stream)
        return super()._fill(stream, shape, ids, normal, double)


DRAWN: list[str] = []


def test_members_share_time_and_noise_in_the_students_phase_only():
    recipe = recipe_of()
    DRAWN.clear()
    recipe.loss("student", Batch(5), Recording.for_batch(0, 0, 5), 0)
    assert sorted(set(DRAWN)) == ["noised/eps", "noised/t", "shared:student/index", "student/noise"]
    assert DRAWN.count("noised/eps") == DRAWN.count("noised/t") == 1
    DRAWN.clear()
    recipe.loss("fake_score", Batch(5), Recording.for_batch(0, 0, 5), 0)
    of_fakes = [s for s in DRAWN if s.startswith("noised/")]
    assert sorted(of_fakes) == [f"noised/fake_{who}/{what}" for who in ("loser", "winner") for what in ("eps", "t")]


def test_each_fake_score_learns_its_own_member():
    """Terms and gradients of one do not depend on the other."""
    recipe = recipe_of(fake=FakeScoreConfig(weighting="native", time=TimeConfig(low=0.3, high=0.9)))
    rng = rng_of()
    terms = recipe.loss("fake_score", Batch(12), rng, 0).terms
    pair = recipe.pair(Batch(12), rng, grad=False)
    for name, x0 in (("winner", pair.winner), ("loser", pair.loser)):
        t = LOCAL.round(999 * (0.3 + 0.6 * rng.uniform(f"noised/fake_{name}/t")))
        eps = rng.normal(f"noised/fake_{name}/eps", (3,), F64)
        net = recipe.actors.denoiser(f"fake_{name}").backbone
        error = (net(x0 + LOCAL.coefficients(t).sigma[:, None] * eps, t, {}) - eps).square().mean(1)
        assert_close(terms[f"denoise_{name}"], error)
        found = torch.autograd.grad(
            terms[f"denoise_{name}"].sum(), [*recipe.actors.module("fake_loser").parameters()], allow_unused=True
        )
        assert (found[0] is None) is (name == "winner")
    assert not pair.winner.requires_grad


# ---------------------------------------------------------------- labels


def test_labels_are_those_of_brute_force():
    generator = torch.Generator().manual_seed(0)
    first, second, truth = (torch.randn(20, 9, 3, generator=generator, dtype=F64) for _ in range(3))

    def judge(x, batch):
        if x.requires_grad:
            raise AssertionError("a judge is given samples with gradient")
        return chamfer_loss(x, batch.x0)

    pair = ranked(judge, first.requires_grad_(), second, Batch(20, {}, truth))

    def chamfer(p, q):
        near = [min((a - b).norm().item() for b in q) for a in p]
        back = [min((a - b).norm().item() for a in p) for b in q]
        return (sum(near) / len(near) + sum(back) / len(back)) / 2

    for i in range(20):
        found = [chamfer(x[i].detach(), truth[i]) for x in (first, second)]
        assert bool(pair.first_won[i]) is (found[0] < found[1])
        assert pair.lead[i].item() == pytest.approx(abs(found[0] - found[1]), abs=1e-5)
        better = first if found[0] < found[1] else second
        assert torch.equal(pair.winner[i], better[i])
    assert 0 < pair.first_won.sum() < 20


def test_the_second_wins_ties_and_unfit_judges_are_refused():
    x, y, batch = torch.zeros(3, 2), torch.ones(3, 2), Batch(3)
    assert ranked(lambda x, b: torch.ones(3), x, y, batch).winner.equal(y)
    assert ranked(lambda x, b: torch.full((3,), math.inf), x, y, batch).winner.equal(y)
    with pytest.raises(UserError, match=r"one number per sample, \[3\], got \[3, 1\]"):
        ranked(lambda x, b: torch.ones(3, 1), x, y, batch)
    with pytest.raises(TrainingError, match="NaN"):
        ranked(lambda x, b: torch.tensor([1.0, math.nan, 0.0]), x, y, batch)


def test_judges_are_found_by_name():
    roles, judges = recipe_of().actors.roles, {"chamfer": lambda x, b: x[:, 0], "size": lambda x, b: -x[:, 0]}

    def made(metric="", judges=judges):
        return DistillationDPO(DistillationDPOConfig(metric=metric), Actors(roles, LOCAL, (3,), judges=judges))

    assert made().judge is judges["chamfer"]
    assert made("size").judge is judges["size"]
    with pytest.raises(UserError, match=r"no judge 'chamfr'.*'chamfer'"):
        made("chamfr")
    with pytest.raises(UserError, match="gives no judge"):
        made(judges={})
    actors = Actors(roles, LOCAL, (3,), generate=lambda batch, rng: (torch.zeros(1), {}), judges=judges)
    with pytest.raises(UserError, match="makes samples itself"):
        DistillationDPO(DistillationDPOConfig(), actors)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"noise_scale": 0.0}, "noise_scale"), ({"loser_weight": -0.1}, "loser_weight"), ({"dpo_sigmoid": 0.0}, "beta")],
)
def test_bad_settings_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        DistillationDPOConfig(**given)


# ---------------------------------------------------------------- sampling and training


def test_one_student_samples_at_any_number_of_steps():
    config = DistillationDPOConfig()
    for n in range(1, 51):
        plan = DistillationDPO.plan(config, LOCAL, n)
        assert list(plan.times) == [round(999 * (n - i) / n) for i in range(n)]
        assert plan.mode == "renoise"
    assert DistillationDPO.plan(config, LOCAL, 8).times == (999, 874, 749, 624, 500, 375, 250, 125)
    four = DistillationDPOConfig(student_steps=4, sampler="deterministic")
    assert DistillationDPO.plan(four, LOCAL, 4).times == (999, 749, 499, 249)  # as it was trained
    assert DistillationDPO.plan(four, LOCAL, 2).mode == "deterministic"
    late = DistillationDPOConfig(student_start=0.44)
    for process in (EDM(), VP.scaled_linear()):
        first = time_of_fraction(process, [0.44])
        assert DistillationDPO.plan(late, process, 1).times == first
        assert DistillationDPO.plan(late, process, 3).times[0] == pytest.approx(first[0])
    with pytest.raises(UserError, match="noise levels"):
        DistillationDPO.plan(config, LOCAL, 2000)
    with pytest.raises(UserError, match="at least one step"):
        DistillationDPO.plan(config, LOCAL, 0)


def test_networks_learn_two_blobs_from_the_better_of_two():
    here = plane()
    student, fakes = here.copy(), {name: here.copy() for name in ("fake_winner", "fake_loser")}
    law = TimeConfig(law="lognormal", mean=-0.5)
    settings = DistillationDPOConfig(
        time=law, fake=FakeScoreConfig(time=law), student_start=0.6, loser_weight=0.0, reduction="sum"
    )
    roles = {"student": student, "teacher": here.teacher, **fakes}
    judges = {"right": lambda x, batch: -x[:, 0]}
    recipe = DistillationDPO(settings, Actors(roles, here.teacher.process, (2,), judges=judges))
    (t,) = recipe.plan(settings, recipe.process, 1).times
    before = here.distance(student, t)
    descend(
        recipe,
        {"fake_score": fakes["fake_winner"].backbone.parameters(), "student": student.backbone.parameters()},
        {"fake_score": 2e-3, "student": 5e-4},
        steps=80,
        batch=256,
    )
    assert here.distance(student, t) < 0.6 * before


def test_roles_in_training_mode_judge_a_member_under_equal_masks():
    """Copies with dropout agree exactly, so that equal teacher and fake scores push nobody."""
    net = NetworkDenoiser(MLPBackbone(3, dropout=0.5).train().double(), LOCAL, Plain(Kind.EPS))
    recipe = recipe_of({"teacher": net, "fake_winner": net, "fake_loser": net})
    rng = QuickRng(0, 0, tuple(range(12)))
    with rng.network_noise("network"):
        metrics = recipe.loss("student", Batch(12), rng, 0).metrics
    assert metrics["direction_winner"].abs().max().item() == metrics["direction_loser"].abs().max().item() == 0.0
