"""Flux: ``FluxTransformer2DModel`` on packed latents, with CLIP's pooled output and T5; guidance is distilled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.models.family import Config, Encoded, Family, Size
from fewstep.core.models.sd3 import JOINT_ATTENTION
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

PACK = 2  # the pipeline packs squares of 2x2 latent pixels into one token, whatever the network's patch_size


class Flux(Family):
    """Flux.1: dev, which is told its guidance scale, and schnell, which is not."""

    name: ClassVar[str] = "flux"
    summary: ClassVar[str] = "Flux.1"
    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    network_classes: ClassVar[tuple[str, ...]] = ("FluxTransformer2DModel",)
    text: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    # the single-stream blocks have one layer in front of the feed-forward's nonlinearity, one behind
    lora_targets: ClassVar[tuple[str, ...]] = (*JOINT_ATTENTION, "proj_mlp", "proj_out")
    time_embedder: ClassVar[str] = "time_text_embed.timestep_embedder"
    time_proj: ClassVar[str] = "time_text_embed.time_proj"
    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks", "single_transformer_blocks")
    stream: ClassVar[int] = 1
    sends_sigmas: ClassVar[bool] = True
    guidance_distilled: ClassVar[bool] = True

    def patch(self, network: Config) -> int:
        """Return the side of a packed square."""
        return PACK

    def channels(self, network: Config) -> int:
        """Return the channels of a latent before packing."""
        return int(network["in_channels"]) // PACK**2

    def default_size(self, network: Config, vae: Config | None) -> Size:
        """Return the autoencoder's size: the transformer's configuration has none."""
        side = int((vae or {}).get("sample_size") or 1024)
        return Size(side, side)

    def to_pipeline(self, x: Float[Tensor, "b *d"]) -> Tensor:
        """Return "b n 4c" packed from "b c h w"."""
        b, c, h, w = x.shape
        squares = x.reshape(b, c, h // PACK, PACK, w // PACK, PACK)
        return squares.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * PACK**2)

    def from_pipeline(self, x: Tensor, shape: Sequence[int]) -> Float[Tensor, "b *d"]:
        """Return "b c h w" of packed latents."""
        c, h, w = shape
        squares = x.reshape(len(x), h // PACK, w // PACK, c, PACK, PACK)
        return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(x), c, h, w)

    def takes_guidance(self, network: Any) -> bool:
        """Return whether the scale is an input, as in dev."""
        return bool(network.config.guidance_embeds)

    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return ``prompt_embeds`` (T5) and ``pooled_embeds`` (CLIP); there is no unconditional prediction."""
        cond, pooled, _ = pipe.encode_prompt(list(prompts), device=pipe.text_encoder.device)
        return Encoded({"prompt_embeds": cond, "pooled_embeds": pooled}, None)

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the transformer's prediction; positions of tokens are (0, row, column), of the prompt's zeros."""
        prompt = entry(cond, "prompt_embeds", "the transformer")
        rows, columns = (torch.arange(side // PACK, device=x.device, dtype=x.dtype) for side in x.shape[-2:])
        places = torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns)
        out: Tensor = network(
            hidden_states=self.to_pipeline(x),
            timestep=time.to(x.dtype) / 1000,  # the network multiplies it again
            guidance=cond["guidance"] if self.takes_guidance(network) else None,
            pooled_projections=entry(cond, "pooled_embeds", "the transformer"),
            encoder_hidden_states=prompt,
            txt_ids=torch.zeros(prompt.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=places,
            return_dict=False,
        )[0]
        return self.from_pipeline(out, x.shape[1:])

    def tiny(self, folder: Path, seed: int) -> None:
        """Write a pipeline of 16x16 images that is told its scale and shifts times with the resolution."""
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

        with seeded(seed):
            transformer = FluxTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=16,
                guidance_embeds=True,
                axes_dims_rope=(4, 6, 6),
            )
            text, second, vae = clip_text(16), t5_text(32), tiny_vae(shift=0.1)
        save_pipeline(
            FluxPipeline,
            folder,
            vae=vae,
            text_encoder=text,
            text_encoder_2=second,
            tokenizer=clip_tokenizer(),
            tokenizer_2=t5_tokenizer(),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        )
