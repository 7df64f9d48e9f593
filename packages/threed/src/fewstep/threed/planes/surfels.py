"""A surface as a cloud: flat Gaussians at even points of a coloured mesh, as large as they lie apart."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.errors import check
from fewstep.core.rng import Rng
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.gaussians.harmonics import from_rgb
from fewstep.threed.gaussians.parameters import Gaussians

SPREAD = 0.6  # standard deviation over the distance between neighbours
FLATNESS = 0.1  # thickness over that
OPACITY = 0.95


def surfels(mesh: Mesh, count: int, seed: int = 0) -> Gaussians:
    """Return ``count`` flat Gaussians that cover a mesh, grey where it has no colours; a function of mesh and seed.

    Points are even in area, one in each of ``count`` equal shares of it. Raises UserError for a mesh without area.
    """
    check(count >= 1, f"a cloud needs one Gaussian or more, got {count}")
    corners = mesh.vertices[mesh.faces]
    across = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = across.norm(dim=1) / 2
    total = area.sum()
    check(bool(total > 0), "a cloud of Gaussians needs a mesh with a surface, this one has no area")
    u = Rng(seed, 0, (0,), "surfels").uniform("points", (count, 3))[0].to(area)
    shares = (torch.arange(count, device=area.device).to(area) + u[:, 0]) / count
    at = torch.searchsorted(area.cumsum(0) / total, shares).clamp_max(len(area) - 1)
    root = u[:, 1].sqrt()
    weights = torch.stack([1 - root, root * (1 - u[:, 2]), root * u[:, 2]], 1)[..., None]  # even within a triangle
    size = SPREAD * math.sqrt(float(total) / count)
    scales = area.new_tensor([size, size, size * FLATNESS]).log().expand(count, 3).clone()
    rgb = area.new_full((count, 3), 0.5)
    if mesh.colours is not None:
        rgb = (weights * mesh.colours[mesh.faces[at]]).sum(1)
    logit = math.log(OPACITY / (1 - OPACITY))
    return Gaussians(
        (weights * corners[at]).sum(1),
        scales,
        turned_to(F.normalize(across[at], dim=1)),
        area.new_full((count,), logit),
        from_rgb(rgb)[:, None],
    )


def turned_to(normals: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
    """Return unit quaternions w x y z that turn the z axis to unit ``normals`` the shortest way."""
    x, y, z = normals.unbind(1)
    half = torch.stack([1 + z, -y, x, torch.zeros_like(z)], 1)
    upside = torch.zeros_like(half)
    upside[:, 1] = 1.0  # half a turn about x where the normal is -z
    return F.normalize(torch.where(half.norm(dim=1, keepdim=True) > 1e-6, half, upside), dim=1)
