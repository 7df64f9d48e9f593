"""Teachers of geometry: they see maps of normals and nearness instead of colours (RichDreamer's kind)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from fewstep.core.errors import check
from fewstep.threed.cameras import Camera
from fewstep.threed.teachers.joint import JointJudge
from fewstep.threed.teachers.spaces import Space, resized
from fewstep.threed.views import Views

CHANNELS = 4
REACH = math.sqrt(3)  # half the diagonal of the cube scenes are in
NO_NORMALS = (
    "this scene renders no normals, and the teacher judges them: use domain.scene.kind neus or volsdf; for a generator "
    "of planes set domain.planes.field.normals"
)


def geometry_maps(seen: Views, camera: Camera) -> Float[Tensor, "b 4 h w"]:
    """Return normals as colours, and disparity, as RichDreamer's networks see them (arXiv 2311.16918).

    Normals in OpenGL's camera axes (x right, y up, z to the viewer) with x turned round, (n + 1)/2, over
    (0.5, 0.5, 1). Disparity ``clamp((far - depth)/(far - near), 0, 1)`` with near and far the camera's distance -/+
    sqrt(3), 0 where nothing is; depth is along the camera's z. Raises UserError for views without normals, and for a
    camera inside the cube's circumscribed ball.
    """
    camera.check_outside(REACH)
    check(bool(seen.normal.any()) or not bool(seen.alpha.any()), NO_NORMALS)
    to_camera = camera.world_to_camera[:, :3, :3].to(seen.normal)
    # from OpenCV's axes y and z change their signs, and then x does
    local = -torch.einsum("bij,bjhw->bihw", to_camera, seen.normal)
    behind = seen.normal.new_tensor([0.5, 0.5, 1.0]).reshape(1, 3, 1, 1)
    colours = (local + seen.alpha) / 2 + (1 - seen.alpha) * behind
    middle = camera.position.norm(dim=-1).to(seen.depth).reshape(-1, 1, 1, 1)
    # depth is weighted by alpha, and what is not covered is at far: far - depth = alpha far - weighted depth
    nearness = (seen.alpha * (middle + REACH) - seen.depth) / (2 * REACH)
    return torch.cat([colours, nearness.clamp(0, 1)], 1)


class Maps(Space):
    """Maps of normals and disparity in [0, 1], averaged to ``side`` pixels; ``size``: of renders (0: the same)."""

    def __init__(self, side: int, size: int = 0) -> None:
        self.side, self.size, self.shape = side, size or side, (CHANNELS, side, side)
        check(self.size >= side, f"renders of {self.size} pixels are too few for maps of {side}: set domain.judge.size")

    def of(self, seen: Views, camera: Camera) -> Tensor:
        """Return the maps."""
        return interpolate(geometry_maps(seen, camera), size=(self.side, self.side), mode="area")

    def pictures(self, samples: Tensor) -> Tensor:
        """Return the normals as colours."""
        return resized(samples[:, :3].clamp(0, 1), self.size)


class GeometryJudge(JointJudge):
    """A joint teacher whose samples are maps of geometry, "b v 4 h w": its space is :class:`Maps`, it has no decoder.

    Scenes it judges must render normals; its pictures show them, which no colours can be compared with.
    """

    space: Maps
