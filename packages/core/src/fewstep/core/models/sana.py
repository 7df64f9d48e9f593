"""Sana and Sana Sprint: ``SanaTransformer2DModel`` with Gemma 2, on latents of the deep-compression autoencoder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.models.family import Config, Encoded, Family, Size
from fewstep.core.models.tiny import gemma_text, gemma_tokenizer, save_pipeline, seeded
from fewstep.core.networks.backbone import entry
from fewstep.core.prediction import Kind
from fewstep.core.process import Process, TrigFlow
from fewstep.core.tensors import expand_to

SIGMA_DATA = 0.5  # of every Sprint model's scheduler


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


class SanaSprint(Sana):
    """Sana Sprint, a few-step student of Sana: TrigFlow around a flow network, told its scale (arXiv 2503.09641).

    The pipeline's loop holds latents times ``sigma_data``; ours are the autoencoder's, on a TrigFlow of unit data.
    """

    name: ClassVar[str] = "sana-sprint"
    summary: ClassVar[str] = "Sana Sprint"
    pipelines: ClassVar[tuple[str, ...]] = ("SanaSprintPipeline",)
    time_embedder: ClassVar[str] = "time_embed.timestep_embedder"
    time_proj: ClassVar[str] = "time_embed.time_proj"
    guidance_distilled: ClassVar[bool] = True

    def process(self, scheduler: Config, network: Config, shape: Sequence[int]) -> tuple[Process, Kind]:
        """Return TrigFlow; UserError for a scheduler of another scale than all known models have."""
        found, kind = super().process(scheduler, network, shape)
        check(
            isinstance(found, TrigFlow) and found.sigma_data == SIGMA_DATA,
            f"scheduler config: {self.name} models have an SCMScheduler with sigma_data {SIGMA_DATA:g}",
        )
        return TrigFlow(sigma_data=1.0), kind

    def to_pipeline(self, x: Float[Tensor, "b *d"]) -> Tensor:
        """Return latents times ``sigma_data``."""
        return x * SIGMA_DATA

    def from_pipeline(self, x: Tensor, shape: Sequence[int]) -> Float[Tensor, "b *d"]:
        """Return latents of unit scale."""
        return x / SIGMA_DATA

    def takes_guidance(self, network: Any) -> bool:
        """Return True: every Sprint model embeds the scale."""
        return True

    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return ``prompt_embeds`` and ``attention_mask``; there is no unconditional prediction."""
        cond, mask = pipe.encode_prompt(
            list(prompts), device=pipe.text_encoder.device, complex_human_instruction=instruction(pipe)
        )
        return Encoded({"prompt_embeds": cond, "attention_mask": mask}, None)

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the velocity on TrigFlow's clock, from the network's flow on a straight line.

        With ``s = sin t / (sin t + cos t)`` and ``n = sqrt(s^2 + (1 - s)^2)`` the straight line passes through
        ``n x`` at ``s``; the velocity is ``((1 - 2s) n x + (1 - 2s + 2s^2) flow) / n``.
        """
        s = time.sin() / (time.cos() + time.sin())
        at = expand_to(s, x).to(x.dtype)
        norm = (at**2 + (1 - at) ** 2).sqrt()
        line = x * norm
        flow = network(
            line,
            encoder_hidden_states=entry(cond, "prompt_embeds", "the transformer"),
            encoder_attention_mask=entry(cond, "attention_mask", "the transformer"),
            guidance=cond["guidance"] * network.config.guidance_embeds_scale,
            timestep=s,
            return_dict=False,
        )[0]
        out: Tensor = ((1 - 2 * at) * line + (1 - 2 * at + 2 * at**2) * flow) / norm
        return out

    def tiny(self, folder: Path, seed: int) -> None:
        """Write a TrigFlow pipeline of 32x32 images."""
        from diffusers import SanaSprintPipeline, SCMScheduler

        parts = tiny_parts(seed, guidance_embeds=True, qk_norm="rms_norm_across_heads")
        save_pipeline(SanaSprintPipeline, folder, scheduler=SCMScheduler(sigma_data=SIGMA_DATA), **parts)


def tiny_parts(seed: int, **settings: Any) -> dict[str, Any]:
    """Return small random components, the transformer with ``settings``, all but the scheduler."""
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
            **settings,
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
