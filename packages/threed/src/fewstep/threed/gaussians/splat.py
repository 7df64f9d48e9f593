"""Gaussians as ``.splat``: 32 bytes each, for viewers in browsers; colours lose their direction, numbers their digits.

x y z and three linear scales as float32, red, green, blue and opacity as bytes, and the rotation
(w x y z) as bytes around 128.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import check
from fewstep.threed.gaussians.checked import check_values
from fewstep.threed.gaussians.harmonics import from_rgb, to_rgb
from fewstep.threed.gaussians.parameters import Gaussians

ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])
INSIDE = 0.25 / 255  # opacities of 0 and 1 have no logit: read as a little inside, written back as the same byte


def read_splat(path: Path) -> Gaussians:
    """Return the Gaussians of a file, in float32 and with harmonics of degree 0; UserError when it is not whole."""
    check(path.is_file(), f"{path}: no such file")
    size = path.stat().st_size
    fits = size % ROW.itemsize == 0
    check(fits, f"{path}: {size} bytes are no multiple of {ROW.itemsize}: no .splat file, or one that was cut off")
    table = np.fromfile(path, dtype=ROW)
    scales = torch.from_numpy(table["scales"].astype(np.float32))
    rgba = torch.from_numpy(table["rgba"].astype(np.float32)) / 255
    harmonics = from_rgb(rgba[:, None, :3])
    logits = rgba[:, 3].clamp(INSIDE, 1 - INSIDE).logit()
    rotation = (torch.from_numpy(table["rotation"].astype(np.float32)) - 128) / 128
    found = Gaussians(torch.from_numpy(table["means"].astype(np.float32)), scales.log(), rotation, logits, harmonics)
    check_values(path, found)
    return found


def write_splat(path: Path, gaussians: Gaussians) -> None:
    """Write the Gaussians, those with the largest volume times opacity first."""
    table = np.empty(len(gaussians), dtype=ROW)
    order = torch.argsort(gaussians.log_scales.sum(dim=-1).exp() * gaussians.opacities, descending=True, stable=True)
    table["means"] = _numbers(gaussians.means[order])
    table["scales"] = _numbers(gaussians.scales[order])
    rgba = torch.cat([to_rgb(gaussians.harmonics[:, 0]), gaussians.opacities[:, None]], dim=-1)
    table["rgba"] = _bytes(rgba[order] * 255)
    table["rotation"] = _bytes(gaussians.rotations[order] * 128 + 128)
    write_whole(path, lambda aside: aside.write_bytes(table.tobytes()))


def _numbers(values: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return values.detach().cpu().float().numpy()


def _bytes(values: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return values.detach().round().clamp(0, 255).to(torch.uint8).cpu().numpy()
