"""From the latents of views to Gaussians: a transformer over the tokens of all views, and 14 numbers per pixel.

A pixel's numbers: position (3), opacity, scale (3), quaternion w x y z (4), rgb (3), as LGM orders them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.data.writing import write_tensors, write_text
from fewstep.core.errors import UserError, check
from fewstep.core.rng import Rng
from fewstep.core.tensors import precise
from fewstep.threed.cameras import Camera
from fewstep.threed.gaussians.harmonics import from_rgb
from fewstep.threed.gaussians.parameters import Gaussians

NUMBERS = 14
SPLIT = (3, 1, 3, 4, 3)  # position, opacity, scale, quaternion, rgb
SCALE = 0.1  # LGM's factor of softplus
FAINTEST = 1e-6  # a scale softplus rounds to 0 has no logarithm
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
# of an untrained head: splats of some pixels' size, half transparent
START = (0.0, 0.0, 0.0, -1.0, -0.7, -0.7, -0.7, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Settings of a decoder.

    ``channels``: of a latent. ``upsample``: Gaussians along a side of a latent pixel. ``position``: ``ray`` is a depth
    between ``near`` and ``far`` along the pixel's ray, and a shift across it of at most a pixel; ``world`` is LGM's
    clamped position. ``views``: which views give Gaussians (empty: all); all are attended to.
    """

    channels: int = 48
    width: int = 96
    layers: int = 4
    heads: int = 4
    upsample: int = 2
    position: Literal["ray", "world"] = "ray"
    near: float = 2.4
    far: float = 4.0
    views: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check(self.channels >= 1 and self.layers >= 1, "a decoder needs one channel and one layer or more")
        check(
            self.heads >= 1 and self.width % self.heads == 0, f"width={self.width}: no multiple of {self.heads} heads"
        )
        check(self.upsample >= 1, f"upsample must be at least 1, got {self.upsample}")
        check(self.position in ("ray", "world"), f"position '{self.position}': must be ray or world")
        check(0 < self.near < self.far, f"need 0 < near < far, got {self.near:g} and {self.far:g}")
        check(all(view >= 0 for view in self.views), f"views are counted from 0, got {list(self.views)}")


class GaussianDecoder(nn.Module):
    """Latents and cameras of views to one Gaussian per pixel of each."""

    def __init__(self, config: DecoderConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with Rng(seed, 0, ()).network_noise("init"):
            self.enter = nn.Linear(config.channels + 6, config.width)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(
                    config.width, config.heads, 4 * config.width, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(config.layers)
            )
            self.norm = nn.LayerNorm(config.width)
            self.mix = nn.Linear(config.width + config.channels, 2 * config.width)
            self.head = nn.Linear(2 * config.width, NUMBERS * config.upsample**2)
            nn.init.normal_(self.head.weight, std=0.02)
        with torch.no_grad():
            # upsampling is by blocks of channels: each number is upsample^2 of them
            self.head.bias.copy_(torch.tensor(START).repeat_interleave(config.upsample**2))

    def forward(self, latents: Float[Tensor, "b v c h w"], camera: Camera) -> Float[Tensor, "b v H W 14"]:
        """Return raw numbers in float32; ``camera``: b * v of them, a sample's views adjacent.

        Raises UserError for latents of other channels, or another number of cameras.
        """
        batch, views, channels, height, width = latents.shape
        check(channels == self.config.channels, f"latents of {channels} channels, the decoder {self.config.channels}")
        check(len(camera) == batch * views, f"{len(camera)} cameras for {batch} x {views} views: give one each")
        with torch.autocast(latents.device.type, enabled=False):
            rays = pluecker(camera.resized(width, height)).to(latents).reshape(batch, views, height, width, 6)
        pixels = latents.movedim(2, -1)
        x = self.enter(torch.cat([pixels, rays], -1).flatten(1, 3))
        for block in self.blocks:
            x = block(x)
        # what becomes a size or an opacity is not trusted to half precision
        with torch.autocast(x.device.type, enabled=False):
            both = torch.cat([self.norm(x).float(), pixels.flatten(1, 3).float()], -1)
            out = F.linear(
                F.gelu(F.linear(both, self.mix.weight.float(), self.mix.bias.float())),
                self.head.weight.float(),
                self.head.bias.float(),
            )
        planes = out.reshape(batch * views, height, width, -1).movedim(-1, 1)
        found = F.pixel_shuffle(planes, self.config.upsample).movedim(1, -1)
        return found.reshape(batch, views, *found.shape[1:])

    def gaussians(self, latents: Float[Tensor, "b v c h w"], camera: Camera) -> list[Gaussians]:
        """Return the Gaussians of each sample; UserError for a view to decode that is not there."""
        raw = self(latents, camera)
        views = raw.shape[1]
        chosen = list(self.config.views or range(views))
        check(max(chosen) < views, f"view {max(chosen)} is to be decoded, and there are {views}: count from 0")
        made = []
        for sample, numbers in enumerate(raw):
            index = [sample * views + view for view in chosen]
            seen = Camera(camera.world_to_camera[index], camera.intrinsics[index], camera.width, camera.height)
            made.append(activate(numbers[chosen], seen, self.config))
        return made

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Write configuration and weights, as they are or in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG_FILE, json.dumps(asdict(self.config), indent=2) + "\n")
        state = self.state_dict()
        write_tensors(folder / WEIGHTS_FILE, {k: v.half() for k, v in state.items()} if half else state)

    @classmethod
    def load(cls, folder: Path) -> GaussianDecoder:
        """Return the decoder saved in a folder, in float32; UserError when its files do not make one."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from fewstep.core.models.files import read_json

        found: dict[str, Any] = read_json(folder / CONFIG_FILE)
        try:
            made = cls(DecoderConfig(**(found | {"views": tuple(found.get("views", ()))})))
            made.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, TypeError, RuntimeError, SafetensorError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder}: cannot be read as a decoder of Gaussians ({line}); train it again") from error
        return made.float().eval()


def pluecker(camera: Camera) -> Float[Tensor, "b h w 6"]:
    """Return the rays of the pixels as ``(o x d, d)``, which is the same for every point ``o`` of a ray."""
    origins, directions = camera.rays()
    return torch.cat([torch.linalg.cross(origins, directions), directions], -1)


def activate(raw: Float[Tensor, "v h w 14"], camera: Camera, config: DecoderConfig) -> Gaussians:
    """Return the Gaussians that raw numbers of ``v`` views mean.

    Opacity is a sigmoid, scale 0.1 softplus, rgb ``0.5 tanh + 0.5``, and quaternions are normalised, as in LGM.
    """
    raw = precise(raw)
    position, opacity, scale, quaternion, rgb = torch.split(raw.flatten(0, 2), list(SPLIT), -1)
    if config.position == "world":
        means = position.clamp(-1, 1)
    else:
        means = along_rays(raw[..., :3], camera, config.near, config.far).flatten(0, 2)
    return Gaussians(
        means,
        (SCALE * F.softplus(scale)).clamp_min(FAINTEST).log(),
        F.normalize(quaternion, dim=-1),
        opacity[:, 0],
        from_rgb(0.5 * rgb.tanh() + 0.5)[:, None],
    )


def along_rays(raw: Float[Tensor, "v h w 3"], camera: Camera, near: float, far: float) -> Float[Tensor, "v h w 3"]:
    """Return ``o + (d + shift) (near + (far - near) sigmoid(raw_0))``, the shift ``tanh(raw_12)`` pixels across."""
    height, width = raw.shape[1:3]
    seen = camera.resized(width, height).to(raw.dtype).to(raw.device)
    origins, directions = seen.rays()
    across = seen.world_to_camera[:, None, None, :2, :3]  # the image's right and down in the world
    focal = torch.stack([seen.intrinsics[:, 0, 0], seen.intrinsics[:, 1, 1]], -1)[:, None, None]
    shift = torch.einsum("vhwi,vhwij->vhwj", raw[..., 1:].tanh() / focal, across.expand(*raw.shape[:3], 2, 3))
    depth = near + (far - near) * raw[..., :1].sigmoid()
    return origins + (directions + shift) * depth
