"""Stable Diffusion 1.x and 2.x: ``UNet2DConditionModel`` with one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.models.family import Config, Encoded, Family, Size
from fewstep.core.models.tiny import clip_text, clip_tokenizer, save_pipeline, seeded, tiny_vae
from fewstep.core.networks.backbone import entry


class UNetFamily(Family):
    """What pipelines around a ``UNet2DConditionModel`` share."""

    network: ClassVar[str] = "unet"
    network_classes: ClassVar[tuple[str, ...]] = ("UNet2DConditionModel",)
    # attention, feed-forward, convolutions and time projections, as in LCM-LoRA (arXiv 2311.05556)
    lora_targets: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
        "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
    )  # fmt: skip
    time_embedder: ClassVar[str] = "time_embedding"
    time_proj: ClassVar[str] = "time_proj"
    input_layer: ClassVar[str] = "conv_in"

    def patch(self, network: Config) -> int:
        """Return how often the U-Net halves its input."""
        return int(2 ** (len(network["block_out_channels"]) - 1))

    def blocks(self, network: nn.Module) -> tuple[str, ...]:
        """Return down blocks, the middle block, up blocks."""
        unet: Any = network
        downs = tuple(f"down_blocks.{i}" for i in range(len(unet.down_blocks)))
        middle = ("mid_block",) if unet.mid_block is not None else ()
        return (*downs, *middle, *(f"up_blocks.{i}" for i in range(len(unet.up_blocks))))

    def takes_guidance(self, network: Any) -> bool:
        """Return whether the U-Net embeds a guidance scale (students of LCM)."""
        return network.config.time_cond_proj_dim is not None

    def unet(self, network: Any, x: Tensor, time: Tensor, cond: Cond, added: dict[str, Tensor] | None) -> Tensor:
        """Return the U-Net's prediction."""
        embedded = None
        if network.config.time_cond_proj_dim is not None:
            embedded = guidance_features(cond["guidance"], network.config.time_cond_proj_dim).to(x.dtype)
        out: Tensor = network(
            x,
            time,
            encoder_hidden_states=entry(cond, "prompt_embeds", "the U-Net"),
            timestep_cond=embedded,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out


def guidance_features(scale: Float[Tensor, " b"], width: int) -> Float[Tensor, "b w"]:
    """Return sines and cosines of ``1000 (guidance_scale - 1)``, as LCM's U-Nets embed it (arXiv 2310.04378)."""
    half = width // 2
    rates = torch.exp(-torch.arange(half, device=scale.device).float() * (torch.log(torch.tensor(1e4)) / (half - 1)))
    angles = 1000.0 * (scale.float() - 1)[:, None] * rates
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width % 2))


class StableDiffusion(UNetFamily):
    """Stable Diffusion 1.x (eps) and 2.x (eps or v)."""

    name: ClassVar[str] = "sd"
    summary: ClassVar[str] = "Stable Diffusion 1.x and 2.x"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")

    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return ``prompt_embeds``, and those of the empty or the given negative prompt."""
        negatives = None if negative is None else [negative] * len(prompts)
        cond, null = pipe.encode_prompt(list(prompts), pipe.text_encoder.device, 1, True, negatives)
        return Encoded({"prompt_embeds": cond}, {"prompt_embeds": null})

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the U-Net's prediction."""
        return self.unet(network, x, time, cond, None)

    def pipeline_options(self) -> dict[str, Any]:
        """Return the settings of a pipeline without safety checker."""
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def tiny(self, folder: Path, seed: int) -> None:
        """Write a v-prediction pipeline of 16x16 images."""
        from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

        with seeded(seed):
            unet = UNet2DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                block_out_channels=(16, 32),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=32,
                attention_head_dim=4,
                norm_num_groups=8,
            )
            text, vae = clip_text(32), tiny_vae()
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
        )
        save_pipeline(
            StableDiffusionPipeline,
            folder,
            vae=vae,
            text_encoder=text,
            tokenizer=clip_tokenizer(),
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
