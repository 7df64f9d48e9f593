"""Scale distillation on Gaussians in closed form: its optimum, its variance, its conditions, a chain of scales."""

from __future__ import annotations

import math

import pytest
import torch
from core.recipe_bed import QuickRng
from core.score_bed import F64
from torch import nn
from torch.testing import assert_close

from fewstep.core.denoiser import Backbone, Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.losses.denoising import denoising_weight
from fewstep.core.networks.freezing import trainable_copy
from fewstep.core.prediction import Clean, Kind, Prediction, compose, decompose
from fewstep.core.process import VP, CosineVP, RectifiedFlow, ResidualShift
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.diffusion import Diffusion, DiffusionConfig
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig
from fewstep.restoration.recipes.yonos import Yonos, YonosConfig, conditions

LEVEL = 2 / math.pi * math.asin(0.8)  # alpha 0.6, sigma 0.8 of the cosine process


class Linear(nn.Module, Denoiser):
    """``x0 = core A + y B`` of the state without its anchor and the anchor; keeps what it was asked and said."""

    def __init__(self, process, on_state, on_anchor) -> None:
        super().__init__()
        self.process = process
        self.on_state, self.on_anchor = (nn.Parameter(torch.as_tensor(v, dtype=F64)) for v in (on_state, on_anchor))
        self.asked: list[tuple[torch.Tensor, ...]] = []

    def predict(self, x_t, t, cond):
        y = cond["anchor"]
        core = self.process.offset(x_t, t, y)
        said = core @ self.on_state + y @ self.on_anchor
        self.asked.append((core.detach(), y, t, said.detach()))
        return Prediction(said, Kind.X0)


def normal(n: int, dim: int, name: str, seed: int = 0) -> torch.Tensor:
    return QuickRng(seed, 0, tuple(range(n))).normal(name, (dim,), F64)


def at(process, t: float) -> TimeConfig:
    """The law that always draws ``t``, the last one included."""
    u = float(process.time_to_unit(torch.tensor(t, dtype=F64)))
    return TimeConfig(low=u - 1e-9, high=u)


def fit(recipe, batch: Batch, target: str, seed: int = 0) -> torch.Tensor:
    """Give the student its least-squares weights for the recipe's own inputs; returns the loss per sample there."""
    rng = QuickRng(seed, 0, tuple(range(batch.size)))
    recipe.loss("student", batch, rng, 0)
    student = recipe.actors.denoiser("student")
    core, y = student.asked[-1][:2]
    truth = batch.x0 if target == "data" else recipe.actors.denoiser("teacher").asked[-1][3]
    found = torch.linalg.lstsq(torch.cat([core, y], 1), truth, driver="gelsd").solution
    with torch.no_grad():
        student.on_state.copy_(found[: core.shape[1]])
        student.on_anchor.copy_(found[core.shape[1] :])
    value = recipe.loss("student", batch, rng, 0).total()
    gradients = torch.autograd.grad(value.mean(), [student.on_state, student.on_anchor])
    assert max(g.abs().max().item() for g in gradients) < 1e-9  # the recipe's loss is least where the fit is
    return value.detach()


def distil(process, t, teacher, batch, seed=0):
    """Return the student fitted to a teacher at one level, and its loss."""
    config, dim = YonosConfig(weighting="uniform", time=at(process, t)), batch.x0.shape[1]
    student = Linear(process, torch.zeros(dim, dim), torch.zeros(dim, dim))
    recipe = Yonos(config, Actors({"student": student, "teacher": teacher}, process, (dim,), dtype=F64))
    return student, fit(recipe, batch, "teacher", seed)


def directly(process, t, batch, seed=0):
    """Return a student fitted to the data by plain training on the same inputs."""
    dim = batch.x0.shape[1]
    student = Linear(process, torch.zeros(dim, dim), torch.zeros(dim, dim))
    config = DiffusionConfig(weighting="uniform", time=at(process, t))
    return student, fit(
        Diffusion(config, Actors({"student": student}, process, (dim,), dtype=F64)), batch, "data", seed
    )


# ---------------------------------------------------------------- the optimum and its variance

PROCESSES = [(CosineVP(), LEVEL), (ResidualShift(), 8.0)]


def scalar(nested: bool, many: int = 10**6) -> Batch:
    x0 = normal(many, 1, "x0")
    milder = x0 + 0.1**0.5 * normal(many, 1, "milder")
    harsher = milder + 0.4**0.5 * normal(many, 1, "harsher") if nested else x0 + 0.5**0.5 * normal(many, 1, "harsher")
    return Batch(many, {"anchor": harsher, "milder": milder}, x0)


def wiener(process, t: float, noise: float) -> tuple[float, float, float]:
    """Return the best coefficients on (core, anchor) for unit data and an anchor of that noise, and the error."""
    c = process.coefficients(torch.tensor(t, dtype=F64))
    a, s = c.alpha.item(), c.sigma.item()
    precision = 1 + a**2 / s**2 + 1 / noise
    return a / s**2 / precision, 1 / noise / precision, 1 / precision


@pytest.mark.parametrize(("process", "t"), PROCESSES)
def test_nested_conditions_give_the_optimum_of_plain_training_with_less_variance(process, t):
    on_state, on_anchor, floor = wiener(process, t, 0.1)
    teacher = Linear(process, [[on_state]], [[on_anchor]])
    batch = scalar(nested=True)
    student, distilled = distil(process, t, teacher, batch)
    plain, direct = directly(process, t, batch)
    best = wiener(process, t, 0.5)
    for found in (student, plain):
        assert (found.on_state.item(), found.on_anchor.item()) == pytest.approx(best[:2], abs=2e-3)
    assert direct.mean().item() == pytest.approx(best[2], abs=2e-3)
    assert distilled.mean().item() == pytest.approx(best[2] - floor, abs=2e-3)
    if process.has_anchor:
        return
    assert (on_state, on_anchor, floor) == pytest.approx((0.081081, 0.864865, 0.086486), abs=1e-6)
    assert best == pytest.approx((0.263158, 0.561404, 0.280702), abs=1e-6)
    assert distilled.mean().item() == pytest.approx(0.194215, abs=2e-3)


def test_conditions_that_are_not_nested_move_the_optimum():
    process = CosineVP()
    on_state, on_anchor, _ = wiener(process, LEVEL, 0.1)
    teacher = Linear(process, [[on_state]], [[on_anchor]])
    student, _ = distil(process, LEVEL, teacher, scalar(nested=False))
    assert (student.on_state.item(), student.on_anchor.item()) == pytest.approx((0.308677, 0.485538), abs=2e-3)
    plain, _ = directly(process, LEVEL, scalar(nested=False))
    assert (plain.on_state.item(), plain.on_anchor.item()) == pytest.approx((0.263158, 0.561404), abs=2e-3)


# ---------------------------------------------------------------- what each network sees


@pytest.mark.parametrize("process", [VP.scaled_linear(), ResidualShift()], ids=["vp", "residual"])
def test_both_see_the_same_sample_noise_and_time_and_each_its_own_picture(process):
    teacher, student = (Linear(process, torch.eye(3), torch.eye(3)) for _ in range(2))
    recipe = Yonos(YonosConfig(), Actors({"student": student, "teacher": teacher}, process, (3,), dtype=F64))
    cond = {name: normal(5, 3, name) for name in ("anchor", "milder")}
    batch, rng = Batch(5, cond, normal(5, 3, "x0")), Rng.for_batch(0, 2, 5)
    recipe.loss("student", batch, rng, 2)
    assert len(teacher.asked) == len(student.asked) == 1  # one evaluation, no sampling
    (core, y, t, _), (own_core, own_y, own_t, _) = teacher.asked[0], student.asked[0]
    assert torch.equal(t, own_t)
    assert_close(core, own_core, rtol=1e-9, atol=1e-9)
    assert torch.equal(y, cond["milder"])
    assert torch.equal(own_y, cond["anchor"])
    c = process.coefficients(t)
    eps = rng.normal_like("eps", batch.x0)
    assert_close(own_core, c.alpha[:, None] * batch.x0 + c.sigma[:, None] * eps, rtol=1e-9, atol=1e-9)
    assert len(set(t.tolist())) > 1


def test_the_picture_at_its_own_size_stays_with_the_student():
    given = {name: torch.zeros(2, 4) for name in ("anchor", "milder", "lq", "prompt_embeds")}
    own, milder = conditions(given)
    assert set(own) == {"anchor", "lq", "prompt_embeds"}
    assert set(milder) == {"anchor", "prompt_embeds"}
    assert milder["anchor"] is given["milder"]


def test_what_is_missing_is_named():
    for cond, said in (
        ({"anchor": torch.zeros(2, 4)}, "set domain.milder_scale"),
        ({"milder": torch.zeros(2, 4)}, r"needs cond\['anchor'\]"),
        ({"anchor": torch.zeros(2, 4), "milder": torch.zeros(2, 2)}, "must be of the sample's size"),
    ):
        with pytest.raises(UserError, match=said):
            conditions(cond)
    process = CosineVP()
    roles = {name: Linear(process, [[0.0]], [[0.0]]) for name in ("student", "teacher")}
    with pytest.raises(UserError, match="'yonos' needs clean samples"):
        Yonos(YonosConfig(), Actors(roles, process, (1,))).loss("student", Batch(2), Rng.for_batch(0, 0, 2), 0)


# ---------------------------------------------------------------- networks


class Net(Backbone):
    """A small convolution of state and anchor, told the time."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with Rng(seed, 0, ()).network_noise("net"):
            self.first, self.last = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, time, cond):
        h = self.first(torch.cat([x, cond["anchor"]], 1)) + (time / (1 + time))[:, None, None, None]
        return self.last(torch.nn.functional.silu(h))


def networks(process, kind: Kind, *, copied: bool) -> Yonos:
    teacher = NetworkDenoiser(Net().double(), process, Plain(kind))
    student = trainable_copy(teacher.backbone) if copied else Net(1).double()
    roles = {"student": teacher.with_backbone(student), "teacher": teacher}
    return Yonos(YonosConfig(), Actors(roles, process, (3, 6, 6), dtype=F64))


def images(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=F64)


NETS = [(VP.scaled_linear(), Kind.V), (ResidualShift(), Kind.X0)]


@pytest.mark.parametrize(("process", "kind"), NETS, ids=["vp", "residual"])
def test_equal_networks_with_equal_pictures_have_nothing_to_learn(process, kind):
    recipe = networks(process, kind, copied=True)
    same = images(40, 1)
    for milder, learns in ((same, False), (images(40, 2), True)):
        batch = Batch(40, {"anchor": same, "milder": milder}, images(40, 3))
        value = recipe.loss("student", batch, Rng.for_batch(0, 0, 40), 0).total()
        parameters = list(recipe.actors.module("student").parameters())
        size = max(g.abs().max().item() for g in torch.autograd.grad(value.mean(), parameters))
        assert (value.detach().abs().max().item() > 0, size > 0) == (learns, learns)


@pytest.mark.parametrize(("process", "kind"), NETS, ids=["vp", "residual"])
def test_no_gradient_reaches_the_teacher_and_pieces_are_the_whole(process, kind):
    recipe, rng = networks(process, kind, copied=False), Rng.for_batch(0, 1, 6)
    batch = Batch(6, {"anchor": images(6, 1), "milder": images(6, 2)}, images(6, 3))
    whole = recipe.loss("student", batch, rng, 1).total()
    whole.sum().backward()
    assert all(p.grad is None for p in recipe.actors.module("teacher").parameters())
    assert all(p.grad is not None for p in recipe.actors.module("student").parameters())
    parts = [recipe.loss("student", batch.select(*cut), rng.select(*cut), 1).total() for cut in ((0, 1), (1, 6))]
    assert_close(torch.cat(parts), whole, rtol=1e-10, atol=1e-12)


def test_the_weight_is_of_the_students_own_noise_level():
    process = VP.scaled_linear()
    plain, given = (networks_with(process, weighting) for weighting in ("uniform", "truncated_snr"))
    c = process.coefficients(LOW.draw(process, Rng.for_batch(0, 0, 6), "time"))
    assert (c.alpha > 2 * c.sigma).any()
    assert_close(given, plain * denoising_weight("truncated_snr", c.alpha, c.sigma), rtol=1e-9, atol=0)
    at_end = process.coefficients(torch.tensor([999.0]))
    for name in ("truncated_snr", "uniform", "snr_plus_one"):
        assert denoising_weight(name, at_end.alpha, at_end.sigma).item() >= 1


LOW = TimeConfig(low=0.0, high=0.3)


def networks_with(process, weighting) -> torch.Tensor:
    recipe = networks(process, Kind.V, copied=False)
    recipe = Yonos(YonosConfig(weighting=weighting, time=LOW), recipe.actors)
    batch = Batch(6, {"anchor": images(6, 1), "milder": images(6, 2)}, images(6, 3))
    return recipe.loss("student", batch, Rng.for_batch(0, 0, 6), 0).total().detach()


def test_x0_from_v_is_x0_from_eps_and_only_v_says_something_where_alpha_vanishes():
    process = RectifiedFlow()  # alpha is 0 at its end
    clean = Clean(normal(7, 3, "x0"), normal(7, 3, "eps"))
    for vp in (VP.scaled_linear(), CosineVP()):
        t = vp.unit_to_time(torch.linspace(0, 0.95, 7, dtype=F64))
        x_t = vp.add_noise(clean.x0, clean.eps, t)
        for kind in (Kind.V, Kind.EPS):
            value = Prediction(compose(clean, kind, t, vp), kind)
            assert_close(decompose(value, x_t, t, vp).x0, clean.x0, rtol=1e-5, atol=1e-5)
    end = torch.full((7,), process.t_max, dtype=F64)
    x_t = process.add_noise(clean.x0, clean.eps, end)
    v, eps = (decompose(Prediction(compose(clean, k, end, process), k), x_t, end, process) for k in (Kind.V, Kind.EPS))
    assert_close(v.x0, clean.x0, rtol=1e-12, atol=1e-12)
    assert not eps.x0.isfinite().any()
    networks(process, Kind.V, copied=True)
    with pytest.raises(UserError, match="says nothing of x0"):
        networks(process, Kind.EPS, copied=True)


def test_students_sample_by_ddim_in_one_step_or_more():
    table = VP.scaled_linear()
    assert Yonos.plan(YonosConfig(), table, 1).times == (999,)
    assert Yonos.plan(YonosConfig(), table, 4).times == (999, 749, 499, 249)
    assert Yonos.plan(YonosConfig(), ResidualShift(), 1).times == (14,)
    assert Yonos.plan(YonosConfig(), table, 1).mode == "deterministic"


# ---------------------------------------------------------------- a chain of scales

LENGTH = 16


def covariance() -> torch.Tensor:
    place = torch.arange(LENGTH, dtype=F64)
    return torch.exp(-(place[:, None] - place).abs() / 4)


def halved(x: torch.Tensor, noise: float, name: str, seed: int) -> torch.Tensor:
    small = x.unflatten(1, (-1, 2)).mean(2)
    return small + noise * normal(len(x), small.shape[1], name, seed)


def signals(n: int, seed: int, scale: int) -> Batch:
    """Signals with anchors at ``scale`` and half of it, each level made from the one before and held at full length."""
    x0 = normal(n, LENGTH, "x0", seed) @ torch.linalg.cholesky(covariance()).T
    small, anchors = x0, {1: x0}
    for level in (2, 4, 8):
        small = halved(small, 0.1, f"scale {level}", seed)
        anchors[level] = small.repeat_interleave(level, 1)
    return Batch(n, {"anchor": anchors[scale], "milder": anchors[scale // 2]}, x0)


def best(process, t: float, scale: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the Wiener filter of state and anchor at one level, and its mean squared error."""
    c = process.coefficients(torch.tensor(t, dtype=F64))
    shrink, noise = torch.eye(LENGTH, dtype=F64), torch.zeros(LENGTH, LENGTH, dtype=F64)
    for _ in range(int(math.log2(scale))):
        half = torch.eye(len(shrink), dtype=F64).unflatten(0, (-1, 2)).mean(1)
        shrink, noise = half @ shrink, half @ noise @ half.T + 0.01 * torch.eye(len(half), dtype=F64)
    hold = torch.eye(len(shrink), dtype=F64).repeat_interleave(scale, 0)
    see = torch.cat([c.alpha * torch.eye(LENGTH, dtype=F64), hold @ shrink])
    spread = torch.block_diag(c.sigma**2 * torch.eye(LENGTH, dtype=F64), hold @ noise @ hold.T)
    cross = covariance() @ see.T
    gain = cross @ torch.linalg.pinv(see @ covariance() @ see.T + spread, rtol=1e-10, hermitian=True)
    error = (covariance() - gain @ cross.T).trace().item() / LENGTH
    return gain[:, :LENGTH].T, gain[:, LENGTH:].T, error


def mse(student: Linear, t: float, scale: int) -> float:
    held = signals(20000, 999, scale)
    c, eps = student.process.coefficients(torch.tensor(t, dtype=F64)), normal(20000, LENGTH, "held", 999)
    x_t = c.alpha * held.x0 + c.sigma * eps
    with torch.no_grad():
        said = x_t @ student.on_state + held.cond["anchor"] @ student.on_anchor
    return (said - held.x0).square().mean().item()


def test_a_chain_of_scales_reaches_the_best_one_step_network():
    process, t, n = VP.scaled_linear(), 999.0, 8000
    chained, direct = [], []
    for seed in range(20):
        teacher = Linear(process, *best(process, t, 2)[:2])
        for scale in (4, 8):
            teacher, _ = distil(process, t, teacher, signals(n, seed, scale), seed)
        chained.append(teacher)
        direct.append(directly(process, t, signals(n, seed, 8), seed)[0])
    optimal = Linear(process, *best(process, t, 8)[:2])
    floor = mse(optimal, t, 8)
    assert floor == pytest.approx(best(process, t, 8)[2], rel=0.02)
    assert mse(chained[0], t, 8) - floor < 1e-3

    def variance(students: list[Linear]) -> float:
        return torch.stack([torch.cat([s.on_state, s.on_anchor]).detach() for s in students]).var(0).mean().item()

    assert variance(chained) < 0.85 * variance(direct)
    assert mse(chained[0], t, 8) < mse(direct[0], t, 8)
