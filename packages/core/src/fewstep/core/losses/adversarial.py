"""Adversarial losses on logits: what a discriminator minimises, what a generator minimises, and gradient penalties.

A logit is positive for "real". Logits are "b" or "b *p" (several positions or heads of one sample): the nonlinearity is
applied to each, the mean is taken per sample. With ``softplus`` the best logit is ``log(p_real / p_fake)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import relu, softplus

from fewstep.core.errors import UserError, check
from fewstep.core.tensors import expand_to, precise, sample_mean, sample_sum

AdversarialKind = Literal["hinge", "hinge_margin", "softplus", "wgan", "lsgan", "relativistic"]
Unpaired = Literal["hinge", "hinge_margin", "softplus", "wgan", "lsgan"]

_Part = Callable[[Tensor], Tensor]
# of the discriminator on real logits, on fake logits, and of the generator on fake logits
_PARTS: Mapping[Unpaired, tuple[_Part, _Part, _Part]] = {
    "hinge": (lambda r: relu(1 - r), lambda f: relu(1 + f), lambda f: -f),
    "hinge_margin": (lambda r: relu(1 - r), lambda f: relu(1 + f), lambda f: relu(1 - f)),
    "softplus": (lambda r: softplus(-r), lambda f: softplus(f), lambda f: softplus(-f)),
    "wgan": (lambda r: -r, lambda f: f, lambda f: -f),
    "lsgan": (lambda r: (r - 1).square() / 2, lambda f: f.square() / 2, lambda f: (f - 1).square() / 2),
}


def discriminator_loss(
    real: Float[Tensor, "b *p"], fake: Float[Tensor, "b *q"], kind: AdversarialKind = "softplus"
) -> Float[Tensor, " b"]:
    """Return what a discriminator minimises, one value per pair of samples.

    ``hinge``: ``relu(1 - real) + relu(1 + fake)`` (LADD, arXiv 2403.12015; half of it in SANA-Sprint, 2503.09641).
    ``softplus``: ``softplus(-real) + softplus(fake)`` (DMD2, 2405.14867). ``wgan``: ``fake - real``. ``lsgan``:
    ``(real - 1)^2/2 + fake^2/2``. ``relativistic``: ``softplus(fake - real)`` position by position (R3GAN, 2501.05441).
    Detach generated samples before their logits are taken. Raises UserError when a relativistic pair does not match.
    """
    if kind == "relativistic":
        return _relativistic(real, fake)
    on_real, on_fake, _ = _PARTS[kind]
    return sample_mean(on_real(precise(real))) + sample_mean(on_fake(precise(fake)))


def generator_loss(
    fake: Float[Tensor, "b *p"], kind: AdversarialKind = "softplus", real: Float[Tensor, "b *q"] | None = None
) -> Float[Tensor, " b"]:
    """Return what a generator minimises against the discriminator of :func:`discriminator_loss`, per sample.

    ``hinge`` and ``wgan``: ``-fake``; ``hinge_margin``: ``relu(1 - fake)``, which has no gradient beyond logit 1 (PCM,
    arXiv 2405.18407); ``softplus``: ``softplus(-fake)``, non-saturating; ``lsgan``: ``(fake - 1)^2/2``;
    ``relativistic``: ``softplus(real - fake)``. Raises UserError when that one gets no real logits, or others than pair
    up.
    """
    if kind != "relativistic":
        return sample_mean(_PARTS[kind][2](precise(fake)))
    if real is None:
        raise UserError("the relativistic generator loss compares with real logits: give them")
    return _relativistic(fake, real)


def _relativistic(above: Tensor, below: Tensor) -> Tensor:
    check(
        above.shape == below.shape, f"relativistic pairs differ: {tuple(above.shape)} and {tuple(below.shape)} logits"
    )
    return sample_mean(softplus(precise(below) - precise(above)))


def input_gradient(logits: Float[Tensor, " b"], x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
    """Return ``d logit_i / d x_i`` with its own graph, for penalties; ``x`` must have required grad before the forward.

    Needs second derivatives of what lies between: attention kernels without them must be off (``SDPBackend.MATH``).
    Raises UserError when the logits do not depend on ``x``.
    """
    if not x.requires_grad or not logits.requires_grad:
        raise UserError("a gradient penalty needs x.requires_grad_() before the logits are computed, with gradients on")
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True, allow_unused=True)
    if gradient is None:
        raise UserError("a gradient penalty needs logits that depend on the tensor it is taken at")
    return gradient


def r1_penalty(logits: Float[Tensor, " b"], x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """Return ``|d logit / d x|^2`` summed over a sample's elements; R1 on real, R2 on generated samples.

    ``x`` is any tensor the logits come from: the noised sample, or features (cheap). The usual weight is ``gamma / 2``
    (arXiv 1801.04406; R3GAN, 2501.05441).
    """
    return sample_sum(precise(input_gradient(logits, x)).square())


def approximate_r1(logits: Float[Tensor, " b"], perturbed: Float[Tensor, " b"], scale: float) -> Float[Tensor, " b"]:
    """Return ``((logits - perturbed) / scale)^2``, whose mean over the perturbation tends to :func:`r1_penalty`.

    ``perturbed``: logits of ``x_s + scale n``, unit normal ``n``, at the *same* noise level and condition as ``logits``
    of ``x_s`` (APT, arXiv 2501.08316, where ``scale`` is not divided out: its weight is ours over ``scale^2``).
    Perturbing the clean sample instead compares two noise levels, which a discriminator may and should tell apart.
    Exact in expectation for linear logits.
    """
    check(scale > 0, f"approximate R1: the perturbation must be positive, got {scale:g}")
    return ((precise(perturbed) - precise(logits)) / scale).square()


def interpolate(
    real: Float[Tensor, "b *d"], fake: Float[Tensor, "b *d"], u: Float[Tensor, " b"]
) -> Float[Tensor, "b *d"]:
    """Return ``u real + (1 - u) fake`` per sample, detached and ready for :func:`lipschitz_penalty`."""
    share = expand_to(u, real)
    return (share * real + (1 - share) * fake).detach().to(real.dtype).requires_grad_()


def lipschitz_penalty(logits: Float[Tensor, " b"], x: Float[Tensor, "b *d"], slope: float = 1.0) -> Float[Tensor, " b"]:
    """Return ``(|d logit / d x| - slope)^2`` between real and generated samples (WGAN-GP, arXiv 1704.00028)."""
    return (r1_penalty(logits, x).clamp_min(1e-24).sqrt() - slope).square()


def with_misaligned(
    fake: Float[Tensor, "b *d"], real: Float[Tensor, "b *d"]
) -> tuple[Float[Tensor, "c *d"], Int[Tensor, " c"]]:
    """Return generated samples followed by real ones that belong to the wrong condition, and the row of each one's.

    The real sample of row i+1 is shown under the condition of row i, as a further fake: a discriminator that ignores
    the condition cannot tell it (SANA-Sprint, arXiv 2503.09641, section 3.3). Rows index conditions and noise levels.
    A batch of one has no neighbour: nothing is added.
    """
    rows = torch.arange(len(fake), device=fake.device)
    if len(fake) == 1:
        return fake, rows
    return torch.cat([fake, real.roll(-1, 0)]), torch.cat([rows, rows])


def per_pair(logits: Float[Tensor, "c *p"], batch: int) -> Float[Tensor, "b q"]:
    """Return logits of :func:`with_misaligned` with all those of one condition side by side, for the losses above."""
    return torch.cat([part.reshape(batch, -1) for part in torch.split(logits, batch)], 1)
