"""Losses whose gradient is a difference of two predictions at the same ``(x_t, t)``: the integral family.

With ``L = int w(t) D_f(q_t || p_t) dt`` (q teacher, p student, r = q/p, h(r) = r^2 f''(r)), the generator's gradient is
``E[w h(r) <S_p - S_q, dx_t>]``. Nothing is differentiated through a network: predictions are taken under no_grad and
detached here once more. Every loss is a :func:`~fewstep.core.losses.surrogate.gradient_surrogate` of ``x``, so its
value says nothing about convergence; log :func:`~fewstep.core.losses.monitors.gap` instead.

Throughout: ``x`` is the student's sample "b *d" with its graph, ``weight`` one number per sample or None for 1, and
``reduction`` says whether the gradient is the stated vector ("sum") or that over the number of elements ("mean").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.losses.surrogate import gradient_surrogate, self_normaliser
from fewstep.core.tensors import Reduction, expand_to, precise, sample_mean

SDSWeight = Literal["uniform", "sigma2", "alpha_sigma2", "sigma", "tau"]
Normalizer = Literal["none", "clean", "noisy"]

_SDS_WEIGHTS: Mapping[SDSWeight, Callable[[Tensor, Tensor], Tensor]] = {
    "uniform": lambda alpha, sigma: sigma * 0 + 1,
    "sigma2": lambda alpha, sigma: sigma**2,  # DreamFusion
    "alpha_sigma2": lambda alpha, sigma: alpha * sigma**2,  # Fantasia3D
    "sigma": lambda alpha, sigma: sigma,  # square root of DreamFusion's
    "tau": lambda alpha, sigma: sigma / alpha,  # the same difference, of clean samples
}


def sds_weight(name: SDSWeight, alpha: Float[Tensor, " b"], sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return the weight of a noise-space gradient by its name: 1, sigma^2, alpha sigma^2, sigma or sigma/alpha."""
    return _SDS_WEIGHTS[name](alpha, sigma)


def normalizing_weight(
    name: Normalizer,
    x: Float[Tensor, "b *d"],
    eps_teacher: Float[Tensor, "b *d"],
    eps: Float[Tensor, "b *d"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
    *,
    floor: float = 0.1,
) -> Float[Tensor, " b"]:
    """Return ``1 / (mean |x - x0_teacher| + floor)`` of each sample, detached; 1 for ``none``.

    What progressive rendering distillation (arXiv 2503.21694) multiplies the ``tau``-weighted difference with.
    ``noisy``: the teacher's clean sample at ``x_t``, which differs from ``x`` by ``tau (eps_teacher - eps)`` (DMD's
    normaliser). ``clean``: ``(x - sigma eps_teacher)/alpha``, as its released code has it, which forgets the noise.
    """
    if name == "none":
        return torch.ones_like(alpha)
    x, eps_teacher, eps = (precise(each.detach()) for each in (x, eps_teacher, eps))
    if name == "noisy":
        away = expand_to(sigma / alpha, x) * (eps_teacher - eps)
    else:
        away = x - (x - expand_to(sigma, x) * eps_teacher) / expand_to(alpha, x)
    return 1 / (sample_mean(away.abs()) + floor)


def _gap_loss(x: Tensor, above: Tensor, below: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    direction = precise(above).detach() - precise(below).detach()
    if weight is not None:
        direction = direction * expand_to(weight.detach(), direction)
    return gradient_surrogate(x, direction, reduction=reduction)


def sds_loss(
    x: Float[Tensor, "b *d"],
    eps_teacher: Float[Tensor, "b *d"],
    eps: Float[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """Score distillation sampling, gradient ``w (eps_teacher - eps)`` (DreamFusion, arXiv 2209.14988, equation 3).

    ``eps_teacher``: the guided prediction; ``eps``: the noise that was added. The student is taken for a point: use it
    to optimise a sample, never a generator (its variance collapses).
    """
    return _gap_loss(x, eps_teacher, eps, weight, reduction)


def x0_sds_loss(
    x: Float[Tensor, "b *d"],
    x0_teacher: Float[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """SDS on clean samples, gradient ``w (x - x0_teacher)`` (MVDream, arXiv 2308.16512).

    Equals :func:`sds_loss` with weight ``w sigma / alpha``. For std-rescaled guidance see :func:`rescale_groups`.
    """
    return _gap_loss(x, x, x0_teacher, weight, reduction)


def rescale_groups(
    x0_guided: Float[Tensor, "b *d"], x0_cond: Float[Tensor, "b *d"], phi: float, group: int = 1
) -> Float[Tensor, "b *d"]:
    """Return ``phi x0_guided std(x0_cond)/std(x0_guided) + (1 - phi) x0_guided``, one std per ``group`` of samples.

    MVDream takes it over the 4 views of an object, with ``phi = 0.5``. Raises UserError when groups do not fit.
    """
    check(len(x0_guided) % group == 0, f"a batch of {len(x0_guided)} does not divide into groups of {group} views")
    guided, cond = precise(x0_guided), precise(x0_cond)
    ratio = cond.reshape(len(cond) // group, -1).std(1) / guided.reshape(len(cond) // group, -1).std(1)
    return guided * (phi * expand_to(ratio.repeat_interleave(group), guided) + (1 - phi))


def sjc_loss(
    x: Float[Tensor, "b *d"],
    x_noisy: Float[Tensor, "b *d"],
    denoised: Float[Tensor, "b *d"],
    tau: Float[Tensor, " b"],
    *,
    variance_reduced: bool = True,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """Score Jacobian chaining, in variance-exploding coordinates (arXiv 2212.00774).

    ``x_noisy = x + tau n``, ``denoised`` the teacher's x0 there. Gradient ``w (x - denoised)/tau``, which is
    ``w (eps_teacher - n)``, or ``w (x_noisy - denoised)/tau = w eps_teacher`` when not ``variance_reduced``.
    """
    factor = 1 / tau if weight is None else weight / tau
    return _gap_loss(x, x if variance_reduced else x_noisy, denoised, factor, reduction)


def csd_loss(
    x: Float[Tensor, "b *d"],
    eps_cond: Float[Tensor, "b *d"],
    eps_uncond: Float[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """Classifier score distillation, gradient ``w (eps_cond - eps_uncond)`` (arXiv 2310.19415)."""
    return _gap_loss(x, eps_cond, eps_uncond, weight, reduction)


def csd_negative_loss(
    x: Float[Tensor, "b *d"],
    eps_cond: Float[Tensor, "b *d"],
    eps_negative: Float[Tensor, "b *d"],
    eps_uncond: Float[Tensor, "b *d"],
    negative_share: float,
    *,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """CSD away from a negative prompt, gradient ``w (eps_cond - s eps_negative - (1 - s) eps_uncond)``.

    arXiv 2310.19415, with its coefficients ``b1 = -s`` and ``b2 = s - 1``, which sum to -1 with any ``s``;
    ``negative_share`` is annealed, e.g. from 0 to 1. Raises UserError outside [0, 1].
    """
    check(0 <= negative_share <= 1, f"negative_share must lie in [0, 1], got {negative_share:g}")
    reference = negative_share * precise(eps_negative) + (1 - negative_share) * precise(eps_uncond)
    return _gap_loss(x, eps_cond, reference, weight, reduction)


def vsd_loss(
    x: Float[Tensor, "b *d"],
    eps_teacher: Float[Tensor, "b *d"],
    eps_fake: Float[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """Variational score distillation, gradient ``w (eps_teacher - eps_fake)`` (arXiv 2305.16213, equation 9).

    With ``w = sigma^2`` and both predictions guided alike it is SwiftBrush (arXiv 2312.05239).
    """
    return _gap_loss(x, eps_teacher, eps_fake, weight, reduction)


def asd_loss(
    x: Float[Tensor, "b *d"],
    eps_teacher: Float[Tensor, "b *d"],
    eps_shifted: Float[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """Asynchronous score distillation, gradient ``w (eps_teacher(x_t, t) - eps_shifted)`` (arXiv 2407.02040).

    ``eps_shifted``: the teacher's unguided conditional prediction at the noisier time of :func:`asd_time`, same noise.
    """
    return _gap_loss(x, eps_teacher, eps_shifted, weight, reduction)


def asd_time(
    t: Float[Tensor, " b"], t_low: float, share: Float[Tensor, " b"] | float, ratio: float = 0.1
) -> Float[Tensor, " b"]:
    """Return ASD's noisier time ``t + share ratio (t - t_low)``, ``share`` in [0, 1] (arXiv 2407.02040)."""
    return t + share * ratio * (t - t_low)


def ism_loss(
    x: Float[Tensor, "b *d"],
    eps_teacher: Float[Tensor, "b *d"],
    eps_inverse: Float[Tensor, "b *d"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
    *,
    scale: float = 1.0,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """Interval score matching, gradient ``scale w sigma/alpha (eps_teacher(x_t) - eps_inverse(x_s))``.

    LucidDreamer (arXiv 2311.11284). ``x_s`` and ``x_t`` come from DDIM inversion with the empty prompt;
    ``eps_inverse`` is the prediction that inversion made at ``x_s``, the less noisy of the two; alpha, sigma are at t.
    """
    factor = scale * sigma / alpha
    return _gap_loss(x, eps_teacher, eps_inverse, factor if weight is None else factor * weight, reduction)


def score_difference_loss(
    x: Float[Tensor, "b *d"],
    eps_sample: Float[Tensor, "b *d"],
    eps_reference: Float[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, " b"]:
    """Two samples under common noise, gradient ``w (eps_sample - eps_reference)`` (TAD-SR, arXiv 2408.07476).

    One frozen network's predictions at ``x`` and at a reference sample, noised with the *same* noise at the same ``t``:
    for Gaussian data the difference is ``alpha sigma/(alpha^2 v + sigma^2) (x - reference)`` whatever the noise, and it
    is zero where the two agree, for any network. With independent noises it would be as noisy as :func:`sds_loss`.
    Delta denoising score (arXiv 2304.07090) is the same with a condition each. Predictions come of a difference divided
    by sigma: at little noise, ask the network in full precision.
    """
    return _gap_loss(x, eps_sample, eps_reference, weight, reduction)


def diff_instruct_loss(
    x: Float[Tensor, "b *d"],
    x0_teacher: Float[Tensor, "b *d"],
    x0_fake: Float[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """Diff-Instruct, gradient ``w (x0_fake - x0_teacher)`` (arXiv 2305.18455, weighted as in its code).

    ``x0_fake - x0_teacher = sigma^2/alpha (S_p - S_q)``: the expected gradient is ``(sigma/alpha)^2`` times that of
    KL(p_t || q_t).
    """
    return _gap_loss(x, x0_fake, x0_teacher, weight, reduction)


def score_gap_loss(
    x_t: Float[Tensor, "b *d"],
    score_teacher: Float[Tensor, "b *d"],
    score_fake: Float[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """A divergence at one noise level, gradient ``w (S_p - S_q)`` w.r.t. ``x_t`` (arXiv 2502.15681, theorem 1).

    With ``w = h(r)`` (:mod:`fewstep.core.losses.divergence`) the expected gradient is that of ``D_f(q_t || p_t)``.
    """
    return _gap_loss(x_t, score_fake, score_teacher, weight, reduction)


def distribution_matching_loss(
    x: Float[Tensor, "b *d"],
    x0_teacher: Float[Tensor, "b *d"],
    x0_fake: Float[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " b"] | None = None,
    normalise: bool = True,
    floor: float = 1e-6,
    reduction: Reduction = "mean",
) -> Float[Tensor, " b"]:
    """DMD and DMD2, gradient ``w (x0_fake - x0_teacher) / mean|x - x0_teacher|`` (arXiv 2311.18828, 2405.14867).

    The paper's weight has one more factor alpha, its released code has not: pass ``weight=alpha`` for the paper's.
    f-distill is ``weight = h(r)`` over its mean.
    """
    scale = 1 / self_normaliser(x, x0_teacher, floor=floor) if normalise else None
    if weight is not None:
        scale = weight if scale is None else scale * weight.to(scale.dtype)
    return _gap_loss(x, x0_fake, x0_teacher, scale, reduction)
