"""Gaussians as samples of a Markov chain: dead ones move onto live ones, which look as before, and all jitter.

In plain torch; the formulas are those of "3D Gaussian Splatting as Markov Chain Monte Carlo", arXiv 2404.09591.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.rng import Rng
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.gaussians.projection import covariances

MOST = 51  # Gaussians that one may become at a time; more of them count as so many
DEAD = 0.005  # an opacity up to this shows next to nothing
STEEP = 100.0  # how suddenly noise stops where opacities grow


def split_in_place(
    opacities: Float[Tensor, " n"], scales: Float[Tensor, "n 3"], copies: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
    """Return opacities and scales of which ``copies`` in one place look like one Gaussian (equation 9).

    Their alphas composite to its opacity at the centre, and along any line through it to its integral.
    """
    count = copies.clamp(1, MOST)
    old = opacities.double().clamp_max(1 - 1e-7)
    new = -torch.expm1(torch.log1p(-old) / count)
    # the integral of 1 - (1 - o g)^N over a line, where that of g^j is 1 / sqrt(j) of g's
    power = torch.arange(1, MOST + 1, device=old.device)
    binomials = torch.tensor([[math.comb(n, j) for j in range(1, MOST + 1)] for n in range(MOST + 1)])
    signed = binomials.double().to(old.device)[count] * (1 - 2 * ((power + 1) % 2)) / power.sqrt()
    integral = (signed * new[:, None] ** power).sum(dim=-1)
    return new.to(opacities.dtype), (scales * (old / integral)[:, None]).to(scales.dtype)


@torch.no_grad()
def relocated(gaussians: Gaussians, rng: Rng, dead: float = DEAD) -> tuple[Gaussians, Bool[Tensor, " n"]]:
    """Return as many Gaussians, those with opacities up to ``dead`` moved onto others, and which rows are new.

    Live ones are chosen by their opacity; each of them and the dead on it share what it was, so pictures stay. Where
    none is alive nothing is moved.
    """
    gone = gaussians.opacities <= dead
    rows = gone.nonzero()[:, 0]
    if len(rows) in (0, len(gaussians)):
        return gaussians, torch.zeros_like(gone)
    sources = _chosen(gaussians.opacities.masked_fill(gone, 0), len(rows), rng.fork("relocated"))
    shared = _shared(gaussians, sources, dead)
    moved = {each.name: _values(shared, each.name).index_copy(0, rows, _values(shared, each.name)[sources])
             for each in fields(shared)}  # fmt: skip
    return Gaussians(**moved), gone.index_fill(0, sources, True)


@torch.no_grad()
def grown(gaussians: Gaussians, count: int, rng: Rng, dead: float = DEAD) -> tuple[Gaussians, Bool[Tensor, " m"]]:
    """Return the Gaussians and ``count`` more at the end, each sharing what one was, and which rows are new.

    UserError where there is nothing to begin with.
    """
    check(len(gaussians) > 0 or count == 0, "no Gaussians to grow from: begin with some")
    if count == 0:
        return gaussians, torch.zeros_like(gaussians.opacity_logits, dtype=torch.bool)
    sources = _chosen(gaussians.opacities, count, rng.fork("grown"))
    shared = _shared(gaussians, sources, dead)
    more = {each.name: torch.cat([_values(shared, each.name), _values(shared, each.name)[sources]])
            for each in fields(shared)}  # fmt: skip
    fresh = torch.ones(len(gaussians) + count, dtype=torch.bool, device=sources.device)
    fresh[: len(gaussians)] = False
    return Gaussians(**more), fresh.index_fill(0, sources, True)


@torch.no_grad()
def exploration(gaussians: Gaussians, scale: float, rng: Rng, dead: float = DEAD) -> Float[Tensor, "n 3"]:
    """Return noise for the means, shaped like each Gaussian, and gone where its opacity is well above ``dead``."""
    noise = _everywhere(rng.fork("exploration")).normal("noise", (len(gaussians), 3))[0].to(gaussians.means)
    stays = torch.sigmoid(STEEP * (dead - gaussians.opacities))
    spread = covariances(gaussians.quaternions, gaussians.scales)
    return scale * stays[:, None] * (spread @ noise[..., None])[..., 0]


def _chosen(weights: Tensor, count: int, rng: Rng) -> Tensor:
    """Return ``count`` rows drawn by their weights, with repetition."""
    sums = weights.double().cumsum(0)
    draws = _everywhere(rng).uniform("rows", (count,))[0].to(sums.device) * sums[-1]
    return torch.searchsorted(sums, draws, right=True).clamp_max(len(weights) - 1)


def _everywhere(rng: Rng) -> Rng:
    """Return a generator that is the same in every process."""
    return replace(rng, ids=(0,))


def _shared(gaussians: Gaussians, sources: Tensor, dead: float) -> Gaussians:
    """Return the Gaussians, those that others will copy ready to be that many."""
    copies = torch.bincount(sources, minlength=len(gaussians)) + 1
    own = (copies > 1).nonzero()[:, 0]
    opacities, scales = split_in_place(gaussians.opacities[own], gaussians.scales[own], copies[own])
    logits = opacities.clamp(dead, 1 - torch.finfo(opacities.dtype).eps).logit()
    return replace(
        gaussians,
        opacity_logits=gaussians.opacity_logits.index_copy(0, own, logits),
        log_scales=gaussians.log_scales.index_copy(0, own, scales.log()),
    )


def _values(gaussians: Gaussians, name: str) -> Tensor:
    values: Tensor = getattr(gaussians, name)
    return values
