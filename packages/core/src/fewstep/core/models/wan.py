"""Wan 2.1, and the Wan 2.2 models with one network: ``WanTransformer3DModel`` with a UMT5 text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.models.family import Config, Encoded, Size
from fewstep.core.models.files import PipelineFolder
from fewstep.core.models.tiny import save_pipeline, seeded, t5_text, t5_tokenizer, visible
from fewstep.core.models.video import MomentScaled
from fewstep.core.networks.backbone import entry

PROMPT_TOKENS = 512  # of the pipeline's call; its encode_prompt has another default


class Wan(MomentScaled):
    """Wan text-to-video models of one network (flow)."""

    name: ClassVar[str] = "wan"
    summary: ClassVar[str] = "Wan 2.1 text to video, and Wan 2.2 5B"
    pipelines: ClassVar[tuple[str, ...]] = ("WanPipeline",)
    network_classes: ClassVar[tuple[str, ...]] = ("WanTransformer3DModel",)
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    time_embedder: ClassVar[str] = "condition_embedder.time_embedder"
    time_proj: ClassVar[str] = "condition_embedder.timesteps_proj"
    input_layer: ClassVar[str] = "patch_embedding"
    block_lists: ClassVar[tuple[str, ...]] = ("blocks",)
    usual: ClassVar[Size] = Size(480, 832, 81)

    def check_folder(self, folder: PipelineFolder) -> None:
        """Raise UserError for Wan 2.2's pairs of networks."""
        check(
            not folder.has("transformer_2") and folder.options.get("boundary_ratio") is None,
            f"{folder.path}: this Wan 2.2 pipeline changes from one network to another (transformer_2) at a noise "
            "level (boundary_ratio), and a teacher here is one network for all of them: use Wan 2.1, or Wan 2.2 5B",
        )

    def compression(self, vae: Config | None) -> int:
        """Return how many pixels a latent pixel stands for, along one side."""
        return int(vae.get("scale_factor_spatial") or 8) if vae else 1

    def time_compression(self, vae: Config | None) -> int:
        """Return how many frames a latent frame stands for; the first one stands for one."""
        return int(vae.get("scale_factor_temporal") or 4) if vae else 1

    def patch(self, network: Config) -> int:
        """Return how many latent pixels along one side the network takes as one."""
        return int(network["patch_size"][-1])

    def time_patch(self, network: Config) -> int:
        """Return how many latent frames the network takes as one."""
        return int(network["patch_size"][0])

    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return ``prompt_embeds`` (zero after a prompt's end), and those of the empty or the given negative prompt."""
        negatives = None if negative is None else [negative] * len(prompts)
        cond, null = pipe.encode_prompt(
            list(prompts), negatives, max_sequence_length=PROMPT_TOKENS, device=pipe.text_encoder.device
        )
        return Encoded({"prompt_embeds": cond}, {"prompt_embeds": null})

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the transformer's prediction."""
        embeds = entry(cond, "prompt_embeds", "the Wan transformer")
        out: Tensor = network(x, timestep=time, encoder_hidden_states=embeds, return_dict=False)[0]
        return out

    def tiny(self, folder: Path, seed: int) -> None:
        """Write a pipeline of 9 frames of 16x16."""
        from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

        with seeded(seed):
            transformer = WanTransformer3DModel(
                patch_size=(1, 2, 2),
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                text_dim=32,
                freq_dim=16,
                ffn_dim=32,
                num_layers=2,
                rope_max_seq_len=32,
            )
            transformer.register_to_config(sample_height=4, sample_width=4, sample_frames=9)
            text = t5_text(32, multilingual=True)
            vae = AutoencoderKLWan(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[True, True],
                latents_mean=[-0.5, 0.1, 0.3, -0.2],
                latents_std=[2.0, 1.5, 2.5, 1.8],
                scale_factor_spatial=4,
            )
        save_pipeline(
            WanPipeline,
            folder,
            vae=vae,
            text_encoder=text,
            tokenizer=t5_tokenizer(),
            transformer=visible(transformer),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
            ),
        )
