"""The refiner: every point of a completed scene becomes several, each within a metre of it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.errors import check
from fewstep.core.rng import Rng
from fewstep.lidar.models.backbone import samples_of
from fewstep.lidar.models.unet import NetworkConfig, SparseUNet
from fewstep.lidar.sparse.sites import voxelise

REACH = 1.0  # metres: the outputs go through tanh


class Refiner(nn.Module):
    """LiDiff's refiner: ``up_factor`` offsets for every point (arXiv 2403.13470, section 3.4)."""

    def __init__(self, config: NetworkConfig, up_factor: int = 6, seed: int = 0) -> None:
        super().__init__()
        check(up_factor >= 1, f"up_factor must be at least 1, got {up_factor}")
        self.config, self.up_factor = config, up_factor
        with Rng(seed, 0, ()).network_noise("init"):
            self.unet = SparseUNet(config, 3 * up_factor, gated=False)

    def forward(self, points: Float[Tensor, "b n 3"]) -> Float[Tensor, "b m 3"]:
        """Return ``n up_factor`` points in metres, those of one input point next to each other."""
        flat = points.flatten(0, 1)
        voxels = voxelise(flat, samples_of(points), self.config.resolution)
        offsets = voxels.slice(torch.tanh(self.unet(voxels.mean(flat), voxels.sites))) * REACH
        moved = points[:, :, None] + offsets.view(*points.shape[:2], self.up_factor, 3)
        return moved.flatten(1, 2)
