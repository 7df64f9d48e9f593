"""Losses and geometry of point clouds "b n 3": Chamfer distance, surface variation, ScoreLiDAR's structural terms.

Nearest neighbours are found without gradient; the distances to them carry it. Roots have a small number under them, so
that gradients of coincident points are finite, and are shifted so that they are still zero there.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewstep.core.errors import check
from fewstep.core.neighbours import mutual_nearest, nearest
from fewstep.core.tensors import compute_dtype, precise, sample_mean

Correspondence = Literal["nearest", "index"]
"""Which generated point a target's point is compared with: the nearest one, or that of the same row."""

FLOOR = 1e-12  # under roots, square metres: distances are short by at most a micrometre
PIECE = 2**22  # points or pairs of points held at a time


def _root(square: Tensor) -> Tensor:
    """``sqrt(square + FLOOR) - sqrt(FLOOR)``, without the difference of near-equal numbers."""
    root: Tensor = square / ((square + FLOOR).sqrt() + FLOOR**0.5)
    return root


def _paired(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    check(
        len(pred) == len(target) and min(pred.shape[1], target.shape[1]) > 0,
        f"point losses compare clouds sample by sample, none empty: got {tuple(pred.shape)} and {tuple(target.shape)}",
    )
    dtype = compute_dtype(pred, target)
    return pred.to(dtype), target.to(dtype)


def chamfer_loss(
    pred: Float[Tensor, "b n 3"], target: Float[Tensor, "b m 3"], *, squared: bool = False
) -> Float[Tensor, " b"]:
    """Return ``(mean_p min_q |p - q| + mean_q min_p |p - q|) / 2`` per sample; with ``squared``, ``|p - q|^2``.

    The halved sum, as LiDAR completion reports it (LiDiff, arXiv 2403.13470), not the sum. Differentiable in both
    clouds. Raises UserError for batches that differ, empty clouds and coordinates that are not finite.
    """
    pred, target = _paired(pred, target)
    values = []
    for p, q in zip(pred, target, strict=True):
        of_p, of_q = mutual_nearest(p, q)
        halves = ((p - q[of_p.rows[:, 0]]).square().sum(1), (q - p[of_q.rows[:, 0]]).square().sum(1))
        values.append(torch.stack([(half if squared else _root(half)).mean() for half in halves]).mean())
    return torch.stack(values)


def scene_loss(
    pred: Float[Tensor, "b n 3"],
    target: Float[Tensor, "b m 3"],
    *,
    correspondence: Correspondence = "nearest",
    squared: bool = False,
) -> Float[Tensor, " b"]:
    """Return the scene term of ScoreLiDAR (arXiv 2412.03515): :func:`chamfer_loss`, or row against row.

    ``index`` is what the authors' code computes, the mean of ``(pred - target)^2`` over all coordinates. Where the rows
    of ``target`` are in random order it only pulls each point to the middle of the scene: its mean gradient is
    ``2 (x_i - mean(target)) / (3 n)``. Raises UserError when that one gets clouds of different sizes.
    """
    if correspondence == "nearest":
        return chamfer_loss(pred, target, squared=squared)
    pred, target = _paired(pred, target)
    check(pred.shape == target.shape, f"row against row: {pred.shape[1]} and {target.shape[1]} points do not pair up")
    return sample_mean((pred - target).square())


def surface_variation(points: Float[Tensor, "b n 3"], k: int = 180) -> Float[Tensor, "b n"]:
    """Return ``l_min / (l_1 + l_2 + l_3)`` of the covariance of each point's ``k`` nearest others (Pauly et al. 2002).

    In [0, 1/3]: 0 on planes and lines, and where all neighbours coincide. Differentiable, neighbours held fixed.
    Raises UserError when a cloud has no ``k`` others, or ``k < 1``.
    """
    count = points.shape[1]
    check(1 <= k < count, f"surface variation: k={k} nearest others need 1 <= k < {count} points")
    points = precise(points)
    found = []
    for cloud in points:
        rows = nearest(cloud, cloud, k + 1).rows[:, 1:]  # without the point itself, or a twin of it
        found.append(torch.cat([_variation(cloud[part]) for part in torch.split(rows, max(1, PIECE // k))]))
    return torch.stack(found)


def _variation(neighbourhoods: Float[Tensor, "n k 3"]) -> Float[Tensor, " n"]:
    wide = neighbourhoods.double()
    wide = wide - wide.mean(1, keepdim=True)
    covariance = wide.mT @ wide / wide.shape[1]
    spread: Tensor = torch.linalg.eigvalsh(covariance)
    total = covariance.diagonal(dim1=1, dim2=2).sum(1)
    flat = total <= 0
    share = spread[:, 0] / torch.where(flat, 1, total)
    return torch.where(flat, 0, share).clamp(0, 1 / 3).to(neighbourhoods.dtype)


@torch.no_grad()
def select_key_points(
    target: Float[Tensor, "b n 3"],
    uniforms: Float[Tensor, "b n"],
    *,
    share: float = 0.1,
    k: int = 180,
    keep: float = 1 / 3,
) -> Int[Tensor, "b q"]:
    """Return rows of key points: of a random ``share`` of each cloud the fraction ``keep`` of highest curvature.

    ``uniforms`` make the choice: the points with the smallest are the random ones. Neighbours of the curvature
    (:func:`surface_variation`) are counted among those. The defaults are ScoreLiDAR's, n / 30 key points. Raises
    UserError when a share is not in (0, 1], or leaves no more than ``k`` points.
    """
    check(0 < share <= 1 and 0 < keep <= 1, f"key points: share={share:g} and keep={keep:g} must be in (0, 1]")
    chosen = max(1, round(share * target.shape[1]))
    subset = uniforms.topk(chosen, dim=1, largest=False).indices
    curvature = surface_variation(_rows_of(target, subset), k)
    highest = curvature.topk(max(1, round(keep * chosen)), dim=1).indices
    return subset.gather(1, highest)


def structural_loss(
    pred: Float[Tensor, "b n 3"],
    target: Float[Tensor, "b m 3"],
    key_points: Int[Tensor, "b q"],
    *,
    correspondence: Correspondence = "nearest",
) -> Float[Tensor, " b"]:
    """Return the point term of ScoreLiDAR (arXiv 2412.03515): the mean of ``(|p_i - p_j| - |q_i - q_j|)^2``.

    q_i: key points of the target, by row (:func:`select_key_points`). p_i: the generated point nearest to q_i, held
    fixed; with ``index``, as in the authors' code, that of the same row, which means nothing unless rows correspond.
    The mean is over all q^2 pairs, made in pieces and again in the backward pass, so that memory stays bounded. Raises
    UserError for clouds that do not match, and coordinates that are not finite.
    """
    pred, target = _paired(pred, target)
    keys = _rows_of(target, key_points)
    if correspondence == "index":
        check(pred.shape == target.shape, f"row by row: {pred.shape[1]} and {target.shape[1]} points do not pair up")
        matched = _rows_of(pred, key_points)
    else:
        matched = torch.stack([p[nearest(q, p).rows[:, 0]] for p, q in zip(pred, keys, strict=True)])
    return _distance_matrix_loss(matched, keys)


def _rows_of(points: Tensor, rows: Tensor) -> Tensor:
    return points.gather(1, rows[:, :, None].expand(-1, -1, 3))


def _distance_matrix_loss(p: Float[Tensor, "b q 3"], q: Float[Tensor, "b q 3"]) -> Float[Tensor, " b"]:
    count = p.shape[1]
    rows = max(1, PIECE // (count * len(p)))
    total = p.new_zeros(len(p))
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        if rows >= count:
            total = total + _pairs(p, q, part)
        else:
            total = total + checkpoint(_pairs, p, q, part, use_reentrant=False, preserve_rng_state=False)
    return total / count**2


def _pairs(p: Tensor, q: Tensor, part: slice) -> Float[Tensor, " b"]:
    return (_lengths(p, part) - _lengths(q, part)).square().sum((1, 2))


def _lengths(x: Tensor, part: slice) -> Float[Tensor, "b r q"]:
    """From the rows of ``part`` to all, axis by axis: three times as fast as sums over an axis of three."""
    axes = [(axis[:, part, None] - axis[:, None]).square() for axis in x.unbind(2)]
    return (axes[0] + axes[1] + axes[2] + FLOOR).sqrt()
