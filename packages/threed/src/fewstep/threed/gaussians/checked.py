"""What no file of Gaussians may hold."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.threed.gaussians.parameters import Gaussians


def check_values(path: Path, gaussians: Gaussians) -> None:
    """Raise UserError for the first Gaussian whose numbers are not finite or give no rotation or no size."""
    labels = {
        "means": "position",
        "log_scales": "scale",
        "quaternions": "rotation",
        "opacity_logits": "opacity",
        "harmonics": "colour",
    }
    for name, label in labels.items():
        values: Tensor = getattr(gaussians, name)
        _refuse(path, ~values.isfinite(), f"the {label} is not finite")
    _refuse(path, gaussians.quaternions.abs().amax(dim=-1) < 1e-12, "the rotation is a zero quaternion")
    _refuse(path, ~gaussians.scales.isfinite(), "the scale overflows (scales in a .ply are logarithms)")


def _refuse(path: Path, bad: Tensor, what: str) -> None:
    rows = bad.flatten(1).any(dim=1) if bad.dim() > 1 else bad
    count = int(rows.sum())
    if count:
        first = int(torch.nonzero(rows)[0, 0])
        raise UserError(f"{path}: {what} in {count} of {len(rows)} Gaussians, first in number {first}: remove them")
