"""Points of a surface against points of the true one, one value per pair of clouds."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.losses.points import chamfer_loss
from fewstep.core.neighbours import mutual_nearest
from fewstep.core.tensors import precise


@torch.no_grad()
def chamfer_distance(points: Float[Tensor, "b n 3"], target: Float[Tensor, "b m 3"]) -> Float[Tensor, " b"]:
    """Return the mean of the two mean distances to the nearest point: core's ``chamfer_loss``, not squared.

    For samples of one and the same surface it is not 0 but shrinks as ``1 / sqrt(n)``.
    """
    return chamfer_loss(points, target)


@torch.no_grad()
def f_score(points: Float[Tensor, "b n 3"], target: Float[Tensor, "b m 3"], *, within: float) -> Float[Tensor, " b"]:
    """Return the harmonic mean of precision and recall (Knapitsch et al. 2017), 0 where both are.

    Precision: the share of ``points`` that have one of ``target`` ``within`` this distance; recall: the other way
    round. Raises UserError for batches that differ, empty clouds, and a distance that is not positive.
    """
    check(within > 0, f"F-score within={within:g}: the distance must be positive")
    _check_batches(points, target)
    scores = []
    for a, b in zip(points, target, strict=True):
        of_a, of_b = mutual_nearest(a, b)
        precision, recall = ((of.distances[:, 0] <= within).double().mean() for of in (of_a, of_b))
        total = precision + recall
        scores.append(2 * precision * recall / total if total > 0 else total)
    return torch.stack(scores)


@torch.no_grad()
def normal_consistency(
    points: Float[Tensor, "b n 3"],
    normals: Float[Tensor, "b n 3"],
    target: Float[Tensor, "b m 3"],
    target_normals: Float[Tensor, "b m 3"],
    *,
    oriented: bool = False,
) -> Float[Tensor, " b"]:
    """Return the mean ``|n . n'|`` of a point and its nearest, halved over the two directions (ONet, 1812.03828).

    In [0, 1]; ``oriented`` leaves out the absolute value, [-1, 1], so that surfaces inside out are seen. Normals are
    brought to unit length. Raises UserError for batches that differ, empty clouds, normals that are 0 or not finite.
    """
    _check_batches(points, target)
    check(points.shape == normals.shape, f"{tuple(points.shape)} points have {tuple(normals.shape)} normals")
    check(
        target.shape == target_normals.shape, f"{tuple(target.shape)} points have {tuple(target_normals.shape)} normals"
    )
    unit, target_unit = _unit(normals), _unit(target_normals)
    values = []
    for a, n, b, m in zip(points, unit, target, target_unit, strict=True):
        of_a, of_b = mutual_nearest(a, b)
        cosines = ((n * m[of_a.rows[:, 0]]).sum(1), (m * n[of_b.rows[:, 0]]).sum(1))
        values.append(torch.stack([(c if oriented else c.abs()).mean() for c in cosines]).mean())
    return torch.stack(values)


def _unit(normals: Tensor) -> Tensor:
    lengths = precise(normals).norm(dim=-1, keepdim=True)
    check(bool(((lengths > 0) & lengths.isfinite()).all()), "a normal is 0 or not finite; drop its point")
    unit: Tensor = precise(normals) / lengths
    return unit


def _check_batches(a: Tensor, b: Tensor) -> None:
    check(len(a) == len(b) > 0, f"clouds are compared pair by pair: got {len(a)} and {len(b)} of them")
