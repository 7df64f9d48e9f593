"""Rendering a point cloud: cameras, a z-buffer of discs, shading by depth, and range rings on the ground."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fewstep.lidar.view.colours import decode, encode, places, scale_linear

Array = NDArray[Any]

SUPERSAMPLING = 2  # samples per pixel and axis
GROUND = (13, 16, 22)  # behind the points
RING = (58, 66, 80)
MAX_DIAMETER = 8  # of a disc, in samples
FRAME = 1.03  # half the side of the top view, over the range
NEAR = 0.5  # metres before the camera at which points are left out
NOTHING = np.int64(2**62)


class Camera(Protocol):
    """Where points are in a picture. Pixel columns grow to the right and rows down, from 0 at the corner."""

    @property
    def width(self) -> int:
        """Of the picture, pixels."""

    @property
    def height(self) -> int:
        """Of the picture, pixels."""

    def project(self, xyz: Array) -> tuple[Array, Array, Array]:
        """Return the pixel columns and rows and the depths "n" of points; a depth of inf is not drawn."""

    def relief(self, depth: Array) -> Array:
        """Return depths on the scale on which equal steps deserve equal shading."""

    def diameter(self, depth: Array) -> Array:
        """Return how many pixels wide a point at each depth is drawn."""

    def ground_range(self, columns: Array, rows: Array, z: float) -> Array:
        """Return the horizontal distance from the sensor, metres, of what pixels see on the plane at height ``z``."""


@dataclass(frozen=True)
class TopCamera:
    """Orthographic, from above: x (forward) points up, y to the left, and the sensor is in the middle."""

    size: int
    max_range: float

    @property
    def width(self) -> int:
        """Pixels."""
        return self.size

    @property
    def height(self) -> int:
        """Pixels."""
        return self.size

    @property
    def pixels_per_metre(self) -> float:
        """The scale of the picture."""
        return self.size / (2 * FRAME * self.max_range)

    def project(self, xyz: Array) -> tuple[Array, Array, Array]:
        """Column ``size/2 - s y``, row ``size/2 - s x``, depth ``-z``: the highest point is seen."""
        scale, middle = self.pixels_per_metre, self.size / 2
        return middle - scale * xyz[:, 1], middle - scale * xyz[:, 0], -xyz[:, 2]

    def relief(self, depth: Array) -> Array:
        """Metres, over a tenth of the range."""
        return np.asarray(depth * np.float32(0.35))

    def diameter(self, depth: Array) -> Array:
        """24 cm, and a pixel at least."""
        return np.full(depth.shape, max(1.0, 0.24 * self.pixels_per_metre))

    def ground_range(self, columns: Array, rows: Array, z: float) -> Array:
        """The distance from the middle."""
        return np.asarray(np.hypot(columns - self.size / 2, rows - self.size / 2) / self.pixels_per_metre)


@dataclass(frozen=True)
class PerspectiveCamera:
    """A pinhole behind and above the sensor that looks forward and down; distances scale with ``max_range``."""

    width: int
    height: int
    max_range: float

    @cached_property
    def eye(self) -> Array:
        """Where the camera is, metres."""
        return np.array([-0.55, 0.0, 0.34]) * self.max_range

    @cached_property
    def axes(self) -> Array:
        """Rows: to the right, down, and into the picture, of unit length."""
        into = np.array([0.08, 0.0, -0.03]) * self.max_range - self.eye
        into /= np.linalg.norm(into)
        right = np.cross(into, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        return np.stack((right, np.cross(into, right), into))

    @property
    def focal(self) -> float:
        """Pixels: the picture is 64 degrees wide."""
        return self.width / 2 / math.tan(math.radians(32))

    def project(self, xyz: Array) -> tuple[Array, Array, Array]:
        """The pinhole's, with the depth along the axis; inf nearer than half a metre."""
        seen = (xyz - self.eye) @ self.axes.T
        depth = np.where(seen[:, 2] > NEAR, seen[:, 2], np.inf)
        scale = self.focal / depth
        return self.width / 2 + scale * seen[:, 0], self.height / 2 + scale * seen[:, 1], depth

    def relief(self, depth: Array) -> Array:
        """Octaves of distance."""
        return np.asarray(np.log2(depth) * np.float32(12))

    def diameter(self, depth: Array) -> Array:
        """14 cm at the distance, and a pixel at least."""
        return np.maximum(1.0, 0.14 * self.focal / depth)

    def ground_range(self, columns: Array, rows: Array, z: float) -> Array:
        """Rays cut with the plane; inf above the horizon."""
        x, y = np.broadcast_arrays((columns - self.width / 2) / self.focal, (rows - self.height / 2) / self.focal)
        rays = np.stack((x, y, np.ones_like(x)), -1) @ self.axes
        sinks = rays[..., 2] < -1e-3
        length = np.where(sinks, (z - self.eye[2]) / np.where(sinks, rays[..., 2], 1.0), np.inf)
        with np.errstate(invalid="ignore"):  # inf times 0, beyond the horizon
            hit = np.hypot(self.eye[0] + length * rays[..., 0], self.eye[1] + length * rays[..., 1])
        return np.where(sinks, hit, np.inf)


@dataclass(frozen=True)
class Look:
    """What pictures of one sheet share: ``low`` and ``high`` ends of the colour scale and ``ground``, heights in
    metres; ``max_range``, beyond which nothing is drawn; ``ring_step`` between range rings, 0 for none."""

    low: float
    high: float
    ground: float
    max_range: float
    ring_step: float = 10.0


def render(xyz: Array, camera: Camera, look: Look) -> Array:
    """Return the picture of a cloud "n 3" as sRGB bytes "h w 3"; the order of the points does not matter.

    Points are discs in a z-buffer of 2 x 2 samples per pixel, the nearest wins; a sample is darker the nearer its
    neighbours are (eye-dome lighting, C. Boucheny, 2009). Samples are averaged in linear light.
    """
    depth, rows = _z_buffer(xyz[np.hypot(xyz[:, 0], xyz[:, 1]) <= look.max_range], camera, look)
    picture = _rings(camera, look)
    hit = depth < np.inf
    picture[hit] = scale_linear()[rows[hit]] * _shade(camera.relief(depth), hit)[hit][:, None]
    s = SUPERSAMPLING
    return encode(picture.reshape(camera.height, s, camera.width, s, 3).mean((1, 3)))


def _z_buffer(xyz: Array, camera: Camera, look: Look) -> tuple[Array, Array]:
    """Depth (inf where there is no point) and place in the colour scale of every sample, "hs ws"."""
    column, row, depth = camera.project(np.asarray(xyz, dtype=np.float64))
    s, pad = SUPERSAMPLING, MAX_DIAMETER
    width, height = camera.width * s, camera.height * s
    diameter = np.clip(camera.diameter(depth) * s, 1, MAX_DIAMETER).round()
    left, top = np.floor(column * s - (diameter - 1) / 2), np.floor(row * s - (diameter - 1) / 2)
    kept = np.isfinite(depth) & (left > -pad) & (left < width) & (top > -pad) & (top < height)
    left, top, diameter = (values[kept].astype(np.int64) for values in (left, top, diameter))
    # One integer orders samples by depth and then by colour, so that one minimum per point keeps the nearest.
    key = _sortable(depth[kept].astype(np.float32)).astype(np.int64) << 8 | places(xyz[kept, 2], look.low, look.high)
    stride = width + 2 * pad
    buffer = np.full((height + 2 * pad) * stride, NOTHING)
    corner = (top + pad) * stride + left + pad
    for size in np.unique(diameter):
        of_size = diameter == size
        corners, keys = corner[of_size], key[of_size]
        for down, across in _disc(int(size)):
            np.minimum.at(buffer, corners + (down * stride + across), keys)
    inner = buffer.reshape(-1, stride)[pad : pad + height, pad : pad + width]
    nearest = _sortable_inverse((inner >> 8).astype(np.int32))
    return np.where(inner == NOTHING, np.float32(np.inf), nearest), (inner & 255).astype(np.uint8)


def _disc(size: int) -> list[tuple[int, int]]:
    """Rows and columns of the samples of a disc in its square."""
    middle = (size - 1) / 2
    inside = size * size / 4 - 0.3 if size > 1 else 1.0
    return [(i, j) for i in range(size) for j in range(size) if (i - middle) ** 2 + (j - middle) ** 2 <= inside]


def _sortable(values: Array) -> Array:
    """Integers in the order of float32 numbers: their bits, those of negative ones turned round."""
    bits = (values + np.float32(0)).view(np.int32)  # + 0 makes one zero of both
    return np.asarray(np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits))


def _sortable_inverse(bits: Array) -> Array:
    return np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int32).view(np.float32)


def _shade(relief: Array, hit: Array) -> Array:
    """How bright samples are in (0, 1]: less, the farther they lie behind their neighbours."""
    far = np.where(hit, relief, np.float32(1e9))
    height, width = far.shape
    reach = SUPERSAMPLING  # the eight pixels around
    around = np.pad(far, reach, mode="edge")
    darkness = np.zeros_like(far)
    for down in (0, reach, 2 * reach):
        for across in (0, reach, 2 * reach):
            darkness += np.clip(far - around[down : down + height, across : across + width], 0, 1)
    return np.asarray(np.exp(darkness * np.float32(-0.2)))


def _rings(camera: Camera, look: Look) -> Array:
    """The ground with circles of equal range on it, linear light, "hs ws 3" float32."""
    s = SUPERSAMPLING
    picture: Array = np.full((camera.height * s, camera.width * s, 3), decode(GROUND), dtype=np.float32)
    if look.ring_step <= 0:
        return picture
    columns = (np.arange(camera.width * s) + 0.5) / s
    rows = (np.arange(camera.height * s) + 0.5)[:, None] / s
    distance = np.minimum(camera.ground_range(columns, rows, look.ground), 2 * look.max_range)
    slope = np.hypot(*np.gradient(distance)) * s + 1e-9  # metres per pixel
    nearest = np.clip((distance / look.ring_step).round(), 1, math.floor(look.max_range / look.ring_step + 1e-9))
    ink = np.clip(1.0 - np.abs(distance - nearest * look.ring_step) / slope, 0, 1)[..., None].astype(np.float32)
    picture += ink * (decode(RING) - decode(GROUND)).astype(np.float32)
    return picture
