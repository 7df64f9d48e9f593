"""Cameras for the tests of solids and metrics: OpenCV axes, world y up, looking at the origin."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cameras(azimuths: list[float], size: int, elevation: float = 20.0, distance: float = 3.0) -> tuple[Tensor, Tensor]:
    """world_to_camera "b 4 4" and intrinsics "b 3 3", float64; degrees; azimuth 0 is the front (+z), 90 is +x."""
    matrices = []
    for azimuth in azimuths:
        a, e = math.radians(azimuth), math.radians(elevation)
        position = distance * torch.tensor([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)]).double()
        forward = -position / position.norm()
        right = torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0]).double())
        right = right / right.norm()
        rotation = torch.stack((right, torch.linalg.cross(forward, right), forward))
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ position
        matrices.append(matrix)
    focal = 1.4 * size
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
    return torch.stack(matrices), intrinsics.expand(len(azimuths), 3, 3).clone()
