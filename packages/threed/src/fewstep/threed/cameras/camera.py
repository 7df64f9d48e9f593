"""A batch of pinhole cameras: rays through its pixels, and points onto them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check


@dataclass(frozen=True)
class Camera:
    """Pinhole cameras of one image size, in the convention of :mod:`fewstep.threed.cameras`."""

    world_to_camera: Float[Tensor, "b 4 4"]
    intrinsics: Float[Tensor, "b 3 3"]  # in pixels
    width: int
    height: int

    def __post_init__(self) -> None:
        """Raise UserError for shapes that are not those of ``b`` cameras, and for an empty image."""
        pose, intrinsics = tuple(self.world_to_camera.shape), tuple(self.intrinsics.shape)
        check(len(pose) == 3 and pose[1:] == (4, 4), f"world_to_camera must be [b, 4, 4], got {list(pose)}")
        check(
            intrinsics == (pose[0], 3, 3),
            f"intrinsics must be [{pose[0]}, 3, 3] like world_to_camera, got {list(intrinsics)}",
        )
        check(
            self.width >= 1 and self.height >= 1, f"a camera needs an image of 1x1 or more: {self.width}x{self.height}"
        )

    def __len__(self) -> int:
        return self.world_to_camera.shape[0]

    @property
    def camera_to_world(self) -> Float[Tensor, "b 4 4"]:
        """The inverse of ``world_to_camera``, by transposing its rotation."""
        rotation, moved = self.world_to_camera[:, :3, :3].mT, self.world_to_camera[:, :3, 3:]
        out = self.world_to_camera.clone()
        out[:, :3, :3] = rotation
        out[:, :3, 3:] = -rotation @ moved
        return out

    @property
    def position(self) -> Float[Tensor, "b 3"]:
        """The cameras' centres in the world."""
        return self.camera_to_world[:, :3, 3]

    def to(self, target: torch.device | str | torch.dtype) -> Camera:
        """Return the cameras on another device or in another dtype."""
        return replace(self, world_to_camera=self.world_to_camera.to(target), intrinsics=self.intrinsics.to(target))

    def select(self, start: int, stop: int) -> Camera:
        """Return a slice of the cameras."""
        return replace(self, world_to_camera=self.world_to_camera[start:stop], intrinsics=self.intrinsics[start:stop])

    def resized(self, width: int, height: int) -> Camera:
        """Return cameras that see the same through an image of another size."""
        scale = self.intrinsics.new_tensor([width / self.width, height / self.height, 1.0])
        return Camera(self.world_to_camera, self.intrinsics * scale[:, None], width, height)

    def rays(self) -> tuple[Float[Tensor, "b h w 3"], Float[Tensor, "b h w 3"]]:
        """Return origins and unit directions, in the world, of the rays through the pixels' centres."""
        like = self.intrinsics
        columns = torch.arange(self.width, dtype=like.dtype, device=like.device) + 0.5
        rows = torch.arange(self.height, dtype=like.dtype, device=like.device) + 0.5
        v, u = torch.meshgrid(rows, columns, indexing="ij")
        pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)
        # row vectors: d K^-T R, with R = world_to_camera's rotation
        to_world = torch.linalg.inv(like).mT @ self.world_to_camera[:, :3, :3]
        directions = torch.einsum("hwi,bij->bhwj", pixels, to_world)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        return self.position[:, None, None].expand_as(directions), directions

    def project(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
        """Return where world points fall, as (column, row) in pixels, and their depths along the optical axis."""
        local = points @ self.world_to_camera[:, :3, :3].mT + self.world_to_camera[:, None, :3, 3]
        pixels = local @ self.intrinsics.mT
        return pixels[..., :2] / pixels[..., 2:], local[..., 2]

    def check_outside(self, radius: float) -> None:
        """Raise UserError where a camera stands inside the ball of ``radius`` that holds the scene."""
        nearest = float(self.position.norm(dim=-1).min())
        check(
            nearest > radius,
            f"a camera at distance {nearest:.3g} is inside the object (radius {radius:.3g}): move it further away",
        )


def intrinsics_of(fov_y_deg: Float[Tensor, " b"], width: int, height: int) -> Float[Tensor, "b 3 3"]:
    """Return square-pixel intrinsics, f = height / (2 tan(fov_y / 2)), with the principal point in the middle.

    Raises UserError for an angle outside (0, 180) degrees.
    """
    check(
        bool(((fov_y_deg > 0) & (fov_y_deg < 180)).all()),
        f"a vertical field of view lies between 0 and 180 degrees, got {fov_y_deg.tolist()}",
    )
    focal = 0.5 * height / torch.tan(torch.deg2rad(fov_y_deg) / 2)
    out = torch.zeros(len(focal), 3, 3, dtype=focal.dtype, device=focal.device)
    out[:, 0, 0] = out[:, 1, 1] = focal
    out[:, 0, 2], out[:, 1, 2], out[:, 2, 2] = width / 2, height / 2, 1.0
    return out
