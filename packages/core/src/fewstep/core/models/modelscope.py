"""ModelScope text to video: ``UNet3DConditionModel`` with one CLIP text encoder and an autoencoder of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.models.family import Config, Size
from fewstep.core.models.sd import StableDiffusion, UNetFamily
from fewstep.core.models.tiny import clip_text, clip_tokenizer, save_pipeline, seeded, tiny_vae, visible
from fewstep.core.models.video import VideoFamily
from fewstep.core.networks.backbone import entry

PIECE = 16  # frames through the autoencoder at a time


class FramewiseVideo(VideoFamily, UNetFamily):
    """A video U-Net on latents of an autoencoder that knows pictures only: every frame is encoded by itself."""

    usual: ClassVar[Size] = Size(256, 256, 16)

    def time_compression(self, vae: Config | None) -> int:
        """Return 1: a latent frame is a frame."""
        return 1

    def default_size(self, network: Config, vae: Config | None) -> Size:
        """Return the size in the network's config, with the pipeline's number of frames."""
        side = network.get("sample_size") or self.usual.height // self.compression(vae)
        height, width = (side, side) if isinstance(side, int) else side
        factor = self.compression(vae)
        return Size(height * factor, width * factor, self.usual.frames)

    def to_pipeline(self, x: Float[Tensor, "b *d"]) -> Tensor:
        """Return latents with frames in the batch, as the pipeline hands them to its scheduler."""
        return x.transpose(1, 2).flatten(0, 1)

    def from_pipeline(self, x: Tensor, shape: Sequence[int]) -> Float[Tensor, "b *d"]:
        """Return "b c f h w"."""
        return x.unflatten(0, (-1, shape[1])).transpose(1, 2)

    def to_latents(self, vae: Any, pixels: Float[Tensor, "b c *s"]) -> Float[Tensor, "b *d"]:
        """Return scaled latents of clips in [-1, 1]."""
        frames = pixels.transpose(1, 2)
        found = [super(FramewiseVideo, self).to_latents(vae, piece) for piece in frames.flatten(0, 1).split(PIECE)]
        return torch.cat(found).unflatten(0, frames.shape[:2]).transpose(1, 2)

    def to_pixels(self, vae: Any, latents: Float[Tensor, "b *d"]) -> Float[Tensor, "b c *s"]:
        """Return clips in [-1, 1] of scaled latents."""
        frames = latents.transpose(1, 2)
        found = [super(FramewiseVideo, self).to_pixels(vae, piece) for piece in frames.flatten(0, 1).split(PIECE)]
        return torch.cat(found).unflatten(0, frames.shape[:2]).transpose(1, 2)


class ModelScope(FramewiseVideo, StableDiffusion):
    """ModelScope text-to-video models, and Zeroscope's (eps)."""

    name: ClassVar[str] = "modelscope"
    summary: ClassVar[str] = "ModelScope text to video"
    pipelines: ClassVar[tuple[str, ...]] = ("TextToVideoSDPipeline",)
    network_classes: ClassVar[tuple[str, ...]] = ("UNet3DConditionModel",)
    # as MCM's (arXiv 2406.06890): the convolutions over time, whose layers have the names conv1 to conv4, stay out
    lora_targets: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
        *(f"resnets.{index}.conv{layer}" for index in range(3) for layer in (1, 2)),
        "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
    )  # fmt: skip

    def takes_guidance(self, network: Any) -> bool:
        """Return False: the network has no such input."""
        return False

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the U-Net's prediction."""
        embeds = entry(cond, "prompt_embeds", "the video U-Net")
        out: Tensor = network(x, time, encoder_hidden_states=embeds, return_dict=False)[0]
        return out

    def pipeline_options(self) -> dict[str, Any]:
        """Return nothing: the pipeline has no safety checker."""
        return {}

    def tiny(self, folder: Path, seed: int) -> None:
        """Write an eps-prediction pipeline of 16x16 pixels."""
        from diffusers import DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel

        with seeded(seed):
            unet = UNet3DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                block_out_channels=(16, 32),
                layers_per_block=2,
                down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
                up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
                cross_attention_dim=32,
                attention_head_dim=4,
                norm_num_groups=8,
            )
            text, vae = clip_text(32), tiny_vae()
            save_pipeline(
                TextToVideoSDPipeline,
                folder,
                vae=vae,
                text_encoder=text,
                tokenizer=clip_tokenizer(),
                unet=visible(unet),
                scheduler=DDIMScheduler(**SCHEDULE),
            )


SCHEDULE: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
