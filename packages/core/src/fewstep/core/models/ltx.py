"""LTX-Video: ``LTXVideoTransformer3DModel`` with a T5 text encoder; latents go in as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.models.family import Config, Encoded, Size
from fewstep.core.models.tiny import save_pipeline, seeded, t5_text, t5_tokenizer, visible
from fewstep.core.models.video import MomentScaled
from fewstep.core.networks.backbone import entry

FRAME_RATE = 25.0  # per second, the pipeline's own
PIXELS, FRAMES = 32, 8  # that a latent pixel and a latent frame stand for: the network's positions are in these units


class LTX(MomentScaled):
    """LTX-Video text to video (flow), at 25 frames per second."""

    name: ClassVar[str] = "ltx"
    summary: ClassVar[str] = "LTX-Video text to video"
    pipelines: ClassVar[tuple[str, ...]] = ("LTXPipeline",)
    network_classes: ClassVar[tuple[str, ...]] = ("LTXVideoTransformer3DModel",)
    time_embedder: ClassVar[str] = "time_embed.emb.timestep_embedder"
    time_proj: ClassVar[str] = "time_embed.emb.time_proj"
    input_layer: ClassVar[str] = "proj_in"
    sends_sigmas: ClassVar[bool] = True
    usual: ClassVar[Size] = Size(512, 704, 161)

    def sample_shape(self, network: Config, vae: Config | None, size: Size) -> tuple[int, ...]:
        """Return "c f h w"; UserError for another autoencoder than the network's positions are made for."""
        found = (self.compression(vae), self.time_compression(vae))
        check(
            vae is None or found == (PIXELS, FRAMES),
            f"an autoencoder of {found[0]} pixels and {found[1]} frames: this {self.name} model's positions are those "
            f"of one with {PIXELS} and {FRAMES}",
        )
        patches = (self.time_patch(network), self.patch(network))
        check(patches == (1, 1), f"patches {patches[0]}x{patches[1]}: this version reads {self.name} models without")
        return super().sample_shape(network, vae, size)

    def compression(self, vae: Config | None) -> int:
        """Return how many pixels a latent pixel stands for, along one side."""
        if not vae:
            return 1
        return int(vae.get("spatial_compression_ratio") or vae["patch_size"] * 2 ** sum(vae["spatio_temporal_scaling"]))

    def time_compression(self, vae: Config | None) -> int:
        """Return how many frames a latent frame stands for; the first one stands for one."""
        if not vae:
            return 1
        return int(
            vae.get("temporal_compression_ratio") or vae["patch_size_t"] * 2 ** sum(vae["spatio_temporal_scaling"])
        )

    def to_pipeline(self, x: Float[Tensor, "b *d"]) -> Tensor:
        """Return latents as tokens "b n c"."""
        return x.flatten(2).transpose(1, 2)

    def from_pipeline(self, x: Tensor, shape: Sequence[int]) -> Float[Tensor, "b *d"]:
        """Return latents "b c f h w"."""
        return x.transpose(1, 2).reshape(len(x), *shape)

    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return ``prompt_embeds`` and ``attention_mask``, and those of the empty or the given negative prompt."""
        negatives = None if negative is None else [negative] * len(prompts)
        cond, mask, null, null_mask = pipe.encode_prompt(list(prompts), negatives, device=pipe.text_encoder.device)
        return Encoded(
            {"prompt_embeds": cond, "attention_mask": mask}, {"prompt_embeds": null, "attention_mask": null_mask}
        )

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the transformer's prediction."""
        who, (frames, height, width) = "the LTX transformer", x.shape[2:]
        out: Tensor = network(
            self.to_pipeline(x),
            entry(cond, "prompt_embeds", who),
            time,
            entry(cond, "attention_mask", who),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(FRAMES / FRAME_RATE, PIXELS, PIXELS),
            return_dict=False,
        )[0]
        return self.from_pipeline(out, (out.shape[-1], *x.shape[2:]))

    def moments(self, vae: Any) -> tuple[Any, Any]:
        """Return means and standard deviations of the autoencoder's latents, one per channel."""
        return vae.latents_mean, vae.latents_std / vae.config.scaling_factor

    def to_pixels(self, vae: Any, latents: Float[Tensor, "b *d"]) -> Float[Tensor, "b c *s"]:
        """Return pixels in [-1, 1]; a decoder that is told a noise level is told none, as in the pipeline."""
        clean = self.unscale(vae, latents).to(vae.dtype)
        level = clean.new_zeros(len(clean)) if vae.config.timestep_conditioning else None
        out: Tensor = vae.decode(clean, level, return_dict=False)[0]
        return out

    def tiny(self, folder: Path, seed: int) -> None:
        """Write a pipeline of 9 frames of 64x64."""
        from diffusers import (
            AutoencoderKLLTXVideo,
            FlowMatchEulerDiscreteScheduler,
            LTXPipeline,
            LTXVideoTransformer3DModel,
        )

        with seeded(seed):
            transformer = LTXVideoTransformer3DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=2,
                attention_head_dim=16,
                cross_attention_dim=32,
                num_layers=2,
                caption_channels=32,
            )
            transformer.register_to_config(sample_height=2, sample_width=2, sample_frames=9)
            text = t5_text(32)
            vae = AutoencoderKLLTXVideo(
                latent_channels=8,
                block_out_channels=(8, 8, 8, 8),
                decoder_block_out_channels=(8, 8, 8, 8),
                layers_per_block=(1,) * 5,
                decoder_layers_per_block=(1,) * 5,
                scaling_factor=0.5,
            )
            vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 8))
            vae.latents_std.copy_(torch.linspace(0.5, 2.0, 8))
        save_pipeline(
            LTXPipeline,
            folder,
            vae=vae,
            text_encoder=text,
            tokenizer=t5_tokenizer(),
            transformer=visible(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_image_seq_len=1024,
                max_image_seq_len=4096,
                base_shift=0.95,
                max_shift=2.05,
                shift_terminal=0.1,
            ),
        )
