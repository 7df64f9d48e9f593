"""The score family: expected values and gradients of the golden table, attachments, identities between methods."""

from __future__ import annotations

import math

import pytest
import torch
from core.score_bed import F64, bed, edm_bed, gaussian

from fewstep.core.losses.denoising import denoising_loss, denoising_weight
from fewstep.core.losses.distances import Power, PseudoHuber, SquaredL2
from fewstep.core.losses.divergence import DIVERGENCES
from fewstep.core.losses.monitors import distance_of, divergence_rate
from fewstep.core.losses.score_family import conditional_score, sid_loss, sim_loss, uni_instruct_loss
from fewstep.core.prediction import Kind
from fewstep.core.process import EDM, CosineVP

BEDS = ("R1", "R2")
ROWS = {  # value, d/dk, d/db on R1 and R2
    "fisher": ((5.04278612, 5.35315732, -5.20710059), (1.28459581, -0.67211964, -0.46833776)),
    "expanded_fkl": ((1.15857306, 0.16351470, -0.67750594), (0.98517986, -0.84245618, -0.03079572)),
    "expanded_js": ((0.65759322, 0.08144589, -0.31348500), (0.51843069, -0.32076532, -0.11751346)),
    "sim_l2": ((0.0, 2.83813398, -1.87825493), (0.0, -0.67728145, -0.13340875)),
    "path": ((5.04278612, 2.51502334, -3.32884566), (1.28459581, 0.00516182, -0.33492901)),
    "sim_huber_1": ((0.0, 0.38662734, -0.35286098), (0.0, -0.18829513, -0.07091352)),
    "sim_huber_0.1": ((0.0, 0.39795998, -0.41338466), (0.0, -0.25093017, -0.12356544)),
    "sid_0": ((1.02116419, 0.79665329, -0.86426456), (0.26013065, -0.06752948, -0.08133076)),
    "sid_0.5": ((0.51058209, 0.54200718, -0.52721893), (0.13006533, -0.06805211, -0.04741920)),
    "sid_1": ((0.0, 0.28736107, -0.19017331), (0.0, -0.06857475, -0.01350764)),
    "sid_1.2": ((-0.20423284, 0.18550262, -0.05535506), (-0.05202613, -0.06878380, 0.00005699)),
}


def scores(here):
    """Conditional, teacher's and fake score, attached to x_t and x0."""
    return conditional_score(here.x_t, here.x0, here.alpha, here.sigma), *here.view(Kind.SCORE)


def cleans(here):
    return here.x0, *here.view(Kind.X0)


def uni(here, name, *, log_ratio=None, path_term=True):
    ratio = here.log_ratio() if log_ratio is None else log_ratio
    return uni_instruct_loss(
        *scores(here), ratio, DIVERGENCES[name], normalise=False, path_term=path_term, ratio_limit=100.0
    )


LOSSES = {
    "sim_l2": lambda here: sim_loss(*scores(here), SquaredL2()),
    "path": lambda here: scores(here)[2].sub(scores(here)[1]).square().sum(1),
    "sim_huber_1": lambda here: sim_loss(*scores(here), PseudoHuber(1.0)),
    "sim_huber_0.1": lambda here: sim_loss(*scores(here), PseudoHuber(0.1)),
    "sid_0": lambda here: sid_loss(*cleans(here), alpha=0.0, normalise=False),
    "sid_0.5": lambda here: sid_loss(*cleans(here), alpha=0.5, normalise=False),
    "sid_1": lambda here: sid_loss(*cleans(here), alpha=1.0, normalise=False),
    "sid_1.2": lambda here: sid_loss(*cleans(here), alpha=1.2, normalise=False),
}
EXPANDED = {"fisher": "reverse_kl", "expanded_fkl": "forward_kl", "expanded_js": "jensen_shannon"}


@pytest.mark.parametrize("row", sorted(LOSSES))
@pytest.mark.parametrize("bed_name", BEDS)
def test_golden_rows(row, bed_name):
    here = bed(bed_name, nodes=401 if row == "sim_huber_0.1" else 201)
    value, *gradient = ROWS[row][BEDS.index(bed_name)]
    loss = LOSSES[row](here)
    assert here.mean(loss).item() == pytest.approx(value, abs=2e-8)
    assert here.gradient(loss) == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize("row", sorted(EXPANDED))
@pytest.mark.parametrize("bed_name", BEDS)
def test_expanded_divergences(row, bed_name):
    """A has expectation zero and B is E[psi |D|^2]; the gradient of both is the true one of E_p[h |D|^2]."""
    here, divergence = bed(bed_name), DIVERGENCES[EXPANDED[row]]
    value, *gradient = ROWS[row][BEDS.index(bed_name)]
    assert here.gradient(uni(here, divergence.name)) == pytest.approx(gradient, abs=1e-6)
    first = here.mean(uni(here, divergence.name, path_term=False)).item()
    assert first == pytest.approx(0.0, abs=1e-9)
    ratio, gap = here.log_ratio().exp(), LOSSES["path"](here)
    expected = here.mean(divergence.psi(ratio) * gap).item()
    assert here.mean(uni(here, divergence.name)).item() == pytest.approx(expected, abs=1e-9)
    rate = divergence_rate(*here.view(Kind.X0), here.alpha, here.sigma, here.log_ratio(), divergence, 100.0)
    assert not rate.requires_grad
    assert here.mean(rate).item() == pytest.approx(value, abs=2e-8)


@pytest.mark.parametrize("name", ["jeffreys", "chi2", "hellinger", "softened_reverse_kl"])
def test_expanded_divergences_against_finite_differences(name):
    """The other rows: the surrogate's gradient is that of E_p[h |D|^2] by central differences of the quadrature."""
    divergence = DIVERGENCES[name]

    def value(k, b):
        here = bed("R1", student=(k, b), nodes=101)
        rate = divergence_rate(*here.view(Kind.X0), here.alpha, here.sigma, here.log_ratio(), divergence, 100.0)
        return here.mean(rate).item()

    k, b, h = 0.6, 0.4, 1e-4
    here = bed("R1", student=(k, b), nodes=101)
    numeric = ((value(k + h, b) - value(k - h, b)) / (2 * h), (value(k, b + h) - value(k, b - h)) / (2 * h))
    assert here.gradient(uni(here, name)) == pytest.approx(numeric, abs=1e-6)


def test_clean_space_is_score_space_times_sigma4_over_alpha2():
    here = bed("R2")
    loss = uni_instruct_loss(*cleans(here), here.log_ratio(), DIVERGENCES["forward_kl"], normalise=False)
    scaled = [g * 0.64 / 0.6**4 for g in here.gradient(loss)]
    assert scaled == pytest.approx(ROWS["expanded_fkl"][1][1:], abs=1e-6)


@pytest.mark.parametrize(("bed_name", "scale"), [("R1", 1.50082434), ("R2", 0.29471037)])
def test_a_detached_ratio_is_another_gradient(bed_name, scale):
    here = bed(bed_name)
    got = here.gradient(uni(here, "forward_kl", log_ratio=here.log_ratio().detach()))
    assert got == pytest.approx((scale, ROWS["expanded_fkl"][BEDS.index(bed_name)][2]), abs=1e-6)


def test_weight_one_without_path_is_twice_sid_one():
    here = bed("R2", nodes=21)
    zero = torch.zeros(len(here.z), dtype=F64)
    one = DIVERGENCES["reverse_kl"]
    loss = uni_instruct_loss(*cleans(here), zero, one, path_term=False, normalise=False)
    torch.testing.assert_close(loss, 2 * sid_loss(*cleans(here), normalise=False), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["jensen_shannon", "chi2", "forward_kl"])
def test_path_term_differentiated_by_hand(name):
    """grad B = psi grad|D|^2 + psi' r (S_q - S_p) |D|^2, per sample."""
    here, divergence = bed("R2", nodes=21), DIVERGENCES[name]
    ratio_slope = {
        "jensen_shannon": lambda r: 2 * r**2 / (1 + r) ** 3,
        "chi2": lambda r: -4 * r**2,
        "forward_kl": lambda r: 0 * r,
    }[name]
    x = here.x_t.detach().requires_grad_()
    teacher, fake = here.teacher.score(x, here.t, {}), here.fake.score(x, here.t, {})
    log_ratio = here.teacher.log_density(x, here.t) - here.fake.log_density(x, here.t)
    r, square = log_ratio.exp(), (teacher - fake).square().sum(1)
    (auto,) = torch.autograd.grad((divergence.psi(r) * square).sum(), x, retain_graph=True)
    (first,) = torch.autograd.grad(square.sum(), x, retain_graph=True)
    by_hand = divergence.psi(r)[:, None] * first + (ratio_slope(r) * square)[:, None] * (teacher - fake)
    torch.testing.assert_close(auto, by_hand, rtol=1e-8, atol=1e-8)


def test_sid_is_linear_in_alpha():
    here = bed("R2", nodes=21)
    losses = {a: sid_loss(*cleans(here), alpha=a) for a in (0.0, 0.7, 1.0)}
    mixed = losses[0.0] + 0.7 * (losses[1.0] - losses[0.0])
    torch.testing.assert_close(losses[0.7], mixed, rtol=0, atol=1e-12)


def test_sim_l2_is_sid_one_in_another_space():
    here = bed("R2", nodes=41)
    factor = 2 * 0.64 / 0.6**4
    sim, sid = sim_loss(*scores(here), SquaredL2()), sid_loss(*cleans(here), normalise=False)
    torch.testing.assert_close(sim, factor * sid, rtol=1e-10, atol=1e-10)
    assert here.gradient(sim) == pytest.approx([factor * g for g in here.gradient(sid)], abs=1e-10)


def test_limits_of_the_pseudo_huber_sim():
    here = bed("R2", nodes=101)
    half = [g / 2 for g in here.gradient(LOSSES["sim_l2"](here))]
    wide = here.gradient(sim_loss(*scores(here), PseudoHuber(1e4)))
    assert [1e4 * g for g in wide] == pytest.approx(half, rel=1e-5)
    y = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    narrow = PseudoHuber(1e-9).gradient(y)
    torch.testing.assert_close(narrow.norm(dim=1), torch.ones(9, dtype=F64), rtol=0, atol=1e-12)


def test_sim_has_expectation_zero_for_any_student_and_not_without_the_conditional_score():
    for student in ((0.4, 1.1), (2.0, -0.7)):
        here = bed("R2", student=student)
        conditional, teacher, fake = scores(here)
        for distance in (SquaredL2(), PseudoHuber(1.0), Power(3.0)):
            assert here.mean(sim_loss(conditional, teacher, fake, distance)).item() == pytest.approx(0, abs=1e-9)
            assert abs(here.mean(sim_loss(conditional * 0, teacher, fake, distance)).item()) > 1e-3


@pytest.mark.parametrize(("c", "r1", "r2"), [(1.0, 1.22293794, 0.46936371), (0.1, 1.78364369, 0.90771985)])
def test_sim_monitor(c, r1, r2):
    for bed_name, golden in (("R1", r1), ("R2", r2)):
        here = bed(bed_name, nodes=401)
        value = distance_of(*here.view(Kind.SCORE), PseudoHuber(c))
        assert not value.requires_grad
        assert here.mean(value).item() == pytest.approx(golden, abs=1e-6)


def test_norms_couple_dimensions_for_huber_only():
    """In a product of two equal 1-D problems the L2 gradient is the sum, the Huber gradient is not."""
    process, generator = CosineVP(), torch.Generator().manual_seed(0)
    t = torch.full((64,), 0.4, dtype=F64)
    z, e = (torch.randn(64, 2, generator=generator, dtype=F64) for _ in range(2))

    def gradient(columns, distance):
        k = torch.tensor(1.3, dtype=F64, requires_grad=True)
        x0 = k * z[:, columns] - 0.4
        x_t = process.add_noise(x0, e[:, columns], t)
        dim = len(columns)
        teacher = gaussian(process, [0.7] * dim, 0.5).x0(x_t, t, {})
        fake = gaussian(process, [-0.4] * dim, 1.3).x0(x_t, t, {})
        return torch.autograd.grad(sim_loss(x0, teacher, fake, distance).sum(), k)[0].item()

    for distance, additive in ((SquaredL2(), True), (PseudoHuber(0.5), False)):
        both, parts = gradient([0, 1], distance), sum(gradient([i], distance) for i in (0, 1))
        assert (both == pytest.approx(parts, rel=1e-9)) is additive


# ---------------------------------------------------------------- laws all of them share


def every_loss(here):
    losses = {name: make(here) for name, make in LOSSES.items() if name != "path"}
    losses |= {name: uni(here, name) for name in DIVERGENCES}
    return losses | {
        "sid_normalised": sid_loss(*cleans(here), alpha=1.2),
        "uni_normalised": uni_instruct_loss(*cleans(here), here.log_ratio(), DIVERGENCES["jensen_shannon"]),
    }


def test_zero_pointwise_when_student_and_teacher_agree():
    here = bed("R1", student=(0.5, 0.7), nodes=21)
    for name, loss in every_loss(here).items():
        (gradient,) = torch.autograd.grad(loss.sum(), here.x0, retain_graph=True)
        assert gradient.abs().max().item() < 1e-11, name


@pytest.mark.parametrize("kind", [Kind.EPS, Kind.V, Kind.FLOW, Kind.VELOCITY, Kind.SCORE])
def test_the_teacher_may_predict_anything(kind):
    reference, other = bed("R2", nodes=21), bed("R2", nodes=21, kind=kind)
    expected, got = every_loss(reference), every_loss(other)
    for name, loss in expected.items():
        torch.testing.assert_close(got[name], loss, rtol=1e-9, atol=1e-9)
        a, b = (
            torch.autograd.grad(v.sum(), h.x0, retain_graph=True)[0] for v, h in ((loss, reference), (got[name], other))
        )
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-8)


def test_the_schedule_does_not_matter_in_clean_space():
    vp, edm = bed("R2", nodes=41), edm_bed("R2", sigma=0.75, nodes=41)
    for alpha in (0.0, 1.0, 1.2):
        losses = [sid_loss(*cleans(b), alpha=alpha) for b in (vp, edm)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-12)
    fisher = [b.mean(LOSSES["path"](b)).item() for b in (vp, edm)]
    assert fisher[1] == pytest.approx(0.64 * fisher[0], rel=1e-7)  # scores scale with 1/alpha


def test_gradients_flow_through_both_networks_and_not_into_weights():
    """A loss fed with detached predictions has another gradient: through-net terms are part of the method."""
    here = bed("R2", nodes=21)
    for make in (lambda q, p: sid_loss(here.x0, q, p), lambda q, p: sim_loss(here.x0, q, p, SquaredL2())):
        full, teacher_cut, fake_cut = (
            torch.autograd.grad(make(q, p).sum(), here.x0, retain_graph=True)[0]
            for q, p in (
                here.view(Kind.X0),
                (here.view(Kind.X0)[0].detach(), here.view(Kind.X0)[1]),
                (here.view(Kind.X0)[0], here.view(Kind.X0)[1].detach()),
            )
        )
        assert not torch.allclose(full, teacher_cut)
        assert not torch.allclose(full, fake_cut)
    weight = torch.ones(len(here.z), dtype=F64, requires_grad=True)
    loss = sid_loss(*cleans(here), weight=weight) + sim_loss(*cleans(here), SquaredL2(), weight=weight)
    loss = loss + uni_instruct_loss(*cleans(here), here.log_ratio(), DIVERGENCES["chi2"], weight=weight)
    assert torch.autograd.grad(loss.sum(), weight, allow_unused=True) == (None,)


def test_the_normaliser_is_detached():
    here = bed("R2", nodes=21)
    x0, teacher, fake = cleans(here)
    plain = sid_loss(x0, teacher, fake, normalise=False)
    omega = (x0 - teacher).abs().mean(1).clamp_min(1e-5)
    torch.testing.assert_close(sid_loss(x0, teacher, fake), plain / omega)
    own, attached, detached = (
        torch.autograd.grad(loss.sum(), here.k, retain_graph=True)[0]
        for loss in (sid_loss(x0, teacher, fake), plain / omega, plain / omega.detach())
    )
    torch.testing.assert_close(own, detached)
    assert abs((own - attached).item()) > 1e-3


def test_reductions():
    generator = torch.Generator().manual_seed(0)
    x0, teacher, fake = (torch.randn(3, 2, 4, generator=generator, dtype=F64) for _ in range(3))
    zero = torch.zeros(3, dtype=F64)
    for make in (
        lambda r: sid_loss(x0, teacher, fake, reduction=r),
        lambda r: sim_loss(x0, teacher, fake, SquaredL2(), reduction=r),
        lambda r: uni_instruct_loss(x0, teacher, fake, zero, DIVERGENCES["chi2"], reduction=r),
    ):
        torch.testing.assert_close(make("sum"), 8 * make("mean"))


# ---------------------------------------------------------------- what alpha does


def mean_gradient(k, alpha, v=1.0):
    """d/db of the expected SiD loss for a student at b = 1 against N(0, v^2): negative pushes the mean away."""
    here = bed("R1", student=(k, 1.0), nodes=61)
    here.teacher = gaussian(here.process, 0.0, v)
    return here.gradient(sid_loss(*cleans(here), alpha=alpha, normalise=False))[1]


def test_sign_of_the_push_on_the_mean():
    narrow, wide = 0.05, 3.0  # P < Q/2 and P > 3.5 Q at alpha 0.8, sigma 0.6, v 1
    assert 0.64 * narrow**2 + 0.36 < 0.5 * 1.0
    assert 0.64 * wide**2 + 0.36 > 3.5 * 1.0
    assert mean_gradient(narrow, 0.0) < 0
    assert mean_gradient(wide, 1.2) < 0
    for k in (narrow, 0.5, 1.0, wide):
        assert mean_gradient(k, 1.0) > 0


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_sid_gradient_in_closed_form(alpha):
    k, b, m, a, s, v = 1.3, -0.4, 0.7, 0.8, 0.6, 0.5
    big_p, big_q = a**2 * k**2 + s**2, a**2 * v**2 + s**2
    scale = s**4 / a**2
    along_b = a**2 * (b - m) / (big_p * big_q) * (1 + 2 * (1 - alpha) * (big_p - big_q) / big_q)
    along_k = 2 * a**2 * k * (big_p - big_q) / (big_p**2 * big_q) * (1 + (1 - alpha) * (big_p - big_q) / big_q)
    here = bed("R1")
    got = here.gradient(sid_loss(*cleans(here), alpha=alpha, normalise=False))
    # the k-component holds for equal means only; the means add their own part
    centred = bed("R1", student=(k, m))
    got_centred = centred.gradient(sid_loss(*cleans(centred), alpha=alpha, normalise=False))
    assert got[1] == pytest.approx(scale * along_b, abs=1e-9)
    assert got_centred[0] == pytest.approx(scale * along_k, abs=1e-9)


@pytest.mark.slow
def test_half_alpha_descends_the_fisher_divergence_from_the_kl_optimum():
    """At the reverse-KL optimum of R2 the Fisher divergence still has a slope, and SiD(1/2) finds it."""
    k, b = (torch.tensor(v, dtype=F64) for v in (1.3, 0.4))

    def at(k, b):
        return bed("R2", student=(k.item(), b.item()), nodes=101)

    for _ in range(300):
        here = at(k, b)
        teacher, fake = here.view(Kind.SCORE)
        step = here.gradient(((fake - teacher).detach() * here.x_t).sum(1))
        k, b = k - 0.5 * step[0], b - 0.5 * step[1]
    assert math.hypot(*step) < 1e-6
    here = at(k, b)
    step = here.gradient(sid_loss(*cleans(here), alpha=0.5, normalise=False))
    assert math.hypot(*step) > 1e-3
    after = at(k - 1e-2 * step[0], b - 1e-2 * step[1])
    assert after.mean(LOSSES["path"](after)).item() < here.mean(LOSSES["path"](here)).item()


# ---------------------------------------------------------------- the density ratio


def test_the_best_logit_is_the_log_ratio():
    """A quadratic logit trained to tell Gaussian real from fake samples is log r within 2 % on +-2 std."""
    x = torch.linspace(-9, 9, 2001, dtype=F64)[:, None]
    t = torch.full((2001,), 0.8, dtype=F64)
    real, fake = gaussian(EDM(), 0.7, 0.5), gaussian(EDM(), -0.4, 0.7)
    density = [d.log_density(x, t).exp() * 0.009 for d in (real, fake)]
    features = torch.cat([torch.ones_like(x), x, x**2], 1)
    weights = torch.zeros(3, dtype=F64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        logit = features @ weights
        loss = (
            density[0] * torch.nn.functional.softplus(-logit) + density[1] * torch.nn.functional.softplus(logit)
        ).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    inside = ((x[:, 0] + 0.4).abs() < 2 * math.hypot(0.7, 0.8)).nonzero()[:, 0]
    exact = (real.log_density(x, t) - fake.log_density(x, t)).exp()
    got = (features @ weights).exp().detach()
    torch.testing.assert_close(got[inside], exact[inside], rtol=0.02, atol=0)


# ---------------------------------------------------------------- denoising score matching


def test_the_best_denoiser_is_the_posterior_mean_under_every_weight():
    """A linear denoiser A x + B fitted under any weight: A = a k^2 / P, B = b - a A b."""
    here, k, b = bed("R1"), 1.3, -0.4
    big_p = 0.64 * k**2 + 0.36
    gain = 0.8 * k**2 / big_p
    x, x0 = here.x_t.detach(), here.x0.detach()
    for name in ("uniform", "snr", "karras", "min_snr", "flow"):
        slope, shift = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (gain, b - 0.8 * gain * b))
        weight = denoising_weight(name, here.alpha, here.sigma)
        loss = here.mean(denoising_loss(slope * x + shift, x0, weight))
        for gradient in torch.autograd.grad(loss, [slope, shift]):
            assert gradient.item() == pytest.approx(0, abs=1e-10)


def test_weights_make_the_losses_of_other_predictions():
    """|d eps|^2 = SNR |d x0|^2, |d v|^2 = (SNR + 1) |d x0|^2 (VP), |d flow|^2 = ((a + s)/s)^2 |d x0|^2."""
    generator = torch.Generator().manual_seed(0)
    process = CosineVP()
    t = torch.linspace(0.1, 0.9, 9, dtype=F64)
    c = process.coefficients(t)
    x_t = torch.randn(9, 3, generator=generator, dtype=F64)
    first = gaussian(process, [0.1, 0.2, 0.3], 0.5)
    second = gaussian(process, [0.3, -0.2, 0.1], 0.9)
    for name, kind in (("snr", Kind.EPS), ("snr_plus_one", Kind.V), ("flow", Kind.FLOW), ("uniform", Kind.X0)):
        direct = (first.view(kind, x_t, t, {}) - second.view(kind, x_t, t, {})).square().mean(1)
        weighted = denoising_loss(first.x0(x_t, t, {}), second.x0(x_t, t, {}), denoising_weight(name, c.alpha, c.sigma))
        torch.testing.assert_close(weighted, direct, rtol=1e-9, atol=1e-12)
    discounted = denoising_weight("discounted_snr", c.alpha, c.sigma)
    eps = (first.eps(x_t, t, {}) - second.eps(x_t, t, {})).square().mean(1)
    got = denoising_loss(first.x0(x_t, t, {}), second.x0(x_t, t, {}), discounted)
    torch.testing.assert_close(got, c.alpha**2 * eps, rtol=1e-9, atol=1e-12)


def test_weights_by_hand():
    a, s = torch.tensor([0.8, 0.1], dtype=F64), torch.tensor([0.4, 0.5], dtype=F64)
    by_name = {n: denoising_weight(n, a, s).tolist() for n in ("truncated_snr", "min_snr", "karras")}
    assert by_name["truncated_snr"] == pytest.approx([4.0, 1.0])
    assert by_name["min_snr"] == pytest.approx([4.0, 0.04])
    assert by_name["karras"] == pytest.approx([8.0, 4.04])
    assert denoising_weight("min_snr", a, s, gamma=3.0).tolist() == pytest.approx([3.0, 0.04])
    # EDM's own lambda = (sigma^2 + sd^2) / (sigma sd)^2
    sigma = torch.tensor([0.3], dtype=F64)
    edm = denoising_weight("karras", sigma * 0 + 1, sigma, sigma_data=0.5).item()
    assert edm == pytest.approx((0.09 + 0.25) / (0.3 * 0.5) ** 2)


def test_the_denoising_target_gets_no_gradient():
    x0 = torch.ones(2, 3, dtype=F64, requires_grad=True)
    predicted = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    denoising_loss(predicted, x0).sum().backward()
    assert x0.grad is None
    assert predicted.grad.tolist() == [[pytest.approx(-2 / 3)] * 3] * 2
