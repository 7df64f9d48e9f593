"""Single steps from one time to another, given a prediction.

One formula carries all first-order steps. With the clean sample ``x0`` and noise ``eps`` predicted at ``t``,

    x_s = alpha_s x0 + sigma_s (keep eps + sqrt(1 - keep^2) n) + anchor_s y,      n fresh noise,

where ``keep = 1`` is DDIM (Euler in variance-exploding coordinates, exact when x0 is constant), and smaller values
trade the predicted noise for fresh noise without changing the variance: DDIM-eta and ancestral sampling, ER-SDE,
re-noising (``keep = 0``) and TCD's gamma are choices of ``keep``. Nothing divides by alpha, so steps from pure noise
are exact too.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.core.prediction import Clean
from fewstep.core.process import Coefficients, Process
from fewstep.core.tensors import expand_to, precise


def level(process: Process, t: Float[Tensor, " b"] | None, like: Float[Tensor, "b *d"]) -> Coefficients:
    """Return the coefficients at ``t``; ``None`` is clean data: alpha 1, no noise, no anchor."""
    if t is not None:
        return process.coefficients(t)
    one = torch.ones(like.shape[0], dtype=torch.float64, device=like.device)
    return Coefficients(one, torch.zeros_like(one), torch.zeros_like(one))


def first_order_step(
    clean: Clean,
    after: Coefficients,
    *,
    keep: Float[Tensor, " b"] | None = None,
    noise: Float[Tensor, "b *d"] | None = None,
    anchor: Float[Tensor, "b *d"] | None = None,
) -> Float[Tensor, "b *d"]:
    """Return ``x_s`` by the formula of the module.

    ``after``: the coefficients at ``s``; ``keep``: in [0, 1], None for 1; ``noise``: unit normal, needed when keep is
    given. Raises UserError when fresh noise is called for and none is given.
    """
    eps = precise(clean.eps)
    if keep is not None:
        if noise is None:
            raise UserError("a stochastic step needs noise: give the sampler an rng")
        eps = expand_to(keep, eps) * eps + expand_to((1 - keep**2).clamp_min(0).sqrt(), eps) * precise(noise)
    x = expand_to(after.alpha, eps) * precise(clean.x0) + expand_to(after.sigma, eps) * eps
    return x if anchor is None else x + expand_to(after.anchor, x) * anchor


def ddim_step(
    clean: Clean, s: Float[Tensor, " b"] | None, process: Process, anchor: Float[Tensor, "b *d"] | None = None
) -> Float[Tensor, "b *d"]:
    """Return ``alpha_s x0 + sigma_s eps (+ anchor)``: DDIM, arXiv 2010.02502, for any process and either direction."""
    return first_order_step(clean, level(process, s, clean.x0), anchor=anchor if process.has_anchor else None)


def noise_ratio(process: Process, before: Coefficients, after: Coefficients) -> Float[Tensor, " b"]:
    """Return the ratio of the noise levels at ``s`` and ``t`` in the coordinates the forward chain adds noise in.

    ``tau_s / tau_t`` for scaling processes; ``sigma_s / sigma_t`` for a residual shift, whose chain never rescales the
    state.
    """
    if process.has_anchor:
        return after.sigma / before.sigma
    return (after.sigma * before.alpha) / (before.sigma * after.alpha)


def eta_keep(ratio: Float[Tensor, " b"], eta: float) -> Float[Tensor, " b"]:
    """Return the ``keep`` of DDIM-eta: ``sqrt(1 - eta^2 (1 - ratio^2))``; eta 1 is ancestral (DDPM) sampling.

    The fresh noise then has the variance ``eta^2 sigma_s^2 (1 - ratio^2)``, the posterior of the forward kernel for any
    process (arXiv 2010.02502, equation 16 is its variance-preserving case).
    """
    return (1 - eta**2 * (1 - ratio**2)).clamp_min(0).sqrt()


def back_out(
    x_t: Float[Tensor, "b *d"],
    x_s: Float[Tensor, "b *d"],
    before: Coefficients,
    after: Coefficients,
    anchor: Float[Tensor, "b *d"] | None = None,
) -> Float[Tensor, "b *d"]:
    """Return the x0 whose single DDIM step from ``x_t`` lands on ``x_s`` (arXiv 2202.00512, appendix G).

    ``(x_s - r x_t) / (alpha_s - r alpha_t)``, ``r = sigma_s / sigma_t``, after the anchor is removed.
    """
    core_t, core_s = precise(x_t), precise(x_s)
    if anchor is not None:
        core_t = core_t - expand_to(before.anchor, core_t) * anchor
        core_s = core_s - expand_to(after.anchor, core_s) * anchor
    ratio = after.sigma / before.sigma
    # the factors are taken in float64: their difference is what half precision loses at many steps
    gap = after.alpha - ratio * before.alpha
    return expand_to(1 / gap, core_s) * core_s - expand_to(ratio / gap, core_t) * core_t
