"""CogVideoX 1.0 and 1.5: ``CogVideoXTransformer3DModel`` with a T5 text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.models.family import Encoded, Size
from fewstep.core.models.tiny import save_pipeline, seeded, t5_text, t5_tokenizer, visible
from fewstep.core.models.video import VideoFamily
from fewstep.core.networks.backbone import entry


class CogVideoX(VideoFamily):
    """CogVideoX text-to-video models (v).

    The 1.5 models take latent frames in pairs. Their pipeline fills up an odd number in front and cuts it off again;
    here the frames are asked for that fill it: 85 instead of 81.
    """

    name: ClassVar[str] = "cogvideox"
    summary: ClassVar[str] = "CogVideoX 1.0 and 1.5 text to video"
    pipelines: ClassVar[tuple[str, ...]] = ("CogVideoXPipeline",)
    network_classes: ClassVar[tuple[str, ...]] = ("CogVideoXTransformer3DModel",)
    time_embedder: ClassVar[str] = "time_embedding"
    time_proj: ClassVar[str] = "time_proj"
    input_layer: ClassVar[str] = "patch_embed.proj"
    usual: ClassVar[Size] = Size(480, 720, 49)

    def to_pipeline(self, x: Float[Tensor, "b *d"]) -> Tensor:
        """Return latents "b f c h w"."""
        return x.transpose(1, 2)

    def from_pipeline(self, x: Tensor, shape: Sequence[int]) -> Float[Tensor, "b *d"]:
        """Return latents "b c f h w"."""
        return x.transpose(1, 2)

    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return ``prompt_embeds``, and those of the empty or the given negative prompt."""
        negatives = None if negative is None else [negative] * len(prompts)
        cond, null = pipe.encode_prompt(list(prompts), negatives, device=pipe.text_encoder.device)
        return Encoded({"prompt_embeds": cond}, {"prompt_embeds": null})

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the transformer's prediction."""
        out: Tensor = network(
            self.to_pipeline(x),
            entry(cond, "prompt_embeds", "the CogVideoX transformer"),
            time,
            image_rotary_emb=rotary(network.config, x.shape[2:], x.device),
            return_dict=False,
        )[0]
        return out.transpose(1, 2)

    def tiny(self, folder: Path, seed: int) -> None:
        """Write a pipeline of 9 frames of 16x16."""
        from diffusers import (
            AutoencoderKLCogVideoX,
            CogVideoXDDIMScheduler,
            CogVideoXPipeline,
            CogVideoXTransformer3DModel,
        )

        with seeded(seed):
            transformer = CogVideoXTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                in_channels=4,
                out_channels=4,
                time_embed_dim=16,
                text_embed_dim=32,
                num_layers=2,
                sample_width=4,
                sample_height=4,
                sample_frames=9,
                use_rotary_positional_embeddings=True,
            )
            text = t5_text(32)
            vae = AutoencoderKLCogVideoX(
                down_block_types=("CogVideoXDownBlock3D",) * 3,
                up_block_types=("CogVideoXUpBlock3D",) * 3,
                block_out_channels=(8, 8, 8),
                latent_channels=4,
                layers_per_block=1,
                norm_num_groups=4,
                sample_height=16,
                sample_width=16,
                scaling_factor=0.7,
            )
        save_pipeline(
            CogVideoXPipeline,
            folder,
            vae=vae,
            text_encoder=text,
            tokenizer=t5_tokenizer(),
            transformer=visible(transformer),
            scheduler=CogVideoXDDIMScheduler(
                clip_sample=False,
                prediction_type="v_prediction",
                rescale_betas_zero_snr=True,
                snr_shift_scale=3.0,
                timestep_spacing="trailing",
            ),
        )


def rotary(config: Any, frames_height_width: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Return the rotary embeddings of a latent's positions as the pipeline prepares them; None for models without.

    1.0: positions are scaled to the resolution of training. 1.5: they are the first of a grid of that size.
    """
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    if not config.use_rotary_positional_embeddings:
        return None
    frames, *sides = frames_height_width
    grid = (sides[0] // config.patch_size, sides[1] // config.patch_size)
    base = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
    if config.patch_size_t is None:
        crops = get_resize_crop_region_for_grid(grid, base[1], base[0])
        found = get_3d_rotary_pos_embed(config.attention_head_dim, crops, grid, frames, device=device)
    else:
        frames //= config.patch_size_t
        found = get_3d_rotary_pos_embed(
            config.attention_head_dim, None, grid, frames, grid_type="slice", max_size=base, device=device
        )
    return found[0], found[1]
