"""Continuous-time consistency (sCM, arXiv 2410.11081): the tangent, its normalisation, and the loss it gives.

Notation of the TrigFlow process: ``x_t = cos t x0 + sin t sigma_data eps``, network ``F`` = velocity / sigma_data,
consistency function ``f = cos t x_t - sigma_data sin t F``.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.tensors import expand_to, numel_per_sample, precise, sample_mean, sample_sum

Normalization = Literal["rms", "l2", "clip", "none"]


def jvp_tangents(
    t: Float[Tensor, " b"], velocity: Float[Tensor, "b *d"]
) -> tuple[Float[Tensor, "b *d"], Float[Tensor, " b"]]:
    """Return the directions in ``(x_t, t)`` whose derivative of ``F`` is ``cos t sin t dF/dt`` along the trajectory.

    ``velocity``: dx_t/dt. The factor stays inside the derivative so that it is bounded near ``t = pi/2``.
    """
    rate = t.double().cos() * t.double().sin()
    return expand_to(rate, velocity) * precise(velocity), rate


def consistency_tangent(
    x_t: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    network: Float[Tensor, "b *d"],
    velocity: Float[Tensor, "b *d"],
    derivative: Float[Tensor, "b *d"],
    *,
    warmup: float = 1.0,
    sigma_data: float = 0.5,
) -> Float[Tensor, "b *d"]:
    """Return ``g = -cos^2 t (sigma F - dx/dt) - r (cos t sin t x_t + sigma J)`` (arXiv 2410.11081, algorithm 1).

    ``network``: F, ``velocity``: dx_t/dt, ``derivative``: J = cos t sin t dF/dt, ``warmup``: r in [0, 1], ``sigma``:
    sigma_data. At r = 1, ``g = cos t df/dt``. Carries no gradient.
    """
    x, F, v, J = (precise(each.detach()) for each in (x_t, network, velocity, derivative))
    cos, sin = expand_to(t.double().cos(), x), expand_to(t.double().sin(), x)
    return -(cos**2) * (sigma_data * F - v) - warmup * (cos * sin * x + sigma_data * J)


def tangent_warmup(step: int, steps: int) -> float:
    """Return ``min(1, step / steps)``: the share of the tangent's unstable part (1 at once when ``steps`` is 0)."""
    return 1.0 if steps <= 0 else min(1.0, step / steps)


def normalize_tangent(
    tangent: Float[Tensor, "b *d"], kind: Normalization = "rms", c: float = 0.1
) -> Float[Tensor, "b *d"]:
    """Return the tangent bounded per sample.

    ``rms``: ``g / (|g|/sqrt(n) + c)``, the same for any resolution; ``l2``: ``g / (|g| + c)``, the paper's text, whose
    elements shrink as ``1/sqrt(n)``; ``clip``: elements limited to [-1, 1]; ``none``. Raises UserError unless ``c >
    0``.
    """
    check(c > 0, f"tangent normalisation: c must be positive, got {c:g}")
    if kind == "none":
        return tangent
    if kind == "clip":
        return tangent.clamp(-1, 1)
    norm = sample_sum(tangent.square()).sqrt()
    if kind == "rms":
        norm = norm / numel_per_sample(tangent) ** 0.5
    return tangent / expand_to(norm + c, tangent)


def prior_weight(t: Float[Tensor, " b"], sigma_data: float = 0.5) -> Float[Tensor, " b"]:
    """Return ``1 / (sigma_data tan t)``, float64 (arXiv 2410.11081, section 4.2)."""
    return t.double().cos() / (sigma_data * t.double().sin())


def tangent_loss(
    network: Float[Tensor, "b *d"],
    tangent: Float[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " b"] | None = None,
    log_variance: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, " b"]:
    """Return ``weight exp(-u) mean|F - stopgrad(F) - stopgrad(g)|^2 + u`` per sample (arXiv 2410.11081, equation 8).

    ``network``: F with gradient; ``log_variance``: u, learned (None: 0). The gradient with respect to F is
    ``-2 weight exp(-u) g / n``; the value of the squared term is the mean of ``g^2``, whatever F is.
    """
    value = sample_mean((precise(network) - precise(network.detach()) - tangent.detach()).square())
    if weight is not None:
        value = weight.to(value) * value
    return value if log_variance is None else torch.exp(-log_variance.to(value)) * value + log_variance.to(value)
