"""SVD and SV3D through diffusers: the spatio-temporal U-Net, every frame told its angles, and its encoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Cond, NetworkDenoiser
from fewstep.core.errors import check
from fewstep.core.models.files import PipelineFolder
from fewstep.core.networks.backbone import entry
from fewstep.core.networks.timed import UNetBackbone
from fewstep.threed.orbit.convention import AUGMENTATION
from fewstep.threed.orbit.reading import KarrasV, karras_process

if TYPE_CHECKING:
    from diffusers import UNetSpatioTemporalConditionModel

NETWORK = "UNetSpatioTemporalConditionModel"
CLIP_SIZE = 224
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class VideoBackbone(UNetBackbone):
    """Frames "b f c h w" denoised together; the picture's latent is appended to each, its CLIP embedding attended to.

    Reads ``image``, ``image_embeds`` "b 1 d", ``azimuth`` and ``polar`` (SV3D's three scalars are the noise on the
    picture, polar, azimuth). Unconditional is a picture and an embedding of zeros. diffusers tells all frames the same
    scalars; here each frame's time embedding is shifted to its own.
    """

    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, unet: UNetSpatioTemporalConditionModel) -> None:
        super().__init__()
        self.unet, self.extra_inputs = unet, None
        width, told = unet.config.addition_time_embed_dim, unet.config.projection_class_embeddings_input_dim
        check(told == 3 * width, f"{NETWORK}: it is told {told / width:g} scalars, SV3D's are 3; give SVD or SV3D")

    def forward(self, x: Float[Tensor, "b f c h w"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the raw output, shaped like ``x``; UserError when the condition lacks an entry."""
        who = type(self).__name__
        image, embeds = entry(cond, "image", who).to(x.dtype), entry(cond, "image_embeds", who).to(x.dtype)
        azimuth, polar = entry(cond, "azimuth", who).to(x.dtype), entry(cond, "polar", who).to(x.dtype)
        told = torch.stack([torch.full_like(azimuth, AUGMENTATION), polar, azimuth], -1)  # "b f 3"
        joined = torch.cat([x, image[:, None].expand(*x.shape[:2], *image.shape[1:])], 2)
        with self.adding_extras(cond), self._per_frame(told):
            out: Tensor = self.unet(joined, time, embeds, told[:, -1], return_dict=False)[0]
        return out

    @contextmanager
    def _per_frame(self, told: Float[Tensor, "b f 3"]) -> Iterator[None]:
        """Shift the embedding every block gets from the last frame's scalars to each frame's own."""
        rows = told.flatten(0, 1)
        features = self.unet.add_time_proj(rows.flatten()).reshape(len(rows), -1).to(told.dtype)
        embedded = self.unet.add_embedding(features).reshape(*told.shape[:2], -1)
        shift = (embedded - embedded[:, -1:]).flatten(0, 1)

        def add(module: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, given | {"temb": given["temb"] + shift.to(given["temb"].dtype)}

        blocks = (*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks)
        with ExitStack() as hooks:
            for block in blocks:
                hooks.callback(block.register_forward_pre_hook(add, with_kwargs=True).remove)
            yield

    def null(self, cond: Cond) -> Cond:
        """Return the condition with nothing in its picture."""
        who = type(self).__name__
        zeros = {name: torch.zeros_like(entry(cond, name, who)) for name in ("image", "image_embeds")}
        return dict(cond) | zeros

    def save(self, folder: Path) -> None:
        """Write the UNet as diffusers does; UserError with extra inputs."""
        check(not self.extras, f"extra inputs {', '.join(self.extras)} are not saved with a network of orbits")
        self.unet.save_pretrained(folder, safe_serialization=True)


class VideoOrbits:
    """A pipeline folder of SVD's kind: the denoiser, and conditions of pictures. Parts are loaded when asked for."""

    def __init__(self, folder: PipelineFolder) -> None:
        found = folder.parts.get("unet", ("", "nothing"))[1]
        check(found == NETWORK, f"{folder.path}: its unet is {found}; orbits need a {NETWORK}, as SVD and SV3D have")
        self.folder = folder

    @classmethod
    def open(cls, path: Path) -> VideoOrbits:
        """Return the pipeline of a local folder; UserError for what is none, or must not be loaded."""
        return cls(PipelineFolder.open(path))

    def denoiser(self, dtype: torch.dtype = torch.float32) -> NetworkDenoiser:
        """Return the network as its scheduler has it read."""
        process = karras_process(self.folder.config("scheduler"))
        return NetworkDenoiser(VideoBackbone(self.folder.load("unet", dtype)), process, KarrasV())

    def vae(self, dtype: torch.dtype = torch.float32) -> Any:
        """Return the autoencoder."""
        return self.folder.load("vae", dtype)

    @torch.no_grad()
    def condition(self, rgb: Float[Tensor, "b 3 h w"], vae: Any) -> dict[str, Tensor]:
        """Return ``image`` and ``image_embeds`` of pictures in [0, 1]; the latent is not scaled, as in SVD."""
        noise = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(0)).to(rgb)
        image = vae.encode(2 * rgb - 1 + AUGMENTATION * noise).latent_dist.mode()
        encoder = self.folder.load("image_encoder", rgb.dtype)
        return {"image": image, "image_embeds": clip_embeds(encoder, rgb)[:, None]}


def clip_embeds(encoder: Any, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """Return what a CLIP image encoder says of pictures in [0, 1]."""
    small = torch.nn.functional.interpolate(
        rgb, size=(CLIP_SIZE, CLIP_SIZE), mode="bicubic", antialias=True, align_corners=False
    )
    mean, std = (rgb.new_tensor(each).reshape(1, 3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    size = encoder.config.image_size
    if size != CLIP_SIZE:
        small = torch.nn.functional.interpolate(small, size=(size, size), mode="area")
    out: Tensor = encoder((small - mean) / std).image_embeds
    return out
