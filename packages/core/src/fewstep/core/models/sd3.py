"""Stable Diffusion 3 and 3.5: ``SD3Transformer2DModel`` with two CLIP text encoders and, where it is there, T5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.models.family import Config, Encoded, Family, Size
from fewstep.core.models.tiny import (
    clip_text,
    clip_tokenizer,
    save_pipeline,
    seeded,
    t5_text,
    t5_tokenizer,
    tiny_vae,
)
from fewstep.core.networks.backbone import entry

# the projections of both streams, and their feed-forward layers
JOINT_ATTENTION = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
)  # fmt: skip


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5; without the T5 encoder its tokens are zeros, as in the pipeline."""

    name: ClassVar[str] = "sd3"
    summary: ClassVar[str] = "Stable Diffusion 3 and 3.5"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    network_classes: ClassVar[tuple[str, ...]] = ("SD3Transformer2DModel",)
    text: ClassVar[tuple[str, ...]] = (
        "tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3",
    )  # fmt: skip
    lora_targets: ClassVar[tuple[str, ...]] = JOINT_ATTENTION
    time_embedder: ClassVar[str] = "time_text_embed.timestep_embedder"
    time_proj: ClassVar[str] = "time_text_embed.time_proj"
    stream: ClassVar[int] = 1

    def sample_shape(self, network: Config, vae: Config | None, size: Size) -> tuple[int, ...]:
        """Return the shape of one latent; UserError also for sides beyond the table of positions."""
        shape = super().sample_shape(network, vae, size)
        most = int(network["pos_embed_max_size"]) * self.patch(network) * self.compression(vae)
        check(
            max(size.height, size.width) <= most,
            f"{size.height}x{size.width} pixels: this {self.name} model has positions for sides up to {most} only",
        )
        return shape

    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return ``prompt_embeds`` and ``pooled_embeds``, and those of the empty or the given negative prompt."""
        cond, null, pooled, null_pooled = pipe.encode_prompt(
            list(prompts),
            None,
            None,
            device=pipe.text_encoder.device,
            negative_prompt=None if negative is None else [negative] * len(prompts),
        )
        return Encoded(
            {"prompt_embeds": cond, "pooled_embeds": pooled}, {"prompt_embeds": null, "pooled_embeds": null_pooled}
        )

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the transformer's prediction."""
        out: Tensor = network(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=entry(cond, "prompt_embeds", "the transformer"),
            pooled_projections=entry(cond, "pooled_embeds", "the transformer"),
            return_dict=False,
        )[0]
        return out

    def tiny(self, folder: Path, seed: int) -> None:
        """Write a flow pipeline of 16x16 images."""
        from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

        with seeded(seed):
            transformer = SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=40,
                caption_projection_dim=32,
                pooled_projection_dim=24,
                pos_embed_max_size=8,
                qk_norm="rms_norm",
            )
            first, second, third = clip_text(16, projection=8), clip_text(16, projection=16), t5_text(40)
            vae = tiny_vae(shift=0.1)
        save_pipeline(
            StableDiffusion3Pipeline,
            folder,
            vae=vae,
            text_encoder=first,
            text_encoder_2=second,
            text_encoder_3=third,
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            tokenizer_3=t5_tokenizer(),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
