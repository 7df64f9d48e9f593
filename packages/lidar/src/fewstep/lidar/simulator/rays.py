"""Where rays meet the primitives and the ground.

The rays of a turn are a grid "beams columns". Each column has an origin and a time of its own; coordinates are the
world's axes around the sensor's place at the turn's centre.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewstep.lidar.simulator.ground import Array, Ground
from fewstep.lidar.simulator.world import Shapes

TINY = 1e-300  # added to a direction: leaves every other number as it is and keeps its inverse finite
PROFILE_GROWTH = 1.04  # ratio of neighbouring distances the ground is sampled at
GROUND_TOLERANCE = 1e-5  # metres of height
MOST_STEPS = 40


@dataclass(frozen=True)
class Rays:
    """Directions ``x, y, z`` "beams columns" of length 1, ``origin`` "3 columns", and the angles of the grid.

    ``elevation`` "beams" falls, ``azimuth`` "columns" grows, both in the sensor's frame. ``centre``: the place in the
    world the origins count from. ``turn`` 3x3: the sensor's rotation at the centre.
    """

    x: Array
    y: Array
    z: Array
    origin: Array
    elevation: Array
    azimuth: Array
    centre: Array
    turn: Array
    climb: float  # largest angle between the sensor's z and the world's
    sway: float  # largest difference of a column's heading to the centre's


@dataclass
class Hits:
    """The nearest surface so far: distance, number of the surface (-1: none), cosine of incidence, "beams columns"."""

    distance: Array
    surface: NDArray[np.int32]
    cosine: Array

    def keep(self, part: tuple[slice, slice], distance: Array, nearer: NDArray[np.bool_], surface: int) -> None:
        """Take over the distances of a window where they are nearer."""
        self.distance[part][nearer] = distance[nearer]
        self.surface[part][nearer] = surface


@dataclass(frozen=True)
class Windows:
    """The part of the grid in which primitives can be seen: columns from ``left`` to ``right`` (may pass the ends)."""

    top: NDArray[np.intp]
    bottom: NDArray[np.intp]
    left: NDArray[np.intp]
    right: NDArray[np.intp]

    def parts(self, index: int, columns: int) -> Iterator[tuple[slice, slice]]:
        """Give the pieces of one window as slices of the grid."""
        left, right = int(self.left[index]), int(self.right[index])
        rows = slice(int(self.top[index]), int(self.bottom[index]))
        if rows.start >= rows.stop or left >= right:
            return
        if right - left >= columns:
            yield rows, slice(0, columns)
            return
        left, right = left % columns, left % columns + right - left
        yield rows, slice(left, min(right, columns))
        if right > columns:
            yield rows, slice(0, right - columns)


def find_windows(rays: Rays, centre: Array, half: Array, yaw: Array, reach: float) -> Windows:
    """Return the windows of boxes (centres "n 3" around the rays' centre), never too small.

    ``reach``: metres by which sensor and box may move against each other within a turn.
    """
    c, s = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], np.float64)
    corner = signs[None] * half[:, None]
    x = centre[:, 0:1] + c * corner[..., 0] - s * corner[..., 1]
    y = centre[:, 1:2] + s * corner[..., 0] + c * corner[..., 1]
    low, high = centre[:, 2] - half[:, 2] - reach, centre[:, 2] + half[:, 2] + reach
    aside = np.stack([c[:, 0] * centre[:, 0] + s[:, 0] * centre[:, 1], c[:, 0] * centre[:, 1] - s[:, 0] * centre[:, 0]])
    near = np.hypot(*np.maximum(np.abs(aside) - half[:, :2].T, 0))
    far = np.hypot(x, y).max(1) + reach
    around = near <= reach + rays.climb * np.maximum(np.abs(low), np.abs(high))
    near = np.maximum(near - reach, 1e-3)
    # elevations in the world, and as much more as the sensor leans
    up = np.arctan2(high, np.where(high > 0, near, far)) + rays.climb
    down = np.arctan2(low, np.where(low < 0, near, far)) - rays.climb
    top = np.searchsorted(-rays.elevation, -up - 1e-9)
    bottom = np.searchsorted(-rays.elevation, -down + 1e-9, side="right")
    points = np.stack([x, y, centre[:, 2:3] + corner[..., 2]], -1) @ rays.turn
    middle = centre @ rays.turn
    azimuth = np.arctan2(middle[:, 1], middle[:, 0])
    spread = np.arctan2(points[..., 1], points[..., 0]) - azimuth[:, None]
    spread -= 2 * np.pi * np.rint(spread / (2 * np.pi))
    slack = np.arcsin(np.minimum(1, reach / (near + reach))) + rays.sway + 1e-9
    columns = len(rays.azimuth)
    scale = columns / (2 * np.pi)
    left = np.ceil((azimuth + spread.min(1) - slack - rays.azimuth[0]) * scale)
    right = np.floor((azimuth + spread.max(1) + slack - rays.azimuth[0]) * scale) + 1
    left, right = np.where(around, 0, left), np.where(around, columns, right)
    top, bottom = np.where(around, 0, top), np.where(around, len(rays.elevation), bottom)
    return Windows(top, bottom, left.astype(np.intp), right.astype(np.intp))


def hit_box(
    rays: Rays, hits: Hits, part: tuple[slice, slice], centre: Array, half: Array, yaw: Array, surface: int
) -> None:
    """Let a box be hit from outside in a window; ``centre`` "3" or "3 columns of the window", ``yaw`` alike."""
    ox, oy, oz = rays.origin[:, part[1]] - (centre if centre.ndim == 2 else centre[:, None])
    c, s = np.cos(yaw), np.sin(yaw)
    x, y, dz = rays.x[part], rays.y[part], rays.z[part]
    dx, dy = c * x + s * y, c * y - s * x
    enter, leave, faces = None, None, []
    for o, d, h in ((c * ox + s * oy, dx, half[0]), (c * oy - s * ox, dy, half[1]), (oz, dz, half[2])):
        inverse = 1 / (d + TINY)
        middle = -o * inverse
        depth = h * np.abs(inverse)
        faces.append(middle - depth)
        enter = faces[-1] if enter is None else np.maximum(enter, faces[-1])
        leave = middle + depth if leave is None else np.minimum(leave, middle + depth)
    assert enter is not None
    nearer = (enter <= leave) & (enter > 0) & (enter < hits.distance[part])
    if not nearer.any():
        return
    at = enter[nearer]
    face = np.where(at == faces[0][nearer], dx[nearer], np.where(at == faces[1][nearer], dy[nearer], dz[nearer]))
    hits.keep(part, enter, nearer, surface)
    hits.cosine[part][nearer] = np.abs(face)


def hit_cylinder(rays: Rays, hits: Hits, part: tuple[slice, slice], centre: Array, half: Array, surface: int) -> None:
    """Let the mantle of an upright cylinder be hit from outside in a window (its ends are open)."""
    ox, oy, oz = rays.origin[:, part[1]] - centre[:, None]
    x, y, z = rays.x[part], rays.y[part], rays.z[part]
    level = x * x + y * y
    toward = ox * x + oy * y
    root = toward * toward - level * (ox * ox + oy * oy - half[0] ** 2)
    distance = (-toward - np.sqrt(np.maximum(root, 0))) / (level + TINY)
    nearer = (root >= 0) & (distance > 0) & (distance < hits.distance[part]) & (np.abs(oz + distance * z) <= half[2])
    hits.keep(part, distance, nearer, surface)
    hits.cosine[part][nearer] = np.sqrt(root[nearer]) / half[0]


def hit_canopy(
    rays: Rays,
    hits: Hits,
    part: tuple[slice, slice],
    centre: Array,
    half: Array,
    free_path: float,
    surface: int,
    rng: np.random.Generator,
) -> None:
    """Let rays enter an ellipsoid in a window and hit a leaf after an exponential free path, or pass through."""
    ox, oy, oz = (rays.origin[:, part[1]] - centre[:, None]) / half[:, None]
    x, y, z = rays.x[part] / half[0], rays.y[part] / half[1], rays.z[part] / half[2]
    square = x * x + y * y + z * z
    toward = ox * x + oy * y + oz * z
    root = toward * toward - square * (ox * ox + oy * oy + oz * oz - 1)
    inside = root > 0
    if not inside.any():
        return
    width = np.sqrt(root[inside]) / square[inside]
    middle = -toward[inside] / square[inside]
    distance = np.maximum(middle - width, 0) + free_path * rng.standard_exponential(len(width))
    cosine = rng.random(len(width))  # leaves look everywhere
    there = np.full(inside.shape, np.inf)
    there[inside] = np.where(distance < middle + width, distance, np.inf)
    nearer = there < hits.distance[part]
    hits.keep(part, there, nearer, surface)
    hits.cosine[part][nearer] = cosine[nearer[inside]]


def hit_ground(rays: Rays, hits: Hits, ground: Ground, surface: int, max_range: float) -> None:
    """Let the ground be hit, hills that hide what is behind them included."""
    level = np.hypot(rays.x, rays.y)
    tangent = rays.z / level
    # the ground's profile in the vertical plane of each column: its rising envelope tells which stretch a ray meets
    shallow = len(rays.elevation) // 2
    cosine, sine = rays.x[shallow] / level[shallow], rays.y[shallow] / level[shallow]
    height = float(rays.centre[2] - ground.height(rays.centre[None, 0], rays.centre[None, 1])[0])
    first = 0.5 * height / max(float(-tangent.min()), 0.1)
    count = max(2, int(np.ceil(np.log(1.05 * max_range / first) / np.log(PROFILE_GROWTH))) + 1)
    far: Array = np.asarray(first * PROFILE_GROWTH ** np.arange(count), np.float64)
    x, y, z = rays.origin + rays.centre[:, None]
    above = ground.height(x + far[:, None] * cosine, y + far[:, None] * sine) - z
    steepness = np.maximum.accumulate(above / far[:, None], axis=0)
    bound = 2 * max(float(np.abs(steepness).max()), float(np.abs(tangent).max())) + 1
    shift = bound * np.arange(len(x))
    stretch = np.searchsorted((steepness + shift).T.ravel(), (tangent + shift).ravel()).reshape(tangent.shape)
    stretch -= count * np.arange(len(x))
    met = np.nonzero((stretch > 0) & (stretch < count))
    index, column = stretch[met], met[1]
    slope = tangent[met]
    over = slope * far[index - 1] - above[index - 1, column]
    under = slope * far[index] - above[index, column]
    line = np.stack([x[column], y[column], z[column], rays.x[met] / level[met], rays.y[met] / level[met], slope])
    distance = _meet(ground, line, far[index - 1], far[index], over, under)
    lost = np.nonzero(np.isnan(distance))[0]
    if len(lost):  # the plane of a column is not quite that of its rays where the sensor leans
        distance[lost] = _search(ground, line[:, lost], far)
    reach = distance / level[met]
    there = np.isfinite(reach)
    met = (met[0][there], met[1][there])
    hits.distance[met] = reach[there]
    hits.surface[met] = surface
    hits.cosine[met] = np.abs(rays.z[met])


def bring_up(rays: Rays, hits: Hits, ground: Ground, surface: int) -> None:
    """Let rays that met something below the ground meet the ground: they went through a crest between two samples."""
    met = np.nonzero(hits.surface > surface)
    level = np.hypot(rays.x[met], rays.y[met])
    high = hits.distance[met] * level
    start = rays.origin[:, met[1]] + rays.centre[:, None]
    line = np.concatenate([start, np.stack([rays.x[met] / level, rays.y[met] / level, rays.z[met] / level])])
    under = _clearance(ground, line, high)
    low = np.nonzero(under < -GROUND_TOLERANCE)[0]
    if not len(low):
        return
    line, high, under = line[:, low], high[low], under[low]
    near = 0.01 * high
    distance = _meet(ground, line, near, high, _clearance(ground, line, near), under) / level[low]
    found = np.isfinite(distance)
    at = met[0][low[found]], met[1][low[found]]
    hits.distance[at], hits.surface[at], hits.cosine[at] = distance[found], surface, np.abs(rays.z[at])


def _clearance(ground: Ground, line: Array, distance: Array) -> Array:
    """Return how high lines (x, y, z, level direction x and y, slope) "6 n" run above the ground at a distance."""
    x, y, z, dx, dy, slope = line
    return np.asarray(z + slope * distance - ground.height(x + distance * dx, y + distance * dy))


def _search(ground: Ground, line: Array, far: Array) -> Array:
    """Return where each line first comes down to the ground, walking in steps; infinite where it does not."""
    clear = np.stack([_clearance(ground, line, np.full(line.shape[1], each)) for each in far])
    index = np.argmax(clear <= 0, axis=0)
    met = np.nonzero(index > 0)[0]
    index = index[met]
    distance = np.full(line.shape[1], np.inf)
    distance[met] = _meet(ground, line[:, met], far[index - 1], far[index], clear[index - 1, met], clear[index, met])
    return np.where(np.isnan(distance), np.inf, distance)


def _meet(ground: Ground, line: Array, low: Array, high: Array, over: Array, under: Array) -> Array:
    """Return the level distance between ``low`` and ``high`` at which each line meets the ground, NaN where none.

    ``over`` and ``under``: clearance at both ends. Regula falsi in the Illinois form.
    """
    over, under = np.maximum(over, 1e-12), np.minimum(under, -1e-12)
    at = low + (high - low) * over / (over - under)
    active: NDArray[np.intp] | slice = slice(None)  # lines still on their way
    low, high = low.copy(), high.copy()
    side = np.zeros(len(at), np.int8)
    for _ in range(MOST_STEPS):
        r = at[active]
        gap = _clearance(ground, line[:, active], r)
        open_ = np.abs(gap) > GROUND_TOLERANCE
        if not open_.any():
            return at
        active = np.nonzero(open_)[0] if isinstance(active, slice) else active[open_]
        r, gap = r[open_], gap[open_]
        above = gap > 0
        up, down = active[above], active[~above]
        low[up], over[up] = r[above], gap[above]
        high[down], under[down] = r[~above], gap[~above]
        under[up[side[up] == 1]] *= 0.5  # the same end twice: weigh the other less
        over[down[side[down] == -1]] *= 0.5
        side[up], side[down] = 1, -1
        at[active] = low[active] + (high[active] - low[active]) * over[active] / (over[active] - under[active])
    at[active] = np.nan
    return at


def cull(shapes: Shapes, centre: Array, reach: float) -> NDArray[np.intp]:
    """Return the primitives that come within ``reach`` metres of a place."""
    offset = shapes.centre[:, :2] - centre[:2]
    return np.nonzero(np.hypot(*offset.T) - np.hypot(*shapes.half[:, :2].T) < reach)[0]
