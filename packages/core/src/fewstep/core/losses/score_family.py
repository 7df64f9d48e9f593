"""Losses that differentiate *through* frozen networks: the score family (SiD, SIM, Uni-Instruct).

They minimise ``int w(t) E_p[h(r) |D|^2] dt``, ``D = S_p - S_q``. The parameters of both networks, and of the density
ratio, are frozen, but gradients flow through ``x_t`` into all of them: predictions given here must carry their graph.
Detaching one of them silently changes the method. Several of these losses have expectation zero whatever the student:
log :mod:`fewstep.core.losses.monitors` instead of their values.

The two forms of ``D`` share these functions. In x0 space pass clean predictions, ``x0_fake - x0_teacher = sigma^2/alpha
D``; in score space pass scores, with :func:`conditional_score` in the place of ``x0``. ``reduction`` is over elements.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fewstep.core.losses.distances import Distance
from fewstep.core.losses.divergence import FDivergence, density_ratio
from fewstep.core.losses.surrogate import self_normaliser
from fewstep.core.tensors import Reduction, expand_to, precise, reduce_sample


def conditional_score(
    x_t: Float[Tensor, "b *d"], x0: Float[Tensor, "b *d"], alpha: Float[Tensor, " b"], sigma: Float[Tensor, " b"]
) -> Float[Tensor, "b *d"]:
    """Return ``grad log q(x_t | x0) = -(x_t - alpha x0) / sigma^2``, attached to both; any anchor removed before."""
    return -(precise(x_t) - expand_to(alpha, x_t) * precise(x0)) / expand_to(sigma**2, x_t)


def _scaled(value: Tensor, x0: Tensor, teacher: Tensor, weight: Tensor | None, normalise: bool, floor: float) -> Tensor:
    if normalise:
        value = value / self_normaliser(x0, teacher, floor=floor)
    return value if weight is None else value * weight.detach().to(value.dtype)


def sid_loss(
    x0: Float[Tensor, "b *d"],
    x0_teacher: Float[Tensor, "b *d"],
    x0_fake: Float[Tensor, "b *d"],
    *,
    alpha: float = 1.0,
    weight: Float[Tensor, " b"] | None = None,
    normalise: bool = True,
    floor: float = 1e-5,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """Score identity distillation, ``<y_q - y_p, (y_q - x0) - alpha (y_q - y_p)>`` over ``mean|x0 - y_q|``.

    arXiv 2404.04057; y_q, y_p: teacher's and fake's clean predictions at the student's own ``x_t``. With
    an exact fake score ``alpha = 0.5`` is unbiased for half the Fisher divergence; larger values make up for the fake
    score's parameters being held fixed. Negative in expectation for ``alpha > 1``.
    """
    teacher, fake = precise(x0_teacher), precise(x0_fake)
    gap = teacher - fake
    value = reduce_sample(gap * ((teacher - precise(x0)) - alpha * gap), reduction)
    return _scaled(value, x0, teacher, weight, normalise, floor)


def sim_loss(
    target: Float[Tensor, "b *d"],
    teacher: Float[Tensor, "b *d"],
    fake: Float[Tensor, "b *d"],
    distance: Distance,
    *,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """Score implicit matching, ``-<d'(fake - teacher), fake - target>`` (arXiv 2410.16794, theorem 3.1).

    ``target``: the sample ``x0`` with clean predictions, or its :func:`conditional_score` with scores; a pseudo-Huber
    ``c`` lives in the space chosen. Zero in expectation; its gradient is that of ``E d(D)`` at a held law of ``x_t``.
    """
    fake = precise(fake)
    field = distance.gradient(fake - precise(teacher))
    value = -reduce_sample(field * (fake - precise(target)), reduction)
    return value if weight is None else value * weight.detach().to(value.dtype)


def uni_instruct_loss(
    target: Float[Tensor, "b *d"],
    teacher: Float[Tensor, "b *d"],
    fake: Float[Tensor, "b *d"],
    log_ratio: Float[Tensor, " b"],
    divergence: FDivergence,
    *,
    path_term: bool = True,
    weight: Float[Tensor, " b"] | None = None,
    normalise: bool = True,
    floor: float = 1e-5,
    ratio_limit: float = 10.0,
    reduction: Reduction = "sum",
) -> Float[Tensor, " b"]:
    """Expanded f-divergence, ``2 h(r) <teacher - fake, fake - target> + psi(r) |teacher - fake|^2``.

    arXiv 2505.20755; ``log_ratio``: log of teacher over student density at ``x_t``, ATTACHED to ``x_t`` (its parameters
    frozen), clamped to ``+-ratio_limit``. Without ``normalise`` the expected gradient is that of
    ``E_p[h(r) |fake - teacher|^2]``. Without ``path_term`` only the first part, the reweighted SIM, is returned.
    ``normalise`` needs clean predictions (not scores).
    """
    teacher, fake = precise(teacher), precise(fake)
    ratio = density_ratio(precise(log_ratio), ratio_limit)
    gap = teacher - fake
    value = 2 * divergence.h(ratio) * reduce_sample(gap * (fake - precise(target)), reduction)
    if path_term:
        value = value + divergence.psi(ratio) * reduce_sample(gap.square(), reduction)
    return _scaled(value, target, teacher, weight, normalise, floor)
