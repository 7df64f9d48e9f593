"""A textured ball seen along an orbit, what a decoder that knows its depth makes of it, and small networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fewstep.core.denoiser import Backbone, Cond, NetworkDenoiser, Plain
from fewstep.core.prediction import Kind
from fewstep.core.process import EDM
from fewstep.core.recipe import Actors, Batch
from fewstep.threed.cameras import Camera
from fewstep.threed.orbit.convention import orbit_condition
from fewstep.threed.orbit.decoder import DecoderConfig, GaussianDecoder
from fewstep.threed.orbit.pixels import to_latents, to_pixels
from fewstep.threed.orbit.supervision import OrbitGeometry, PixelCodec, Seen
from fewstep.threed.recipes.gsv3d import GSV3D, GSV3DConfig

RADIUS = 0.45
PROCESS = EDM(sigma_min=0.002, sigma_max=80.0, sigma_data=1.0)


def texture(points: Tensor) -> Tensor:
    """Smooth colours, different everywhere on the ball."""
    return 0.65 + 0.3 * torch.sin(4 * points + torch.tensor([0.0, 1.0, 2.0], dtype=points.dtype))


def lengths(camera: Camera) -> Tensor:
    """How far along the pixels' rays the ball is met, "b h w", NaN where it is missed."""
    origins, directions = camera.rays()
    middle = -(origins * directions).sum(-1)
    inside = RADIUS**2 - (origins + middle[..., None] * directions).square().sum(-1)
    return middle - torch.where(inside > 0, inside, torch.nan).sqrt()


def photographs(camera: Camera) -> Seen:
    """The pictures of the ball, 16 rays a pixel, one sample of as many views as there are cameras."""
    fine = camera.resized(4 * camera.width, 4 * camera.height)
    met = lengths(fine)
    origins, directions = fine.rays()
    points = origins + met.nan_to_num(1.0)[..., None] * directions
    rgb = torch.where(met.isfinite()[..., None], texture(points), 1.0).movedim(-1, 1)
    alpha = met.isfinite()[:, None].to(rgb)
    middle = lengths(camera)
    _, directions = camera.rays()
    depth = (middle * (directions * camera.world_to_camera[:, None, None, 2, :3]).sum(-1)).nan_to_num(0.0)
    return Seen(avg_pool2d(rgb, 4)[None], avg_pool2d(alpha, 4)[None], depth[None, :, None])


class BallDecoder(GaussianDecoder):
    """Splats on the ball where pixels see it, their colours those of the latents."""

    def __init__(self, geometry: OrbitGeometry, factor: int = 4) -> None:
        super().__init__(DecoderConfig(channels=3 * factor**2, width=4, layers=1, heads=1, upsample=factor))
        self.geometry, self.factor = geometry, factor

    def forward(self, latents: Tensor, camera: Camera) -> Tensor:
        pixels = to_pixels(latents, self.factor)
        seen = camera.resized(*pixels.shape[-2:])
        met = lengths(seen).reshape(*pixels.shape[:2], *pixels.shape[-2:])
        near, far = self.config.near, self.config.far
        inside = met.isfinite()
        depth = torch.logit(((met.nan_to_num(3.0) - near) / (far - near)).clamp(1e-4, 1 - 1e-4))
        side = self.geometry.distance / float(seen.intrinsics[0, 0, 0])  # of a pixel at the ball
        raw = torch.zeros(*met.shape, 14, dtype=pixels.dtype)
        raw[..., 0] = depth
        raw[..., 3] = torch.where(inside, 2.0, -20.0)
        raw[..., 4:7] = torch.log(torch.expm1(torch.tensor(0.05 * side / 0.1)))
        raw[..., 7] = 1
        colour = torch.atanh((2 * pixels.movedim(2, -1) - 1).clamp(-0.99, 0.99))
        return torch.cat([raw[..., :11], colour], -1)


def orbit_batch(geometry: OrbitGeometry, views: int, seen: int = 0) -> Batch:
    """One sample: the ball's orbit, supervised by its first ``seen`` views (0: all)."""
    cond = orbit_condition(torch.tensor([15.0]), views)
    pictures = photographs(geometry.cameras(cond["azimuth"], cond["polar"]))
    z = to_latents(pictures.rgb)
    count = seen or views
    cond |= {"image": z[:, -1], "seen_azimuth": cond["azimuth"][:, :count], "seen_polar": cond["polar"][:, :count]}
    cond |= {f"seen_{name}": getattr(pictures, name)[:, :count] for name in ("rgb", "alpha", "depth")}
    return Batch(1, cond, z)


class Free(Backbone):
    """A network that answers the same latents, its parameters, whatever it is asked."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = nn.Parameter(latents.clone())

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.latents.expand_as(x)


def reads(network: Backbone) -> NetworkDenoiser:
    """A network that says what is clean."""
    return NetworkDenoiser(network, PROCESS, Plain(Kind.X0))


def free_recipe(start: Tensor, decoder: GaussianDecoder, config: GSV3DConfig, **more: object) -> tuple[GSV3D, Free]:
    """The recipe around a student of free latents "1 v c h w"."""
    free = Free(start)
    roles = {"student": reads(free), "decoder": decoder, "codec": PixelCodec(), **more}
    return GSV3D(config, Actors(roles, PROCESS, tuple(start.shape[1:]))), free
