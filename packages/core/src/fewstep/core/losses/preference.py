"""Losses on pairs of samples of which one is preferred, the winner: one value per pair.

**Errors.** Diffusion-DPO compares errors ``e = mean (eps - eps_predicted)^2``, means over a sample's elements, of the
noise: predictions of another kind are converted first (``e = (alpha/sigma)^2 e_x0``, and ``e = alpha^2 e_v`` where
alpha^2 + sigma^2 = 1), so that ``beta`` means the same for every network. Both members of a pair are noised with the
same ``(t, eps)``.

**beta.** As in the paper's code: ``beta`` multiplies half the difference of mean errors. With errors summed over D
elements the same loss has ``beta / D``; code without the factor one half has ``beta / 2``. The paper's factor T w_t is
constant and part of it.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fewstep.core.errors import check
from fewstep.core.losses.surrogate import gradient_surrogate
from fewstep.core.tensors import Reduction, expand_to, precise

PreferenceKind = Literal["sigmoid", "hinge", "ipo"]


def reward_margin(
    winner: Float[Tensor, " b"],
    loser: Float[Tensor, " b"],
    winner_reference: Float[Tensor, " b"],
    loser_reference: Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Return ``(e_ref^w - e^w) - (e_ref^l - e^l)``: by how much more the model's errors fell on winners than on losers.

    The implicit reward of a sample is the fall of its error, up to ``beta / 2`` (arXiv 2311.12908, equation 14).
    """
    return (winner_reference - winner) - (loser_reference - loser)


def dpo_inside(margin: Float[Tensor, " b"], beta: float) -> Float[Tensor, " b"]:
    """Return ``beta/2 margin``, what the logistic function is taken of; UserError unless ``beta > 0``."""
    check(beta > 0, f"DPO: beta must be positive, got {beta:g}")
    return beta / 2 * margin


def preference_loss(inside: Float[Tensor, " b"], kind: PreferenceKind, beta: float) -> Float[Tensor, " b"]:
    """Return a loss of :func:`dpo_inside`, per pair: means over pairs are taken of it, never inside it.

    ``sigmoid``: ``-log sigmoid(inside)`` (Diffusion-DPO, arXiv 2311.12908, equation 14). ``hinge``:
    ``max(0, 1 - inside)`` (SLiC, 2305.10425). ``ipo``: ``(inside/beta - 1/(2 beta))^2`` (IPO, 2310.12036).
    """
    check(beta > 0, f"DPO: beta must be positive, got {beta:g}")
    if kind == "sigmoid":
        return -functional.logsigmoid(inside)
    if kind == "hinge":
        return (1 - inside).clamp_min(0)
    return (inside / beta - 1 / (2 * beta)).square()


def implicit_accuracy(inside: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return 1 where the model itself ranks the pair right, 1/2 where it is undecided, else 0."""
    return (inside.detach().sign() + 1) / 2


def pair_weight(margin: Float[Tensor, " b"], beta: float) -> Float[Tensor, " b"]:
    """Return ``sigmoid(-beta margin)``, detached: pairs that are ranked right already count less. 1/2 at margin 0."""
    return torch.sigmoid(-beta * margin.detach())


def pair_gradient_loss(
    winner: Float[Tensor, "b *d"],
    loser: Float[Tensor, "b *d"],
    winner_direction: Float[Tensor, "b *d"],
    loser_direction: Float[Tensor, "b *d"],
    *,
    loser_weight: float = 1.0,
    weight: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, " b"]:
    """Distillation-DPO: gradient ``weight d_w`` of the winner, ``-loser_weight weight d_l`` of the loser (2504.11447).

    ``d = eps_teacher - eps_fake``, each at its own sample and against the fake score of its own kind, ``weight`` from
    :func:`pair_weight` or None for 1. Exactly antisymmetric in the pair at ``loser_weight`` 1. The sign of the loser's
    part drives losers away from the teacher: 0 leaves score distillation on the better of two.
    """
    winner_direction, loser_direction = precise(winner_direction), precise(loser_direction)
    if weight is not None:
        factor = expand_to(weight.detach(), winner_direction)
        winner_direction, loser_direction = factor * winner_direction, factor * loser_direction
    towards = gradient_surrogate(winner, winner_direction, reduction=reduction)
    if loser_weight == 0:
        return towards
    return towards - loser_weight * gradient_surrogate(loser, loser_direction, reduction=reduction)


def choose(first_won: Bool[Tensor, " b"], first: Float[Tensor, "b *d"], second: Float[Tensor, "b *d"]) -> Tensor:
    """Return ``first`` where it won and ``second`` elsewhere, sample by sample; gradients reach the chosen one only."""
    return torch.where(first_won.reshape(-1, *([1] * (first.ndim - 1))), first, second)
