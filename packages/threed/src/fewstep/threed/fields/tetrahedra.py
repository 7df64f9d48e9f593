"""Marching tetrahedra in torch: meshes whose vertices carry the gradient of a signed distance.

Every cell of a grid is cut along its diagonal into six tetrahedra, the same in all cells, so that neighbours share
their faces' triangles: surfaces are closed wherever they do not leave the grid, whatever the values are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import UserError, check
from fewstep.threed.fields.meshes import BLOCK, Mesh, sample_grid
from fewstep.threed.fields.normals import ScalarField

MAX_DEFORM = 0.5  # of a cell: what is more can fold the grid


@dataclass(frozen=True)
class _Crossings:
    """Edges of the grid, as pairs of its points' numbers, that leave the solid, and triangles between them."""

    edges: Int[Tensor, "v 2"]  # the end inside, the end outside
    faces: Int[Tensor, "f 3"]


def march_tetrahedra(
    sdf: Float[Tensor, "x y z"],
    deform: Float[Tensor, "x y z 3"] | None = None,
    *,
    bound: float = 1.0,
    ensure_surface: bool = False,
) -> Mesh:
    """Return where ``sdf``, negative inside, is 0 on a grid over [-bound, bound]^3; gradients reach ``sdf`` and deform.

    deform: how far the grid's points are moved, in sides of a cell, at most 0.5 each way. ensure_surface: see
    :func:`with_surface`. Raises UserError where there is no surface, the grid is too small, or values are not finite.
    """
    if ensure_surface:
        sdf = with_surface(sdf, bound=bound)
    found = _crossings(sdf.detach())
    shift = None
    if deform is not None:
        check(
            deform.shape == (*sdf.shape, 3), f"deform must be {[*sdf.shape, 3]} like the grid, got {list(deform.shape)}"
        )
        shift = deform.reshape(-1, 3)[found.edges]
        largest = float(deform.detach().abs().max())
        check(
            largest <= MAX_DEFORM, f"deform moves a point by {largest:.3g} cells: at most {MAX_DEFORM} (use tanh / 2)"
        )
    return _mesh(found, sdf.reshape(-1)[found.edges], tuple(sdf.shape), bound, shift)


def extract_trainable(
    sdf: ScalarField,
    resolution: int = 64,
    *,
    bound: float = 1.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    ensure_surface: bool = False,
) -> Mesh:
    """Return a field's surface, with gradient to the field: it is asked again, with gradient, at the surface only.

    Arguments and errors as for :func:`march_tetrahedra` and ``extract_mesh``.
    """
    grid = sample_grid(sdf, resolution, bound, device, dtype).to(device)
    if ensure_surface:
        grid = with_surface(grid, bound=bound)
    found = _crossings(grid)
    values = grid.reshape(-1)[found.edges]
    if torch.is_grad_enabled():
        used, place = torch.unique(found.edges, return_inverse=True)
        points = _positions(used, tuple(grid.shape), bound, grid)
        again = torch.cat([sdf(part) for part in torch.split(points, BLOCK)])
        values = values + (again - again.detach())[place]  # the grid's values: rounding must not turn a sign
    return _mesh(found, values, tuple(grid.shape), bound, None)


def with_surface(sdf: Float[Tensor, "x y z"], *, bound: float = 1.0) -> Float[Tensor, "x y z"]:
    """Return the grid with its border outside and, where nothing is inside, its middle inside: its surface is closed.

    Values that are replaced, by half a cell, keep their gradient, so that training can go on from there.
    """
    _check_grid(sdf)
    half = bound / (max(sdf.shape) - 1)
    outer, middle = _border_and_middle(tuple(sdf.shape), sdf.device)
    value = sdf.detach()
    wanted = torch.where(outer & (value <= 0), torch.full_like(value, half), value)
    if not bool((wanted < 0).any()):
        wanted = torch.where(middle, torch.full_like(value, -half), wanted)
    return sdf + (wanted - value)


def _border_and_middle(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    outer = torch.zeros(shape, dtype=torch.bool, device=device)
    middle = torch.ones(shape, dtype=torch.bool, device=device)
    for axis, size in enumerate(shape):
        at = torch.arange(size, device=device)
        along = [1, 1, 1]
        along[axis] = size
        outer = outer | ((at == 0) | (at == size - 1)).reshape(along)
        middle = middle & ((at - (size - 1) / 2).abs() < 1).reshape(along)
    return outer, middle & ~outer


def _check_grid(sdf: Tensor) -> None:
    check(sdf.ndim == 3 and min(sdf.shape) >= 3, f"a grid to mesh has 3 points or more each way, got {list(sdf.shape)}")
    check(
        bool(sdf.detach().isfinite().all()),
        "the field is not finite everywhere on the grid: no mesh can be made of it; train it again",
    )


def _crossings(sdf: Float[Tensor, "x y z"]) -> _Crossings:
    """Find the tetrahedra the surface passes through, and its triangles in them; UserError where there are none."""
    _check_grid(sdf)
    inside = sdf < 0
    if not bool(inside.any()) or bool(inside.all()):
        side = "below" if bool(inside.any()) else "at or above"
        least, most = float(sdf.min()), float(sdf.max())
        raise UserError(
            f"no surface to make a mesh of: the field stays {side} 0 (it spans {least:.3g} to {most:.3g}); train "
            "longer, or mesh with ensure_surface"
        )
    nx, ny, nz = sdf.shape
    number = torch.arange(sdf.numel(), device=sdf.device).reshape(sdf.shape)
    lowest = inside[:-1, :-1, :-1]
    mixed = torch.zeros_like(lowest)
    for dx, dy, dz in ((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)):
        mixed |= inside[dx : nx - 1 + dx, dy : ny - 1 + dy, dz : nz - 1 + dz] != lowest
    cells = number[:-1, :-1, :-1][mixed]
    strides = torch.tensor([ny * nz, nz, 1], device=sdf.device)
    corners = cells[:, None, None] + (_tetrahedra().to(sdf.device) * strides).sum(-1)  # [cells, 6, 4]
    corners = corners.reshape(-1, 4)
    state = (inside.reshape(-1)[corners] * torch.tensor([1, 2, 4, 8], device=sdf.device)).sum(-1)
    ends = []
    for case, made in _cases().items():
        here = corners[state == case]
        ends += [here[:, torch.tensor(triangle, device=sdf.device)] for triangle in made]
    triangles = torch.cat(ends)  # [f, 3 corners, 2 ends]
    keys = triangles[..., 0] * sdf.numel() + triangles[..., 1]
    edges, faces = torch.unique(keys, return_inverse=True)
    return _Crossings(torch.stack([edges // sdf.numel(), edges % sdf.numel()], dim=-1), faces)


def _mesh(
    found: _Crossings, values: Float[Tensor, "v 2"], shape: tuple[int, ...], bound: float, shift: Tensor | None
) -> Mesh:
    """Put a vertex on every crossing edge, where the line through its ends' values is 0."""
    ends = _positions(found.edges, shape, bound, values)
    if shift is not None:
        cell = torch.tensor([2 * bound / (size - 1) for size in shape], dtype=values.dtype, device=values.device)
        ends = ends + shift * cell
    share = (values[:, :1] / (values[:, :1] - values[:, 1:])).to(ends)  # inside < 0 <= outside: never 0 / 0
    return Mesh(ends[:, 0] + share * (ends[:, 1] - ends[:, 0]), found.faces)


def _positions(number: Int[Tensor, "*n"], shape: tuple[int, ...], bound: float, like: Tensor) -> Float[Tensor, "*n 3"]:
    _, ny, nz = shape
    index = torch.stack([number // (ny * nz), number // nz % ny, number % nz], dim=-1)
    scale = torch.tensor([2 * bound / (size - 1) for size in shape], dtype=like.dtype, device=like.device)
    return index.to(like.dtype) * scale - bound


@cache
def _tetrahedra() -> Int[Tensor, "6 4 3"]:
    """Corners of a cell's six tetrahedra (Kuhn 1960): ways along its edges from its lowest to its highest corner."""
    made = []
    for order in permutations(range(3)):
        corner = [0, 0, 0]
        way = [list(corner)]
        for axis in order:
            corner[axis] += 1
            way.append(list(corner))
        made.append(way)
    corners = torch.tensor(made)
    steps = (corners[:, 1:] - corners[:, :1]).double()
    turned = torch.linalg.det(steps) < 0  # all are given one orientation, so that one table serves them
    corners[turned] = corners[turned][:, [0, 1, 3, 2]]
    return corners


@cache
def _cases() -> dict[int, list[list[tuple[int, int]]]]:
    """Triangles for every set of corners that is inside, as three (inside, outside) edges, seen from outside.

    Orientation is found by trial on one tetrahedron: the triangle's normal must lead away from the corners inside.
    """
    places = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).double()
    cases: dict[int, list[list[tuple[int, int]]]] = {}
    for case in range(1, 15):
        inner = [i for i in range(4) if case >> i & 1]
        outer = [i for i in range(4) if i not in inner]
        if len(inner) == 2:
            (a, b), (c, d) = inner, outer
            made = [[(a, c), (b, c), (b, d)], [(a, c), (b, d), (a, d)]]
        else:
            made = [[(i, o) for i in inner for o in outer]]
        cases[case] = [_outward(triangle, places, inner, outer) for triangle in made]
    return cases


def _outward(
    triangle: list[tuple[int, int]], places: Tensor, inner: list[int], outer: list[int]
) -> list[tuple[int, int]]:
    a, b, c = ((places[i] + places[o]) / 2 for i, o in triangle)
    away = places[outer].mean(0) - places[inner].mean(0)
    if float(torch.linalg.cross(b - a, c - a) @ away) < 0:
        return [triangle[0], triangle[2], triangle[1]]
    return triangle
