"""Scenes and directions in nerfstudio's world, whose z is up: (x, y, z) of ours is (x, -z, y) there."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.threed.gaussians.harmonics import basis
from fewstep.threed.gaussians.parameters import Gaussians

TO_Z_UP = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
"""From our world to nerfstudio's: a quarter turn about x."""
DIRECTIONS = 64  # of a fit of at most 16 numbers: rotated harmonics are harmonics of the same degree


def to_z_up(points: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """Return points or directions of our world in nerfstudio's."""
    return points @ TO_Z_UP.mT.to(points)


def to_y_up(points: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """Return points or directions of nerfstudio's world in ours: the inverse of :func:`to_z_up`."""
    return points @ TO_Z_UP.to(points)


def turned(gaussians: Gaussians, rotation: Float[Tensor, "3 3"]) -> Gaussians:
    """Return the cloud turned about the origin: places, axes, and the colours' dependence on direction."""
    turn = _quaternion(rotation).to(gaussians.quaternions)
    harmonics = torch.einsum("ij,njc->nic", _harmonics_turn(gaussians.degree, rotation), gaussians.harmonics.double())
    return Gaussians(
        gaussians.means @ rotation.mT.to(gaussians.means),
        gaussians.log_scales,
        _product(turn, gaussians.quaternions),
        gaussians.opacity_logits,
        harmonics.to(gaussians.harmonics),
    )


def _harmonics_turn(degree: int, rotation: Tensor) -> Float[Tensor, "k k"]:
    """Return the matrix that takes coefficients of f to those of f(rotation^T d), by a fit that leaves nothing over."""
    index = torch.arange(DIRECTIONS, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * index / DIRECTIONS, index * math.pi * (1 + math.sqrt(5))
    flat = (1 - z * z).sqrt()
    directions = torch.stack([flat * angle.cos(), flat * angle.sin(), z], dim=-1)
    before = basis(degree, directions @ rotation.double().cpu())
    found: Tensor = torch.linalg.lstsq(basis(degree, directions), before).solution
    return found.to(rotation.device)


def _quaternion(rotation: Tensor) -> Float[Tensor, " 4"]:
    """Return w x y z of a rotation by less than half a turn."""
    m = rotation.double()
    w = (1 + m.diagonal().sum()).clamp_min(0).sqrt() / 2
    axis = torch.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]]) / (4 * w)
    return torch.cat([w[None], axis])


def _product(a: Float[Tensor, " 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Return the quaternions of: first b, then a."""
    w, v = a[0], a[1:].expand(len(b), 3)
    scalar = w * b[:, :1] - (v * b[:, 1:]).sum(-1, keepdim=True)
    return torch.cat([scalar, w * b[:, 1:] + b[:, :1] * v + torch.linalg.cross(v, b[:, 1:])], dim=1)
