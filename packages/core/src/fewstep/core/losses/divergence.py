"""f-divergences ``D_f(q || p) = E_p[f(r)]``, r = q/p, teacher over student, through the weight ``h(r) = r^2 f''(r)``.

``h`` is all that distillation needs of ``f``: it weighs the score gap in the integral family, and its expectation
``E_p[h(r) |S_p - S_q|^2]`` is the rate at which noise destroys the divergence (de Bruijn), the expanded family's loss.
``psi(r) = h - r h'`` weighs the path term there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError, nearest

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FDivergence:
    """A divergence by its generator ``f``, its weight ``h = r^2 f''`` and ``slope = h'``, functions of ``r > 0``."""

    name: str
    f: Function
    h: Function
    slope: Function

    def psi(self, r: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return ``h(r) - r h'(r)``."""
        return self.h(r) - r * self.slope(r)


DivergenceName = Literal[
    "reverse_kl", "forward_kl", "jensen_shannon", "jeffreys", "chi2", "neyman", "hellinger", "softened_reverse_kl"
]

DIVERGENCES: dict[str, FDivergence] = {
    d.name: d
    for d in (
        FDivergence("reverse_kl", lambda r: -r.log(), lambda r: r * 0 + 1, lambda r: r * 0),
        FDivergence("forward_kl", lambda r: r * r.log(), lambda r: r, lambda r: r * 0 + 1),
        # KL(p || m) + KL(q || m), m the mean of p and q
        FDivergence(
            "jensen_shannon",
            lambda r: r * r.log() - (1 + r) * ((1 + r) / 2).log(),
            lambda r: r / (1 + r),
            lambda r: (1 + r) ** -2,
        ),
        FDivergence("jeffreys", lambda r: (r - 1) * r.log(), lambda r: 1 + r, lambda r: r * 0 + 1),
        FDivergence("chi2", lambda r: (r - 1) ** 2, lambda r: 2 * r**2, lambda r: 4 * r),
        FDivergence("neyman", lambda r: 1 / r, lambda r: 2 / r, lambda r: -2 / r**2),
        # int (sqrt p - sqrt q)^2
        FDivergence("hellinger", lambda r: (1 - r.sqrt()) ** 2, lambda r: r.sqrt() / 2, lambda r: 0.25 / r.sqrt()),
        FDivergence(
            "softened_reverse_kl",
            lambda r: (1 + r) * ((1 + r) / r).log(),
            lambda r: 1 / (1 + r),
            lambda r: -((1 + r) ** -2),
        ),
    )
}


def find_divergence(name: str | FDivergence) -> FDivergence:
    """Return a divergence by name (or itself); UserError naming the nearest one."""
    if isinstance(name, FDivergence):
        return name
    if name not in DIVERGENCES:
        raise UserError(f"no divergence '{name}': {nearest(name, DIVERGENCES)}")
    return DIVERGENCES[name]


def density_ratio(log_ratio: Float[Tensor, " b"], limit: float = 10.0) -> Float[Tensor, " b"]:
    """Return ``r = exp(log_ratio)`` with the logarithm clamped to ``[-limit, limit]``, attached to it within.

    A discriminator of real against fake samples at one noise level has ``log r`` as its best logit.
    """
    return torch.exp(log_ratio.clamp(-limit, limit))
