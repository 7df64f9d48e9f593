"""Pictures of a scene from a ring of cameras: colours, normals and depth, as what a screen shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fewstep.core.errors import check
from fewstep.threed.cameras import Camera, turntable
from fewstep.threed.views import Scene, Views

DISTANCE, FOV_Y_DEG = 2.4, 40.0
AT_ONCE = 4  # cameras rendered together
MOST_VIEWS, MOST_PIXELS = 720, 2048

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Ring:
    """How a scene is looked at: ``views`` pictures of ``size`` pixels, the first from the front."""

    views: int = 48
    size: int = 256
    elevation_deg: float = 15.0
    distance: float = DISTANCE

    def __post_init__(self) -> None:
        check(1 <= self.views <= MOST_VIEWS, f"views: from 1 to {MOST_VIEWS}, got {self.views}")
        check(1 <= self.size <= MOST_PIXELS, f"size: from 1 to {MOST_PIXELS} pixels, got {self.size}")
        check(-90 < self.elevation_deg < 90, f"elevation: between -90 and 90 degrees, got {self.elevation_deg:g}")
        check(self.distance > 0, f"distance must be positive, got {self.distance:g}")

    def camera(self) -> Camera:
        """Return the cameras; UserError for a ring inside the cube scenes live in."""
        made = turntable(
            self.views,
            self.size,
            self.size,
            elevation_deg=self.elevation_deg,
            distance=self.distance,
            fov_y_deg=FOV_Y_DEG,
        )
        made.check_outside(1.0)
        return made


@torch.no_grad()
def look(scene: Scene, camera: Camera) -> Iterator[Views]:
    """Yield what cameras see over white, a few at a time."""
    for start in range(0, len(camera), AT_ONCE):
        yield scene.views(camera.select(start, start + AT_ONCE))


def colours(seen: Views) -> Float[Tensor, "b 3 h w"]:
    """Return the colours as they are."""
    return seen.rgb


def normals(seen: Views) -> Float[Tensor, "b 3 h w"]:
    """Return normals as colours over white: x, y and z in [-1, 1] as red, green and blue."""
    return seen.normal / 2 + (1 - seen.alpha / 2)


def depths(seen: Views, near: float, far: float) -> Float[Tensor, "b 3 h w"]:
    """Return depth between ``near`` and ``far`` in greys over white, what is near dark."""
    depth = seen.depth / seen.alpha.clamp_min(1e-6)
    grey = ((depth - near) / (far - near)).clamp(0, 1) * 0.8 + 0.1
    return (grey * seen.alpha + 1 - seen.alpha).expand(-1, 3, -1, -1)


def to_images(pictures: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Return colours in [0, 1] as pictures of 8 bits."""
    values = (pictures.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(value)) for value in values]


def frames(scene: Scene, ring: Ring) -> list[Image.Image]:
    """Return the colours of a scene from a ring."""
    return [image for seen in look(scene, ring.camera()) for image in to_images(colours(seen))]
