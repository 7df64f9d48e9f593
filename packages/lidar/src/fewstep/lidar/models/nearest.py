"""Which scan voxel is nearest to each voxel, within the same cloud."""

from __future__ import annotations

import torch
from jaxtyping import Int
from scipy.spatial import cKDTree
from torch import Tensor

from fewstep.core.errors import check
from fewstep.lidar.sparse.sites import HALF, Sites

EXACT = "donot_use_mm_for_euclid_dist"  # products would lose the ties
CHUNK = 1 << 24  # distances at a time
# squared distances are whole numbers, and equal ones are common: this shift decides between them, the same way whatever
# else is in the batch, and is too small to decide anything else within 10,000 voxels
TILT = (1.1e-6, 3.7e-7, 1.3e-7)


@torch.no_grad()
def nearest_rows(sites: Sites, scan: Sites) -> Int[Tensor, " v"]:
    """Return for every voxel the row of the nearest scan voxel of its cloud, by distance of coordinates.

    UserError when a cloud has no scan voxel at all.
    """
    present = torch.unique(scan.sample)
    check(bool(torch.isin(torch.unique(sites.sample), present).all()), "a cloud has points but an empty scan")
    # clouds lie farther apart in a fourth axis than within the other three, so one search serves the batch
    far = 4 * HALF
    tilt = torch.tensor(TILT, dtype=torch.float64, device=sites.keys.device)
    queries = torch.cat([sites.coords + tilt, sites.sample[:, None].double() * far], 1)
    targets = torch.cat([scan.coords, scan.sample[:, None] * far], 1).double()
    if queries.device.type == "cpu":
        _, rows = cKDTree(targets.numpy()).query(queries.numpy(), workers=-1)
        return torch.from_numpy(rows)
    parts = torch.split(queries, max(1, CHUNK // len(targets)))
    return torch.cat([torch.cdist(part, targets, compute_mode=EXACT).argmin(1) for part in parts])
