"""HunyuanVideo: ``HunyuanVideoTransformer3DModel`` with a Llama and a CLIP text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.models.family import Config, Encoded, Size
from fewstep.core.models.tiny import clip_text, clip_tokenizer, save_pipeline, seeded, visible
from fewstep.core.models.tiny_video import llama_text, template_tokenizer
from fewstep.core.models.video import VideoFamily
from fewstep.core.networks.backbone import entry

CLIP_TOKENS = 77
GUIDANCE_UNITS = 1000.0  # the network is told the guidance scale in thousandths, as the pipeline does


class HunyuanVideo(VideoFamily):
    """HunyuanVideo text to video (flow), distilled from guidance: its scale is an input."""

    name: ClassVar[str] = "hunyuan-video"
    summary: ClassVar[str] = "HunyuanVideo text to video (guidance-distilled)"
    pipelines: ClassVar[tuple[str, ...]] = ("HunyuanVideoPipeline",)
    network_classes: ClassVar[tuple[str, ...]] = ("HunyuanVideoTransformer3DModel",)
    text: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    lora_targets: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp",
    )  # fmt: skip
    time_embedder: ClassVar[str] = "time_text_embed.timestep_embedder"
    time_proj: ClassVar[str] = "time_text_embed.time_proj"
    input_layer: ClassVar[str] = "x_embedder.proj"
    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks", "single_transformer_blocks")
    sends_sigmas: ClassVar[bool] = True
    guidance_distilled: ClassVar[bool] = True
    usual: ClassVar[Size] = Size(720, 1280, 129)

    def compression(self, vae: Config | None) -> int:
        """Return how many pixels a latent pixel stands for, along one side."""
        return int(vae.get("spatial_compression_ratio") or 8) if vae else 1

    def takes_guidance(self, network: Any) -> bool:
        """Return whether the network embeds a guidance scale."""
        return bool(network.config.guidance_embeds)

    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return ``prompt_embeds``, ``attention_mask`` and ``pooled_embeds``."""
        embeds, pooled, mask = pipe.encode_prompt(list(prompts), device=pipe.text_encoder.device)
        return Encoded({"prompt_embeds": embeds, "attention_mask": mask, "pooled_embeds": pooled}, None)

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the transformer's prediction."""
        who = "the HunyuanVideo transformer"
        out: Tensor = network(
            x,
            time,
            encoder_hidden_states=entry(cond, "prompt_embeds", who),
            encoder_attention_mask=entry(cond, "attention_mask", who),
            pooled_projections=entry(cond, "pooled_embeds", who),
            guidance=cond["guidance"] * GUIDANCE_UNITS if self.takes_guidance(network) else None,
            return_dict=False,
        )[0]
        return out

    def tiny(self, folder: Path, seed: int) -> None:
        """Write a pipeline of 9 frames of 16x16."""
        from diffusers import (
            AutoencoderKLHunyuanVideo,
            FlowMatchEulerDiscreteScheduler,
            HunyuanVideoPipeline,
            HunyuanVideoTransformer3DModel,
        )
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

        tokenizer = template_tokenizer(DEFAULT_PROMPT_TEMPLATE["template"])
        with seeded(seed):
            transformer = HunyuanVideoTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=12,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                text_embed_dim=32,
                pooled_projection_dim=32,
                rope_axes_dim=(4, 4, 4),
            )
            transformer.register_to_config(sample_height=4, sample_width=4, sample_frames=9)
            llama, clip = llama_text(32, len(tokenizer)), clip_text(32, length=CLIP_TOKENS)
            vae = AutoencoderKLHunyuanVideo(
                latent_channels=4,
                down_block_types=("HunyuanVideoDownBlock3D",) * 3,
                up_block_types=("HunyuanVideoUpBlock3D",) * 3,
                block_out_channels=(8, 8, 8),
                layers_per_block=1,
                norm_num_groups=4,
                scaling_factor=0.5,
                spatial_compression_ratio=4,
            )
        save_pipeline(
            HunyuanVideoPipeline,
            folder,
            vae=vae,
            text_encoder=llama,
            tokenizer=tokenizer,
            text_encoder_2=clip,
            tokenizer_2=clip_tokenizer(),
            transformer=visible(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        )
