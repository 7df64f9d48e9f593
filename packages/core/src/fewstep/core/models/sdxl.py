"""Stable Diffusion XL: ``UNet2DConditionModel``, two CLIP text encoders, and the picture's size as a condition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.models.family import Encoded, Size
from fewstep.core.models.sd import UNetFamily
from fewstep.core.models.tiny import clip_text, clip_tokenizer, save_pipeline, seeded, tiny_vae
from fewstep.core.networks.backbone import entry


class StableDiffusionXL(UNetFamily):
    """Stable Diffusion XL, the base model."""

    name: ClassVar[str] = "sdxl"
    summary: ClassVar[str] = "Stable Diffusion XL"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    text: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")

    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return ``prompt_embeds``, ``text_embeds`` and ``time_ids``: original size, no crop, target size.

        The unconditional ones are zeros where the pipeline's ``force_zeros_for_empty_prompt`` says so.
        """
        cond, null, pooled, null_pooled = pipe.encode_prompt(
            list(prompts),
            device=pipe.text_encoder_2.device,
            negative_prompt=None if negative is None else [negative] * len(prompts),
        )
        ids = torch.tensor([[size.height, size.width, 0, 0, size.height, size.width]], dtype=pooled.dtype)
        ids = ids.to(pooled.device).repeat(len(prompts), 1)
        return Encoded(
            {"prompt_embeds": cond, "text_embeds": pooled, "time_ids": ids},
            {"prompt_embeds": null, "text_embeds": null_pooled, "time_ids": ids},
        )

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the U-Net's prediction."""
        added = {name: entry(cond, name, "the U-Net") for name in ("text_embeds", "time_ids")}
        return self.unet(network, x, time, cond, added)

    def tiny(self, folder: Path, seed: int) -> None:
        """Write an eps pipeline of 16x16 images."""
        from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

        with seeded(seed):
            unet = UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(16, 32),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=48,
                attention_head_dim=(2, 4),
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 24,
                norm_num_groups=8,
            )
            text, second, vae = clip_text(16), clip_text(32, projection=24), tiny_vae()
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        save_pipeline(
            StableDiffusionXLPipeline,
            folder,
            vae=vae,
            text_encoder=text,
            text_encoder_2=second,
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            unet=unet,
            scheduler=scheduler,
        )
