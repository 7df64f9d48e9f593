"""A scene read from three planes: a density, or a signed distance, and colours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.rng import Rng
from fewstep.threed.cameras import Camera
from fewstep.threed.fields.heads import ColourHead, DensityHead, SDFHead
from fewstep.threed.fields.meshes import Mesh, extract_mesh, keep_large_parts
from fewstep.threed.fields.normals import eikonal_loss, unit, value_and_gradient
from fewstep.threed.fields.opacity import density_alpha
from fewstep.threed.fields.rendering import (
    Opacity,
    Rays,
    box_span,
    even_edges,
    neus_opacity,
    render_rays,
    volsdf_opacity,
)
from fewstep.threed.fields.triplane import sample_triplane
from fewstep.threed.views import Scene, Views, mean_opacity

FieldKind = Literal["density", "neus", "volsdf"]
POINTS = 2048  # at which the slope of a signed distance is looked at
LEVEL = 10.0  # of a density: half a section of 0.07 is opaque there


class FieldScene(Scene):
    """Three planes of features, summed at points, and two small networks that read them.

    ``kind``: ``density``, or a signed distance seen through NeuS or VolSDF with ``sharpness``. ``radius``: of the ball
    it starts from. ``sections`` of a ray, and ``fine`` more where the scene is.
    """

    def __init__(
        self,
        kind: FieldKind = "density",
        *,
        side: int = 32,
        channels: int = 16,
        radius: float = 0.5,
        sections: int = 32,
        fine: int = 0,
        sharpness: float = 30.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.kind, self.sections, self.fine, self.sharpness = kind, sections, fine, sharpness
        self.sizes = {"side": side, "channels": channels, "radius": radius}
        self._seen: dict[str, Tensor] = {}
        with Rng(seed, 0, ()).network_noise("field"):
            self.planes = nn.Parameter(nn.init.normal_(torch.empty(1, 3, channels, side, side), std=0.1))
            self.colour_head = ColourHead(channels, hidden=32, layers=1)
            make = DensityHead if kind == "density" else SDFHead
            self.shape_head = make(channels, radius=radius, hidden=32, layers=1)

    def features(self, points: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        """Return the planes' features at points."""
        read = sample_triplane(self.planes, points.reshape(1, -1, 3))
        return read.reshape(*points.shape[:-1], -1)

    def shape(self, points: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """Return densities, or signed distances that are negative inside."""
        out: Tensor = self.shape_head(self.features(points), points)
        return out

    def colour(self, points: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
        """Return colours at points."""
        out: Tensor = self.colour_head(self.features(points))
        return out

    def views(self, camera: Camera, background: float | Tensor = 1.0, rng: Rng | None = None) -> Views:
        """Return what ``camera`` sees; with ``rng`` the sections of every ray are moved at random.

        ``rng``: a generator of as many samples as divide the cameras, or of one per camera.
        """
        origins, directions = (each.reshape(-1, 3) for each in camera.rays())
        jitter = None
        if rng is not None:
            each = len(camera) // len(rng.ids) * camera.height * camera.width
            jitter = rng.uniform("sections", (each, self.sections + 1)).flatten(0, 1).to(origins)
        behind = torch.as_tensor(background, dtype=origins.dtype, device=origins.device)
        if behind.ndim == 2:
            behind = behind.repeat_interleave(camera.height * camera.width, dim=0)
        found = self.along(origins, directions, behind, jitter)
        forward = camera.world_to_camera[:, 2, :3].repeat_interleave(camera.height * camera.width, dim=0)
        along = (directions * forward).sum(-1, keepdim=True)
        size = (len(camera), camera.height, camera.width, -1)
        rgb, alpha, depth, normal = (
            value.reshape(size).movedim(-1, 1)
            for value in (found.rgb, found.opacity[:, None], found.depth[:, None] * along, found.normal)
        )
        self._seen = {"opacity": mean_opacity(alpha)}
        return Views(rgb, alpha, depth, normal)

    def along(
        self,
        origins: Float[Tensor, "r 3"],
        directions: Float[Tensor, "r 3"],
        background: float | Float[Tensor, "#r c"] = 1.0,
        jitter: Float[Tensor, "r m"] | None = None,
    ) -> Rays:
        """Return what unit rays see, the edges of their sections moved by ``jitter`` in [0, 1)."""
        near, far = box_span(origins, directions)
        edges = even_edges(near, far, self.sections, jitter)
        return render_rays(self._opacity(), self.colour, origins, directions, edges, background, fine=self.fine)

    def penalties(self, rng: Rng) -> dict[str, Tensor]:
        """Return ``opacity``, of the last render, and of a signed distance ``eikonal``: how far its slope is from 1."""
        found = dict(self._seen)
        if self.kind != "density":
            points = (2 * rng.uniform("points", (POINTS // len(rng.ids), 3)).flatten(0, 1) - 1).to(self.planes)
            _, gradient = value_and_gradient(self.shape, points, create_graph=True)
            found["eikonal"] = eikonal_loss(gradient[None])[0]
        return found

    def mesh(self, resolution: int = 96) -> Mesh:
        """Return the surface and its colours; UserError where there is none."""
        if self.kind == "density":
            made = extract_mesh(lambda points: -self.shape(points), resolution, level=-LEVEL)
        else:
            made = extract_mesh(self.shape, resolution)
        return keep_large_parts(made).coloured(self.colour)

    def colour_field(self) -> Callable[[Tensor], Tensor]:
        """Return the field's colours."""
        return self.colour

    def describe(self) -> dict[str, Any]:
        """Return what :meth:`rebuilt` needs besides the tensors."""
        ray = {"sections": self.sections, "fine": self.fine, "sharpness": self.sharpness}
        return {"kind": "field", "field": self.kind, **self.sizes, **ray}

    @classmethod
    def rebuilt(cls, about: Mapping[str, Any], state: Mapping[str, Tensor]) -> FieldScene:
        """Return the scene that was described; some error for what does not fit."""
        whole = {name: int(about[name]) for name in ("side", "channels", "sections", "fine")}
        planes = tuple(state["planes"].shape)
        if planes != (1, 3, whole["channels"], whole["side"], whole["side"]):  # before anything of that size is made
            raise ValueError("planes of another size")
        if about["field"] not in get_args(FieldKind):
            raise ValueError("no such field")
        made = cls(about["field"], radius=float(about["radius"]), sharpness=float(about["sharpness"]), **whole)
        made.load_state_dict(dict(state))
        return made

    def _opacity(self) -> Opacity:
        if self.kind == "neus":
            return neus_opacity(self.shape, self.sharpness)
        if self.kind == "volsdf":
            return volsdf_opacity(self.shape, self.sharpness)

        def opacity(points: Tensor, directions: Tensor, lengths: Tensor, trainable: bool) -> tuple[Tensor, Tensor]:
            if torch.is_grad_enabled():  # normals of a density are looked at, not trained: they cost a pass
                value = self.shape(points)
                return density_alpha(value, lengths), torch.zeros_like(points)
            value, gradient = value_and_gradient(self.shape, points)
            return density_alpha(value, lengths), -unit(gradient)

        return opacity
