"""Pictures of solids by sphere tracing: colour, coverage, depth and normals, exact to the tracer's tolerance.

Cameras are ``world_to_camera`` "b 4 4" and ``intrinsics`` "b 3 3" in pixels: OpenCV axes (x right, y down, z forward),
pixel centres at +0.5, a world with y up. The light is fixed to the world and no surface shines, so that a point has one
colour in all views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.threed.shapes.primitives import PRIMITIVES
from fewstep.threed.shapes.solids import Part, Solid

LIGHT = (0.5, 0.7, 0.51)  # towards the light: right, above, in front
AMBIENT = 0.4  # the share of the albedo that faces turned from the light keep
STEPS = 256  # of a ray; those that graze a torus take the most
REACH = 1.05  # radius of the ball that rays are followed in
PIECE = 2**18  # rays followed at a time


@dataclass(frozen=True)
class Renders:
    """Pictures of one solid.

    ``rgb``: in [0, 1], over the background. ``alpha``: the covered share of each pixel. ``depth`` along the camera's z,
    and ``normal``, a unit vector in the world, are those of the ray through the pixel's centre, 0 where it does not
    ``hit``.
    """

    rgb: Float[Tensor, "b 3 h w"]
    alpha: Float[Tensor, "b 1 h w"]
    depth: Float[Tensor, "b 1 h w"]
    normal: Float[Tensor, "b 3 h w"]
    hit: Bool[Tensor, "b 1 h w"]


@torch.no_grad()
def render(
    solid: Solid,
    world_to_camera: Float[Tensor, "b 4 4"],
    intrinsics: Float[Tensor, "b 3 3"],
    width: int,
    height: int,
    *,
    samples: int = 3,
    background: float = 1.0,
) -> Renders:
    """Return what cameras see; ``samples`` squared rays a pixel, in the dtype and on the device of the cameras.

    Raises UserError for a camera inside the solid, or ``samples`` that are even (none would go through the centre).
    """
    check(samples >= 1 and samples % 2 == 1, f"samples={samples} rays along a pixel's side: use 1, 3, 5, ...")
    origins = -(world_to_camera[:, :3, :3].mT @ world_to_camera[:, :3, 3:])[:, :, 0]
    check(bool((solid.distance(origins) > 0).all()), "a camera is inside the solid; move it outside the unit ball")
    views = _pixel_directions(intrinsics, width, height, samples)
    lengths = views.norm(dim=-1)
    rays = ((views / lengths[..., None]) @ world_to_camera[:, :3, :3]).flatten(0, 1)
    starts = origins[:, None].expand(-1, views.shape[1], -1).reshape(-1, 3)
    pieces = zip(torch.split(starts, PIECE), torch.split(rays, PIECE), strict=True)
    travelled = torch.cat([trace(solid, start, ray) for start, ray in pieces])
    hit = travelled.isfinite()
    points = starts[hit] + travelled[hit, None] * rays[hit]
    normals = solid.normal(points)
    colour, normal = torch.full_like(rays, background), torch.zeros_like(rays)
    colour[hit], normal[hit] = shade(solid.albedo(points), normals), normals
    depth = torch.where(hit, travelled, 0) / lengths.flatten()
    shape = (len(origins), height, samples, width, samples)
    middle = samples // 2
    covered, depth = hit.reshape(*shape, 1), depth.reshape(*shape, 1)
    colour, normal = colour.reshape(*shape, 3), normal.reshape(*shape, 3)
    return Renders(
        rgb=_first(colour.mean((2, 4))),
        alpha=_first(covered.to(colour.dtype).mean((2, 4))),
        depth=_first(depth[:, :, middle, :, middle]),
        normal=_first(normal[:, :, middle, :, middle]),
        hit=_first(covered[:, :, middle, :, middle]),
    )


def trace(solid: Solid, starts: Float[Tensor, "n 3"], rays: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Return how far along unit ``rays`` the solid is met first, infinity where it is missed.

    Sphere tracing (Hart 1996) part by part inside the ball the solid is in, until parts are 1e-10 away in float64, 1e-5
    in float32. Starts must be outside the solid.
    """
    middle = -(starts * rays).sum(1)
    half = (REACH**2 - (starts + middle[:, None] * rays).square().sum(1)).clamp_min(0).sqrt()
    start, end = (middle - half).clamp_min(0), middle + half
    met: Tensor = torch.stack([_trace_part(part, starts, rays, start, end) for part in solid.parts]).amin(0)
    return met


def _trace_part(part: Part, starts: Tensor, rays: Tensor, start: Tensor, end: Tensor) -> Float[Tensor, " n"]:
    """Return where one part is met between ``start`` and ``end`` of the rays.

    Along a line the distance from a convex part is convex: the zero of the chord through the last two points is never
    behind the surface, which makes grazing rays converge fast, and a distance that grows has passed the part.
    """
    tolerance = 1e-10 if starts.dtype == torch.float64 else 1e-5
    convex = PRIMITIVES[part.kind].convex
    found = torch.full_like(start, torch.inf)
    active = (end > start).nonzero()[:, 0]
    at, step, last = start[active], torch.zeros_like(start[active]), torch.full_like(start[active], torch.inf)
    for _ in range(STEPS):
        if not len(active):
            break
        gap = part.distance(starts[active] + at[:, None] * rays[active])
        near = gap < tolerance
        found[active[near]] = at[near]
        slope = (last - gap) / step if convex else torch.ones_like(gap)
        keep = ~near & (slope > 0)
        step = gap / slope.clamp_max(1)  # the first slope is infinite: a plain step
        at = at + step
        keep &= at < end[active]
        active, at, step, last = active[keep], at[keep], step[keep], gap[keep]
    return found


def shade(albedo: Float[Tensor, "n 3"], normal: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Return ``albedo * (AMBIENT + (1 - AMBIENT) * (1 + normal . light) / 2)``: matt, and nowhere flat."""
    light = albedo.new_tensor(LIGHT)
    lit = (1 + normal @ (light / light.norm())) / 2
    colour: Tensor = albedo * (AMBIENT + (1 - AMBIENT) * lit)[:, None]
    return colour


def _pixel_directions(
    intrinsics: Float[Tensor, "b 3 3"], width: int, height: int, samples: int
) -> Float[Tensor, "b n 3"]:
    """Rays of the sub-pixels in camera axes with z = 1, row by row."""
    y, x = (
        (torch.arange(side * samples, device=intrinsics.device).to(intrinsics.dtype) + 0.5) / samples
        for side in (height, width)
    )
    grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), -1).reshape(-1, 2)
    pixels = torch.nn.functional.pad(grid, (0, 1), value=1.0)
    directions: Tensor = pixels @ torch.linalg.inv(intrinsics).mT
    return directions


def _first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1).contiguous()
