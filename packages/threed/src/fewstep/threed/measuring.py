"""An asset in numbers: against the truth where one is known, and its views against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.metrics.janus import facing
from fewstep.threed.metrics.surfaces import chamfer_distance, f_score, normal_consistency
from fewstep.threed.metrics.views import View, view_consistency
from fewstep.threed.shapes.surface import sample_surface
from fewstep.threed.truth import Truth
from fewstep.threed.views import Scene, Views

VIEWS = 8
SIZE = 64
DISTANCE, FOV_Y_DEG = 3.2, 40.0
START = 11.25
POINTS = 4000
WITHIN = 0.05
TOLERANCE = 0.05


@dataclass(frozen=True)
class Measured:
    """Named numbers, and what was left out and why."""

    values: Mapping[str, float]
    left_out: tuple[str, ...] = ()


def unseen_views(views: int = VIEWS, size: int = SIZE, elevation_deg: float = 17.0, start_deg: float = START) -> Camera:
    """Return a ring of cameras at angles that training, whose cameras are drawn, meets with probability 0."""
    azimuth = view_azimuths(views, start_deg)
    full = torch.ones_like(azimuth)
    return orbit(azimuth, full * elevation_deg, full * DISTANCE, full * FOV_Y_DEG, size, size)


def view_azimuths(views: int, start_deg: float = START) -> Float[Tensor, " v"]:
    """Return the azimuths of :func:`unseen_views`, in degrees."""
    return start_deg + torch.arange(views, dtype=torch.float32) * (360 / views)


@torch.no_grad()
def measure(scene: Scene, truth: Truth | None, *, views: int = VIEWS, size: int = SIZE) -> Measured:
    """Return the numbers of an asset; those that need a truth, or a surface, are left out where there is none."""
    ring = unseen_views(views, size)
    seen = scene.views(ring)
    found, left_out = {"view_consistency": _consistency(seen, ring)}, []
    if truth is None:
        left_out.append("no truth is known for this prompt: PSNR, silhouette IoU and distances to it are left out")
        return Measured(found, tuple(left_out))
    found |= truth.of_views(seen, ring)
    try:
        found["facing"] = float(facing(seen.rgb.cpu().clamp(0, 1), truth.pictures(ring).rgb).mean())
    except UserError as error:
        left_out.append(str(error))
    try:
        found |= _surface(scene.mesh(), truth)
    except UserError as error:
        left_out.append(f"no mesh: {error}")
    return Measured(found, tuple(left_out))


def _surface(mesh: Mesh, truth: Truth) -> dict[str, float]:
    true = sample_surface(truth.solid, POINTS)
    points, normals = sample_mesh(mesh, POINTS)
    pair = points.double()[None], true.points[None]
    return {
        "chamfer": float(chamfer_distance(*pair)[0]),
        f"f_score@{WITHIN:g}": float(f_score(*pair, within=WITHIN)[0]),
        "normal_consistency": float(
            normal_consistency(pair[0], normals.double()[None], pair[1], true.normals[None])[0]
        ),
    }


def _consistency(seen: Views, ring: Camera) -> float:
    """Return how well neighbours of a ring agree, in dB, by depths divided by the coverage."""
    depth = torch.where(seen.alpha > 0.5, seen.depth / seen.alpha.clamp_min(1e-6), 0)
    one = View(seen.rgb, depth, ring.world_to_camera, ring.intrinsics)
    other = View(*(torch.roll(each, 1, dims=0) for each in (one.image, one.depth, one.world_to_camera, one.intrinsics)))
    agreed = view_consistency(one, other, tolerance=TOLERANCE)
    shared = agreed.psnr[agreed.share > 0]
    return float(shared.mean()) if len(shared) else float("nan")


def sample_mesh(mesh: Mesh, count: int, seed: int = 0) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Return points spread evenly over a mesh and the normals there; UserError for a mesh without area."""
    corners = mesh.vertices.detach().cpu()[mesh.faces.cpu()]
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = cross.norm(dim=1).double()
    if not float(area.sum()) > 0:
        raise UserError("a mesh without area has no points to measure; train it again")
    u = Rng(seed, 0, (0,), "mesh").uniform("points", (count, 3))[0]
    face = torch.searchsorted(area.cumsum(0) / area.sum(), u[:, 0].contiguous()).clamp_max(len(area) - 1)
    root = u[:, 1:2].sqrt()
    weights = torch.cat([1 - root, root * (1 - u[:, 2:]), root * u[:, 2:]], dim=1).to(corners)
    return (corners[face] * weights[..., None]).sum(1), cross[face] / cross[face].norm(dim=1, keepdim=True)
