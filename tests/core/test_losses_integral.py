"""The integral family: expected gradients are those of the divergences, nothing flows through networks."""

from __future__ import annotations

import math

import pytest
import torch
from core.score_bed import F64, Mixture, bed, edm_bed, gaussian

from fewstep.core.errors import UserError
from fewstep.core.guidance import guide
from fewstep.core.losses.denoising import denoising_loss
from fewstep.core.losses.divergence import DIVERGENCES
from fewstep.core.losses.integral import (
    asd_loss,
    asd_time,
    csd_loss,
    csd_negative_loss,
    diff_instruct_loss,
    distribution_matching_loss,
    ism_loss,
    rescale_groups,
    score_difference_loss,
    score_gap_loss,
    sds_loss,
    sds_weight,
    sjc_loss,
    vsd_loss,
    x0_sds_loss,
)
from fewstep.core.losses.monitors import divergence_rate, gap
from fewstep.core.losses.surrogate import gradient_surrogate, self_normaliser
from fewstep.core.prediction import Kind
from fewstep.core.process import EDM, VP, CosineVP, times
from fewstep.core.solvers import invert

GOLDEN = {
    "reverse_kl": ((1.02286349, -1.35384615), (-0.24409224, -0.09616103)),
    "forward_kl": ((0.05893070, -0.48834628), (-0.30362121, -0.02219756)),
    "jensen_shannon": ((0.05280212, -0.25769089), (-0.12764085, -0.03147645)),
    "chi2": ((-0.02045000, -1.07525024), (-0.96442964, 0.19836409)),
    "hellinger": ((0.08828125, -0.30550712), (-0.13233737, -0.03067852)),
}


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient_of(loss, x):
    return torch.autograd.grad(loss.sum(), x, retain_graph=True)[0]


# ---------------------------------------------------------------- the surrogate


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_gradient_is_the_direction_exactly(reduction):
    x = (1e6 * randn(4, 3, 5, dtype=torch.float32)).requires_grad_()
    direction = 1e-6 * randn(4, 3, 5, seed=1, dtype=torch.float32)
    loss = gradient_surrogate(x, direction, reduction=reduction)
    count = 15 if reduction == "mean" else 1
    torch.testing.assert_close(gradient_of(loss, x) * count, direction, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.detach() * count, direction.square().flatten(1).sum(1) / 2)


def test_no_gradient_enters_the_direction():
    x = randn(3, 2).requires_grad_()
    gradient = gradient_of(gradient_surrogate(x, x**2, reduction="sum"), x)
    assert torch.equal(gradient, (x**2).detach())
    assert not torch.allclose(gradient, gradient_of((x**2).square() / 2, x))  # the true derivative of the value


def test_the_normaliser_is_per_sample_detached_and_floored():
    x, teacher = randn(4, 6).requires_grad_(), randn(4, 6, seed=1)
    teacher[3] = x[3].detach()
    scale = self_normaliser(x, teacher, floor=1e-3)
    assert not scale.requires_grad
    expected = (x.detach() - teacher).abs().mean(1)
    assert scale[:3].tolist() == pytest.approx(expected[:3].tolist())
    assert scale[3].item() == 1e-3


# ---------------------------------------------------------------- expected gradients


@pytest.mark.parametrize("name", sorted(GOLDEN))
@pytest.mark.parametrize("bed_name", ["R1", "R2"])
def test_expected_gradient_is_that_of_the_divergence(name, bed_name):
    """Predictions are given attached: the loss detaches them."""
    here = bed(bed_name)
    teacher, fake = here.view(Kind.SCORE)
    weight = DIVERGENCES[name].h(here.log_ratio().exp())
    loss = score_gap_loss(here.x_t, teacher, fake, weight=weight)
    assert here.gradient(loss) == pytest.approx(GOLDEN[name][bed_name == "R2"], abs=1e-7)


def test_an_undetached_surrogate_points_the_wrong_way():
    here = bed("R2")
    teacher, fake = here.view(Kind.SCORE)
    naive = here.gradient(((fake - teacher) * here.x_t).sum(1))
    assert naive[0] == pytest.approx(0.4457, abs=1e-4)


def test_expected_gradient_in_float32():
    here = bed("R2", dtype=torch.float32)
    teacher, fake = here.view(Kind.SCORE)
    assert here.gradient(score_gap_loss(here.x_t, teacher, fake)) == pytest.approx(GOLDEN["reverse_kl"][1], rel=1e-3)


def test_diff_instruct_and_unnormalised_dmd_in_variance_exploding_form():
    """sigma^2 times the gradient of the KL: 0.64 * (-0.2282985323, -0.0857256891)."""
    here = edm_bed("R2")
    teacher, fake = here.view(Kind.X0)
    expected = (-0.1461110607, -0.0548644410)
    losses = (
        diff_instruct_loss(here.x0, teacher, fake),
        distribution_matching_loss(here.x0, teacher, fake, normalise=False, reduction="sum"),
        vsd_loss(here.x0, here.view(Kind.EPS)[0], here.view(Kind.EPS)[1], weight=here.sigma),
    )
    for loss in losses:
        assert here.gradient(loss) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("bed_name", "expected"), [("R1", (0.27617314, -0.36553846)), ("R2", (-0.06590490, -0.02596348))]
)
def test_swiftbrush_weight(bed_name, expected):
    here = bed(bed_name)
    teacher, fake = here.view(Kind.EPS)
    weight = sds_weight("sigma2", here.alpha, here.sigma)
    assert here.gradient(vsd_loss(here.x0, teacher, fake, weight=weight)) == pytest.approx(expected, abs=1e-7)


def test_sds_shrinks_the_student_where_diff_instruct_does_not():
    """SDS: d/dk = a^2 k / Q, never zero; with the fake score a^2 k (1/Q - 1/P)."""
    here = bed("R1")
    alpha, sigma, k = 0.8, 0.6, 1.3
    big_p, big_q = alpha**2 * k**2 + sigma**2, alpha**2 * 0.25 + sigma**2
    scale = alpha * here.sigma**2 / here.sigma**2  # eps gap / sigma, times dx_t/dx0
    (eps_teacher, eps_fake) = here.view(Kind.EPS)
    weight = scale / here.sigma
    sds = here.gradient(sds_loss(here.x0, eps_teacher, here.e, weight=weight))
    full = here.gradient(vsd_loss(here.x0, eps_teacher, eps_fake, weight=weight))
    assert sds[0] == pytest.approx(alpha**2 * k / big_q, abs=1e-9)
    assert full[0] == pytest.approx(alpha**2 * k * (1 / big_q - 1 / big_p), abs=1e-9)
    assert sds[1] == pytest.approx(full[1], abs=1e-9)


def test_a_stale_fake_score_biases_as_predicted():
    here, (stale_k, stale_b) = bed("R1"), (0.9, 0.1)
    stale = gaussian(here.process, stale_b, stale_k).score(here.x_t, here.t, {})
    got = here.gradient(score_gap_loss(here.x_t, here.view(Kind.SCORE)[0], stale))
    big_q, old_p = 0.64 * 0.25 + 0.36, 0.64 * stale_k**2 + 0.36
    assert got[0] == pytest.approx(0.64 * 1.3 * (1 / big_q - 1 / old_p), abs=1e-9)
    assert got[1] == pytest.approx(0.64 * ((-0.4 - 0.7) / big_q - (-0.4 - stale_b) / old_p), abs=1e-9)


def test_de_bruijn_integral_of_the_monitor_is_the_kl():
    """KL(p_0 || q_0) = 1/2 int E|D|^2 d(sigma^2) for k 1.3, b -0.4 against N(0.7, 0.5^2)."""
    axis = torch.linspace(-9, 9, 201, dtype=F64)
    mass = torch.exp(-(axis**2) / 2)
    mass = mass / mass.sum()
    log_sigma = torch.linspace(-12, 12, 1201, dtype=F64)
    sigma = log_sigma.exp()
    process = EDM(sigma_min=1e-9, sigma_max=1e9)
    spread = (1.3**2 + sigma**2).sqrt()
    x = (-0.4 + spread[:, None] * axis).reshape(-1, 1)
    t = sigma[:, None].expand(-1, 201).reshape(-1)
    teacher, fake = gaussian(process, 0.7, 0.5), gaussian(process, -0.4, 1.3)
    zero = torch.zeros_like(t)
    rate = divergence_rate(teacher.x0(x, t, {}), fake.x0(x, t, {}), zero + 1, t, zero, DIVERGENCES["reverse_kl"])
    fisher = (rate.reshape(-1, 201) * mass).sum(1)
    value = (fisher * sigma**2).sum() * (log_sigma[1] - log_sigma[0])  # d(sigma^2)/2 = sigma^2 dlog sigma
    assert value.item() == pytest.approx(4.3444885550, abs=1e-6)


# ---------------------------------------------------------------- invariances and limits


def every_loss(here):
    """All losses of the family that a bed can feed, with reverse-KL-like weights."""
    (x0_q, x0_p), (eps_q, eps_p), (s_q, s_p) = here.view(Kind.X0), here.view(Kind.EPS), here.view(Kind.SCORE)
    return {
        "vsd": vsd_loss(here.x0, eps_q, eps_p),
        "csd": csd_loss(here.x0, eps_q, eps_p),
        "asd": asd_loss(here.x0, eps_q, eps_p),
        "ism": ism_loss(here.x0, eps_q, eps_p, here.alpha, here.sigma),
        "diff_instruct": diff_instruct_loss(here.x0, x0_q, x0_p),
        "score_gap": score_gap_loss(here.x_t, s_q, s_p),
        "dmd": distribution_matching_loss(here.x0, x0_q, x0_p),
        "dmd_plain": distribution_matching_loss(here.x0, x0_q, x0_p, normalise=False),
    }


def test_zero_pointwise_when_student_and_teacher_agree():
    here = bed("R1", student=(0.5, 0.7), nodes=21)
    for name, loss in every_loss(here).items():
        gradient = gradient_of(loss, here.x0)
        assert gradient.abs().max().item() < 1e-12, name


@pytest.mark.parametrize("kind", [Kind.EPS, Kind.V, Kind.FLOW, Kind.VELOCITY, Kind.SCORE])
def test_the_teacher_may_predict_anything(kind):
    reference, other = every_loss(bed("R2", nodes=21)), every_loss(bed("R2", nodes=21, kind=kind))
    for name, loss in reference.items():
        torch.testing.assert_close(other[name], loss, rtol=1e-10, atol=1e-10)


def test_the_schedule_does_not_matter_in_clean_space():
    """A VP level and the EDM level of the same sigma/alpha: same DMD; scores differ by alpha."""
    vp, edm = bed("R2", nodes=41), edm_bed("R2", sigma=0.75, nodes=41)
    for normalise in (True, False):
        losses = [distribution_matching_loss(b.x0, *b.view(Kind.X0), normalise=normalise) for b in (vp, edm)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-12)
    kl = [b.gradient(score_gap_loss(b.x_t, *b.view(Kind.SCORE))) for b in (vp, edm)]
    assert kl[0] == pytest.approx(kl[1], abs=1e-9)


def test_dmd_gradient_is_exact_and_scale_free():
    x, teacher, fake = randn(4, 3, 2, 2).requires_grad_(), randn(4, 3, 2, 2, seed=1), randn(4, 3, 2, 2, seed=2)
    plain = fake - teacher
    scale = (x.detach() - teacher).abs().mean((1, 2, 3))
    g = gradient_of(distribution_matching_loss(x, teacher, fake), x)
    torch.testing.assert_close(g, plain / scale[:, None, None, None] / 12, rtol=1e-12, atol=0)
    ten = gradient_of(distribution_matching_loss(x, teacher, teacher + 10 * plain), x)
    torch.testing.assert_close(ten, 10 * g, rtol=1e-12, atol=0)
    big = (7 * x).detach().requires_grad_()
    torch.testing.assert_close(gradient_of(distribution_matching_loss(big, 7 * teacher, 7 * fake), big), g)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    weighted = distribution_matching_loss(x, teacher, fake, weight=weight)
    torch.testing.assert_close(gradient_of(weighted, x), g * weight.detach().double()[:, None, None, None])
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(weighted.sum(), weight)


def test_bfloat16_is_subtracted_in_float32():
    x = torch.ones(1, 4, dtype=torch.bfloat16, requires_grad=True)
    teacher, fake = torch.full((1, 4), 100.0), torch.full((1, 4), 100.25)  # 100.25 does not exist in bfloat16
    assert distribution_matching_loss(x, teacher, fake, normalise=False, reduction="sum").item() == 4 * 0.25**2 / 2


def mean_flow(b: float, fake_b: float, ratio: float) -> list[float]:
    """Velocities of the student's and the fake score's mean, fed by the two losses; everything is linear in them."""
    k, v, a, s = 0.5, 1.0, 0.8, 0.6
    process, t = CosineVP(), torch.full((1,), 2 / math.pi * math.asin(s), dtype=F64)
    z = torch.zeros(1, 1, dtype=F64)  # means of gradients that are linear in (z, e): the mean point is enough
    x0 = torch.full((1, 1), b, dtype=F64, requires_grad=True)
    fake_mean = torch.tensor(fake_b, dtype=F64, requires_grad=True)
    x_t = process.add_noise(x0, z, t)
    fake = gaussian(process, fake_mean, k)
    student = gradient_of(score_gap_loss(x_t, gaussian(process, 0.0, v).score(x_t, t, {}), fake.score(x_t, t, {})), x0)
    score_space = torch.full((1,), a**2 / s**4 / 2, dtype=F64)
    critic = denoising_loss(fake.x0(x_t.detach(), t, {}), x0, score_space, reduction="sum")
    return [-student.item(), -ratio * gradient_of(critic, fake_mean).item()]


def test_two_time_scale_threshold():
    """The means converge iff the fake score learns P (1 - P/Q) times as fast as the student."""
    big_p, big_q = 0.64 * 0.25 + 0.36, 0.64 + 0.36
    threshold = big_p * (1 - big_p / big_q)
    for factor, stable in ((1.1, True), (0.9, False)):
        columns = [mean_flow(*unit, factor * threshold) for unit in ((1.0, 0.0), (0.0, 1.0))]
        system = torch.tensor(columns, dtype=F64).T
        final = torch.matrix_exp(400 * system) @ torch.tensor([1.0, 0.5], dtype=F64)
        assert (torch.linalg.eigvals(system).real.max().item() < 0) is stable
        assert (final.norm().item() < 0.5) is stable


# ---------------------------------------------------------------- score distillation of samples (SDS and relatives)

SD = VP.scaled_linear()
Z = torch.tensor([[0.3, 0.7]], dtype=F64)
NOISE = torch.tensor([[0.5, -1.0]], dtype=F64)
T = times(400.0, 1)
TWO = Mixture(SD, [0.5, 0.5], [[1.0, -2.0], [-1.0, 0.5]], [0.5, 0.5])
PROMPT = {"label": torch.tensor([0])}


def noisy(z=Z, n=NOISE, t=T):
    return SD.add_noise(z, n, t)


def predictions(t=T):
    x_t = noisy(t=t)
    return TWO.eps(x_t, t, PROMPT), TWO.eps(x_t, t, {})


def direction(loss_of, z=Z):
    """Gradient of a loss with respect to the sample, reduction "sum"."""
    x = z.clone().requires_grad_()
    return gradient_of(loss_of(x), x)


def test_golden_two_class_mixture():
    assert SD.coefficients(T).alpha.item() ** 2 == pytest.approx(0.4244830, abs=1e-7)
    cond, uncond = predictions()
    assert cond[0].tolist() == pytest.approx([-0.0854215, 1.1134897], abs=1e-7)
    assert uncond[0].tolist() == pytest.approx([0.4106495, 0.4934010], abs=1e-7)
    sds = direction(lambda x: sds_loss(x, guide(cond, uncond, 7.5), NOISE))
    assert sds[0].tolist() == pytest.approx([-3.8098830, 6.1440666], abs=2e-7)
    csd = direction(lambda x: csd_loss(x, cond, uncond))
    assert csd[0].tolist() == pytest.approx([-0.4960710, 0.6200888], abs=2e-7)


def test_mean_of_sds_over_the_noise():
    """E_n[e - n] = sigma alpha (z - mu) / (abar v + sigma^2), by quadrature."""
    axis = torch.linspace(-9, 9, 61, dtype=F64)
    mass = torch.exp(-(axis**2) / 2)
    mass = (mass / mass.sum())[:, None] * (mass / mass.sum())[None, :]
    n = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    t = times(400.0, len(n))
    teacher = Mixture(SD, [1.0], [[1.0, -2.0]], [0.5])
    eps = teacher.eps(noisy(Z.expand(len(n), 2), n, t), t, {})
    x = Z.expand(len(n), 2).clone().requires_grad_()
    got = (gradient_of(sds_loss(x, eps, n), x) * mass.reshape(-1, 1)).sum(0)
    assert got.tolist() == pytest.approx([-0.5076, 1.9578], abs=5e-5)


def test_identities_of_the_sds_family():
    cond, uncond = predictions()
    c = SD.coefficients(T)
    a, s = c.alpha, c.sigma
    guided = guide(cond, uncond, 7.5)
    sds = direction(lambda x: sds_loss(x, guided, NOISE))
    x0_guided = (noisy() - s * guided) / a
    assert torch.allclose(direction(lambda x: x0_sds_loss(x, x0_guided)), s / a * sds, atol=1e-9)
    tau = s / a
    denoised = (Z + tau * NOISE) - tau * guided
    sjc = direction(lambda x: sjc_loss(x, Z + tau * NOISE, denoised, tau))
    assert torch.allclose(sjc, sds, atol=1e-9)
    plain = direction(lambda x: sjc_loss(x, Z + tau * NOISE, denoised, tau, variance_reduced=False))
    assert torch.allclose(plain, guided, atol=1e-9)
    csd = direction(lambda x: csd_loss(x, cond, uncond))
    unguided = direction(lambda x: sds_loss(x, uncond, NOISE))
    assert torch.allclose(sds, unguided + 7.5 * csd, atol=1e-9)
    assert torch.allclose(cond + 6.5 * (cond - uncond), guided, atol=1e-9)  # threestudio's scale is ours minus one
    dirac = (noisy() - a * Z) / s
    assert torch.allclose(direction(lambda x: vsd_loss(x, guided, dirac)), sds, atol=1e-9)
    assert torch.equal(direction(lambda x: vsd_loss(x, cond, cond)), torch.zeros_like(Z))
    assert torch.equal(asd_time(T, 20.0, 1.0, ratio=0.0), T)
    asd = direction(lambda x: asd_loss(x, guided, TWO.eps(noisy(), asd_time(T, 20.0, 1.0, 0.0), PROMPT)))
    assert torch.allclose(asd, 6.5 * csd, atol=1e-9)


def test_asd_looks_further_into_the_noise():
    assert asd_time(T, 20.0, 0.5).item() == pytest.approx(400 + 0.05 * 380)


@pytest.mark.parametrize(("process", "t"), [(EDM(), 0.8), (CosineVP(), 0.4)])
def test_two_samples_under_common_noise_differ_by_the_same_score_whatever_the_noise(process, t):
    teacher, noise, at = gaussian(process, 0.7, 0.5, Kind.EPS), randn(50, 1), times(t, 50)
    x, other = (torch.full((50, 1), v, dtype=F64) for v in (0.9, 0.4))
    above, below = (teacher.eps(process.add_noise(each, noise, at), at, {}) for each in (x, other))
    c = process.coefficients(at)
    wanted = (c.alpha * c.sigma / (c.alpha**2 * 0.25 + c.sigma**2))[:, None] * (x - other)
    torch.testing.assert_close(direction(lambda x: score_difference_loss(x, above, below), x), wanted)
    weight = torch.full((50,), 3.0, dtype=F64)
    weighted = direction(lambda x: score_difference_loss(x, above, below, weight=weight), x)
    torch.testing.assert_close(weighted, 3 * wanted)
    field = randn(2, 3, 4).requires_grad_()
    gradient = gradient_of(score_difference_loss(field, randn(2, 3, 4, seed=1), randn(2, 3, 4, seed=2)), field)
    torch.testing.assert_close(gradient, (randn(2, 3, 4, seed=1) - randn(2, 3, 4, seed=2)) / 12)


def test_csd_with_a_negative_prompt_anneals_from_null_to_negative():
    cond, uncond = predictions()
    negative = TWO.eps(noisy(), T, {"label": torch.tensor([1])})
    at = {s: direction(lambda x, s=s: csd_negative_loss(x, cond, negative, uncond, s)) for s in (0.0, 0.5, 1.0)}
    torch.testing.assert_close(at[0.0], cond - uncond)
    torch.testing.assert_close(at[1.0], cond - negative)
    torch.testing.assert_close(at[0.5], (at[0.0] + at[1.0]) / 2)
    with pytest.raises(UserError, match="negative_share"):
        csd_negative_loss(Z, cond, negative, uncond, 1.5)


def test_weights_by_name():
    a, s = torch.tensor([0.8], dtype=F64), torch.tensor([0.6], dtype=F64)
    named = {name: sds_weight(name, a, s).item() for name in ("uniform", "sigma2", "alpha_sigma2", "sigma")}
    assert named == pytest.approx({"uniform": 1.0, "sigma2": 0.36, "alpha_sigma2": 0.288, "sigma": 0.6})


def test_std_rescale_over_views():
    guided, cond = randn(8, 3, 2), randn(8, 3, 2, seed=1)
    assert torch.equal(rescale_groups(guided, cond, 0.0, 4), guided)
    full = rescale_groups(guided, cond, 1.0, 4)
    for i in (0, 4):  # one standard deviation per object, not per view
        assert full[i : i + 4].std().item() == pytest.approx(cond[i : i + 4].std().item())
        assert full[i].std().item() != pytest.approx(cond[i].std().item(), rel=1e-3)
    torch.testing.assert_close(rescale_groups(guided, cond, 0.5, 4), (guided + full) / 2)
    with pytest.raises(UserError, match="groups of 3"):
        rescale_groups(guided, cond, 0.5, 3)


def inverted(delta: int):
    """x_s from noise, x_t by one inversion step with the empty prompt, and the predictions ISM compares."""
    s = times(400.0 - delta, 1)
    x_s = SD.add_noise(Z, NOISE, s)
    x_t = invert(TWO, x_s, [400.0 - delta, 400.0], {}).x
    return x_s, x_t, TWO.eps(x_s, s, {}), TWO.eps(x_t, T, {}), TWO.eps(x_t, T, PROMPT)


def test_interval_score_matching_golden():
    x_s, x_t, eps_s, uncond, cond = inverted(50)
    assert x_t[0].tolist() == pytest.approx([0.5747340, -0.1237267], abs=1e-7)
    c = SD.coefficients(T)
    got = direction(lambda x: ism_loss(x, guide(cond, uncond, 7.5), eps_s, c.alpha, c.sigma))
    assert got[0].tolist() == pytest.approx([-5.5499608, 6.9756373], abs=2e-7)
    tenth = direction(lambda x: ism_loss(x, guide(cond, uncond, 7.5), eps_s, c.alpha, c.sigma, scale=0.1))
    torch.testing.assert_close(tenth, got / 10)
    # the same gap in clean space, along the inversion step
    clean = TWO.x0(x_s, times(350.0, 1), {}) - TWO.x0(x_t, T, {})
    torch.testing.assert_close(c.sigma / c.alpha * (uncond - eps_s), clean, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("delta", "distance"), [(100, 0.06835), (10, 0.02228), (1, 0.002349)])
def test_interval_score_matching_tends_to_the_classifier_score(delta, distance):
    _, _, eps_s, uncond, cond = inverted(delta)
    assert (uncond - eps_s).norm().item() == pytest.approx(distance, rel=1e-3)
    c = SD.coefficients(T)
    got = direction(lambda x: ism_loss(x, guide(cond, uncond, 7.5), eps_s, c.alpha, c.sigma))
    limit = c.sigma / c.alpha * 7.5 * (cond - uncond)
    assert (got - limit).norm().item() == pytest.approx((c.sigma / c.alpha).item() * distance, rel=1e-3)


@pytest.mark.slow
def test_sds_collapses_particles_and_vsd_does_not():
    """512 numbers against N(1.5, 0.16); the fake score is that of a Gaussian fitted to them."""
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(20, 981, (1500,), generator=generator).double()
    c = SD.coefficients(t)
    weights = sds_weight("sigma2", c.alpha, c.sigma)

    def eps_of(x_t, mean, variance, a, s):  # the exact prediction for Gaussian data
        return s * (x_t - a * mean) / (a**2 * variance + s**2)

    final = {}
    for method in ("sds", "vsd"):
        x = torch.randn(512, 1, generator=generator, dtype=F64).requires_grad_()
        for a, s, weight in zip(c.alpha, c.sigma, weights, strict=True):
            n = torch.randn(512, 1, generator=generator, dtype=F64)
            z = x.detach()
            x_t = a * z + s * n
            reference = n if method == "sds" else eps_of(x_t, z.mean(), z.var(), a, s)
            loss = vsd_loss(x, eps_of(x_t, 1.5, 0.16, a, s), reference, weight=weight.expand(512))
            x = (z - 0.05 * gradient_of(loss, x)).requires_grad_()
        final[method] = (x.mean().item(), x.var().item())
    assert final["sds"][0] == pytest.approx(1.5, abs=0.02)
    assert final["vsd"][0] == pytest.approx(1.5, abs=0.02)
    assert final["sds"][1] < 1e-3
    assert final["vsd"][1] == pytest.approx(0.16, abs=0.01)


def test_the_monitor_is_the_squared_gap():
    teacher, fake = randn(3, 2, 2).requires_grad_(), randn(3, 2, 2, seed=1)
    value = gap(teacher, fake)
    assert not value.requires_grad
    torch.testing.assert_close(value, (teacher - fake).detach().square().mean((1, 2)))
