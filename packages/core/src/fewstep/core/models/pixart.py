"""PixArt-alpha and PixArt-sigma: ``PixArtTransformer2DModel`` with T5 and, in alpha at 1024 pixels, the size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.models.family import Encoded, Family, Size
from fewstep.core.models.tiny import save_pipeline, seeded, t5_text, t5_tokenizer, tiny_vae
from fewstep.core.networks.backbone import entry


class PixArt(Family):
    """PixArt-alpha and PixArt-sigma; the variance they predict too is dropped, as in the pipelines."""

    name: ClassVar[str] = "pixart"
    summary: ClassVar[str] = "PixArt-alpha and PixArt-sigma"
    pipelines: ClassVar[tuple[str, ...]] = ("PixArtSigmaPipeline", "PixArtAlphaPipeline")
    network_classes: ClassVar[tuple[str, ...]] = ("PixArtTransformer2DModel",)
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    time_embedder: ClassVar[str] = "adaln_single.emb.timestep_embedder"
    time_proj: ClassVar[str] = "adaln_single.emb.time_proj"

    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return ``prompt_embeds``, ``attention_mask``, ``resolution`` (pixels) and ``aspect_ratio``."""
        cond, mask, null, null_mask = pipe.encode_prompt(
            list(prompts),
            negative_prompt=negative or "",
            device=pipe.text_encoder.device,
            clean_caption=cleans_captions(),
        )
        rows = torch.tensor([[size.height, size.width]], dtype=cond.dtype, device=cond.device).repeat(len(prompts), 1)
        told = {"resolution": rows, "aspect_ratio": rows[:, :1] / rows[:, 1:]}
        return Encoded(
            {"prompt_embeds": cond, "attention_mask": mask, **told},
            {"prompt_embeds": null, "attention_mask": null_mask, **told},
        )

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the transformer's prediction."""
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if network.use_additional_conditions:
            added = {name: entry(cond, name, "the transformer") for name in added}
        out: Tensor = network(
            x,
            encoder_hidden_states=entry(cond, "prompt_embeds", "the transformer"),
            encoder_attention_mask=entry(cond, "attention_mask", "the transformer"),
            timestep=time,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]

    def tiny(self, folder: Path, seed: int) -> None:
        """Write an eps pipeline of 16x16 images."""
        from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

        with seeded(seed):
            transformer = PixArtTransformer2DModel(
                sample_size=8,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=3,  # the width is divided by three where the size is a condition
                in_channels=4,
                out_channels=8,
                cross_attention_dim=24,
                caption_channels=32,
                norm_num_groups=8,
            )
            text, vae = t5_text(32), tiny_vae()
        save_pipeline(
            PixArtSigmaPipeline,
            folder,
            vae=vae,
            text_encoder=text,
            tokenizer=t5_tokenizer(),
            transformer=transformer,
            scheduler=DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear"),
        )


def cleans_captions() -> bool:
    """Return whether the pipelines clean captions, as they do by default where two more packages are there."""
    from diffusers.utils import is_bs4_available, is_ftfy_available

    return bool(is_bs4_available() and is_ftfy_available())
