"""Nearest points of point clouds: k-d trees on the CPU, distance matrices in pieces on a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from fewstep.core.errors import check

PIECE = 2**25  # entries of a distance matrix held at a time, float64: 256 MB


class Nearest(NamedTuple):
    """``rows`` "n k" of the nearest points, nearest first, and how far they are, ``distances`` "n k" in float64."""

    rows: Tensor
    distances: Tensor


@torch.no_grad()
def nearest(points: Float[Tensor, "n d"], among: Float[Tensor, "m d"], k: int = 1) -> Nearest:
    """Return for every point its ``k`` nearest in ``among``, Euclidean; a point of ``among`` finds itself, or a twin.

    Exact but for ties, on a GPU up to 1e-12 of the squared coordinates. Without gradient, detached. Raises UserError
    when ``among`` has fewer than ``k`` points, or coordinates are not finite.
    """
    check(1 <= k <= len(among), f"{k} nearest of {len(among)} points: there must be that many, and k at least 1")
    if _by_matrix(points):
        return _by_pieces(points, among, k)
    tree = _tree(among, "those searched")
    same = points is among or (points.data_ptr() == among.data_ptr() and points.shape == among.shape)
    order = tree.indices if same else np.arange(len(points))
    return _queried(tree, _array(points, "those asked for"), order, k, points.device)


@torch.no_grad()
def mutual_nearest(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> tuple[Nearest, Nearest]:
    """Return :func:`nearest` of ``a`` in ``b`` and of ``b`` in ``a`` with ``k = 1``, faster than one by one.

    Raises UserError when one of them is empty, or coordinates are not finite.
    """
    check(len(a) > 0 and len(b) > 0, f"nearest points between {len(a)} and {len(b)} points: neither may be empty")
    if _by_matrix(a):
        return _by_pieces(a, b, 1), _by_pieces(b, a, 1)
    tree_a, tree_b = _tree(a, "the first cloud"), _tree(b, "the second cloud")
    of_a = _queried(tree_b, tree_a.data, tree_a.indices, 1, a.device)
    return of_a, _queried(tree_a, tree_b.data, tree_b.indices, 1, b.device)


def _by_matrix(points: Tensor) -> bool:
    return points.device.type in ("cuda", "meta")  # on meta a plan follows what a GPU would hold


def _array(points: Tensor, name: str) -> np.ndarray:
    array = points.detach().cpu().double().numpy()
    check(bool(np.isfinite(array).all()), f"nearest points: coordinates of {name} are not finite")
    return array


def _tree(points: Tensor, name: str) -> Any:
    # built without medians and tight boxes, which cost more than they save for one query per point
    return cKDTree(_array(points, name), balanced_tree=False, compact_nodes=False)


def _queried(tree: Any, points: np.ndarray, order: np.ndarray, k: int, device: torch.device) -> Nearest:
    rows, distances = np.empty((len(points), k), dtype=np.int64), np.empty((len(points), k))
    if len(points):
        # neighbours in a tree are neighbours in space: asked in that order, the paths stay in the cache
        found = tree.query(points[order], k=range(1, k + 1), workers=-1)
        distances[order], rows[order] = found
    return Nearest(torch.from_numpy(rows).to(device), torch.from_numpy(distances).to(device))


def _by_pieces(points: Tensor, among: Tensor, k: int) -> Nearest:
    """The products of float32 coordinates of 50 m are off by centimetres, hence float64 about the middle."""
    middle = among.double().mean(0)
    points, among = points.double() - middle, among.double() - middle
    square = among.square().sum(1)
    pieces = []
    for piece in torch.split(points, max(1, PIECE // len(among))):
        matrix = torch.addmm(square[None], piece, among.T, alpha=-2)
        pieces.append(matrix.topk(k, dim=1, largest=False).indices if k > 1 else matrix.argmin(1, keepdim=True))
    rows = torch.cat(pieces)
    paired = zip(torch.split(points, PIECE // 2**9), torch.split(rows, PIECE // 2**9), strict=True)
    return Nearest(rows, torch.cat([(part[:, None] - among[near]).norm(dim=2) for part, near in paired]))
