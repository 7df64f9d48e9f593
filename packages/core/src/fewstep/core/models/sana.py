"""Sana: ``SanaTransformer2DModel`` with Gemma 2, on latents of the deep-compression autoencoder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.models.family import Config, Encoded, Family, Size
from fewstep.core.models.tiny import gemma_text, gemma_tokenizer, save_pipeline, seeded
from fewstep.core.networks.backbone import entry


class Sana(Family):
    """Sana; prompts follow the pipeline's own instruction to the language model, the unconditional one does not."""

    name: ClassVar[str] = "sana"
    summary: ClassVar[str] = "Sana"
    pipelines: ClassVar[tuple[str, ...]] = ("SanaPipeline",)
    network_classes: ClassVar[tuple[str, ...]] = ("SanaTransformer2DModel",)
    # the feed-forward is convolutional; its depthwise convolution is too small to be factored
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "conv_inverted", "conv_point")
    time_embedder: ClassVar[str] = "time_embed.emb.timestep_embedder"
    time_proj: ClassVar[str] = "time_embed.emb.time_proj"

    def compression(self, vae: Config | None) -> int:
        """Return how often the deep-compression autoencoder halves, as a factor."""
        return int(2 ** (len(vae["encoder_block_out_channels"]) - 1)) if vae else 1

    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return ``prompt_embeds`` and ``attention_mask``, and those of the empty or the given negative prompt."""
        cond, mask, null, null_mask = pipe.encode_prompt(
            list(prompts),
            negative_prompt=negative or "",
            device=pipe.text_encoder.device,
            complex_human_instruction=instruction(pipe),
        )
        return Encoded(
            {"prompt_embeds": cond, "attention_mask": mask}, {"prompt_embeds": null, "attention_mask": null_mask}
        )

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the transformer's prediction."""
        out: Tensor = network(
            x,
            encoder_hidden_states=entry(cond, "prompt_embeds", "the transformer"),
            encoder_attention_mask=entry(cond, "attention_mask", "the transformer"),
            timestep=time * network.config.timestep_scale,
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]  # a variance predicted too is dropped, as in the pipeline

    def tiny(self, folder: Path, seed: int) -> None:
        """Write a flow pipeline of 32x32 images."""
        from diffusers import DPMSolverMultistepScheduler, SanaPipeline

        scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        save_pipeline(SanaPipeline, folder, scheduler=scheduler, **tiny_parts(seed))


def tiny_parts(seed: int) -> dict[str, Any]:
    """Return small random components, all but the scheduler."""
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    with seeded(seed):
        transformer = SanaTransformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_cross_attention_heads=4,
            cross_attention_head_dim=8,
            cross_attention_dim=32,
            caption_channels=32,
        )
        text = gemma_text(32)
        vae = AutoencoderDC(
            latent_channels=4,
            attention_head_dim=8,
            encoder_block_out_channels=(8, 8, 16),
            decoder_block_out_channels=(8, 8, 16),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            scaling_factor=0.4,
        )
    return {"transformer": transformer, "text_encoder": text, "tokenizer": gemma_tokenizer(), "vae": vae}


def instruction(pipe: Any) -> Any:
    """Return the instruction the pipeline puts in front of prompts unless told otherwise."""
    return inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
