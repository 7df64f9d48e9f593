"""A family of diffusers pipelines: how its network is called, conditioned, decoded and adapted.

Everything that differs between Stable Diffusion, Flux or Wan is in one subclass each; the rest of the package asks
through this interface only. What a pipeline's own code does to a prompt is not written again: its public
``encode_prompt`` is called.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.models.files import PipelineFolder
from fewstep.core.prediction import Kind
from fewstep.core.process import Process, RectifiedFlow, process_from_scheduler

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Size:
    """Pixels of what a model makes: ``height``, ``width`` and, for video, ``frames`` (1: an image)."""

    height: int
    width: int
    frames: int = 1


@dataclass(frozen=True)
class Encoded:
    """Prompts as the network wants them, batch first, and their unconditional counterpart (None: there is none)."""

    cond: Cond
    null: Cond | None


class Family(ABC):
    """One family. ``network`` and ``text`` name components of the pipeline; module paths are relative to the network.

    ``lora_targets``: names or suffixes of layers. ``time_embedder`` and ``time_proj``: the ``TimestepEmbedding`` and
    the sinusoids in front of it. ``sends_sigmas``: the pipeline hands the scheduler an even grid of its own, instead of
    asking for a number of steps. ``input_layer``: what latents enter by, where it can be widened; channels of latents
    come first in its input. ``guidance_distilled``: no unconditional prediction; the scale is an input.
    ``stream``: which of a block's outputs is the picture's, where the prompt has one of its own.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    network: ClassVar[str] = "transformer"
    network_classes: ClassVar[tuple[str, ...]]
    text: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")
    media: ClassVar[Literal["image", "video"]] = "image"
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    time_embedder: ClassVar[str]
    time_proj: ClassVar[str]
    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    stream: ClassVar[int] = 0
    input_layer: ClassVar[str] = ""
    sends_sigmas: ClassVar[bool] = False
    guidance_distilled: ClassVar[bool] = False

    @abstractmethod
    def encode(self, pipe: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Encoded:
        """Return conditions of prompts; ``pipe`` is the pipeline with its text components only.

        ``negative``: the unconditional prompt, None for the pipeline's own. ``size``: of the pictures, which some
        networks are told.
        """

    @abstractmethod
    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the network's prediction, shaped like ``x``; ``cond`` has what :meth:`encode` gives."""

    @abstractmethod
    def tiny(self, folder: Path, seed: int) -> None:
        """Write a pipeline of the family's real classes with small random weights: for trying things out, and tests."""

    def sample_shape(self, network: Config, vae: Config | None, size: Size) -> tuple[int, ...]:
        """Return the shape of one latent; UserError for a size the autoencoder or the network cannot take."""
        factor = self.compression(vae)
        step = factor * self.patch(network)
        check(
            size.height % step == 0 and size.width % step == 0,
            f"{size.height}x{size.width} pixels: this {self.name} model takes multiples of {step}, such as "
            f"{max(1, round(size.height / step)) * step}x{max(1, round(size.width / step)) * step}",
        )
        return (self.channels(network), size.height // factor, size.width // factor)

    def compression(self, vae: Config | None) -> int:
        """Return how many pixels a latent pixel stands for, along one side."""
        return int(2 ** (len(vae["block_out_channels"]) - 1)) if vae else 1

    def patch(self, network: Config) -> int:
        """Return how many latent pixels along one side the network takes as one."""
        return int(network.get("patch_size") or 1)

    def channels(self, network: Config) -> int:
        """Return the number of channels of a latent."""
        return int(network["in_channels"])

    def default_size(self, network: Config, vae: Config | None) -> Size:
        """Return the size the pipeline makes when none is asked for."""
        side = network.get("sample_size") or 64
        height, width = (side, side) if isinstance(side, int) else side
        factor = self.compression(vae)
        return Size(height * factor, width * factor)

    def process(self, scheduler: Config, network: Config, shape: Sequence[int]) -> tuple[Process, Kind]:
        """Return the process and the prediction kind, from the pipeline's own scheduler config."""
        process, kind = process_from_scheduler(scheduler)
        if isinstance(process, RectifiedFlow) and scheduler.get("use_dynamic_shifting"):
            mu = resolution_shift(scheduler, self.tokens(network, shape))
            process = RectifiedFlow(shift=mu if scheduler.get("time_shift_type") == "linear" else math.exp(mu))
        return process, Kind(kind)

    def tokens(self, network: Config, shape: Sequence[int]) -> int:
        """Return the length of the sequence an image of ``shape`` is to the network."""
        return math.prod(shape[1:]) // self.patch(network) ** 2

    def to_pipeline(self, x: Float[Tensor, "b *d"]) -> Tensor:
        """Return latents as the pipeline's loop holds them (packed into tokens, frames in another place)."""
        return x

    def from_pipeline(self, x: Tensor, shape: Sequence[int]) -> Float[Tensor, "b *d"]:
        """Return the pipeline's latents as ours, each of ``shape``; the inverse of :meth:`to_pipeline`."""
        return x

    def to_latents(self, vae: Any, pixels: Float[Tensor, "b c *s"]) -> Float[Tensor, "b *d"]:
        """Return scaled latents of pixels in [-1, 1]: the means of the autoencoder's posterior."""
        found = vae.encode(pixels.to(vae.dtype))
        latents = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latent
        return self.scale(vae, latents)

    def to_pixels(self, vae: Any, latents: Float[Tensor, "b *d"]) -> Float[Tensor, "b c *s"]:
        """Return pixels in [-1, 1] of scaled latents."""
        out: Tensor = vae.decode(self.unscale(vae, latents).to(vae.dtype), return_dict=False)[0]
        return out

    def scale(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents as the network knows them."""
        out: Tensor = (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor
        return out

    def unscale(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents as the autoencoder knows them."""
        out: Tensor = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        return out

    def blocks(self, network: nn.Module) -> tuple[str, ...]:
        """Return the paths of the blocks, in the order they run: what is checkpointed, sharded and tapped."""
        return tuple(
            f"{path}.{index}"
            for path in self.block_lists
            for index in range(len(network.get_submodule(path)))  # type: ignore[arg-type]
        )

    def taps(self, network: nn.Module, where: str) -> tuple[str, ...]:
        """Return the paths of modules whose outputs are features: the ``bottleneck``, or all ``blocks``."""
        blocks = tuple(f"{path}:{self.stream}" if self.stream else path for path in self.blocks(network))
        return blocks if where == "blocks" else (blocks[len(blocks) // 2],)

    def kept(self, network: nn.Module) -> tuple[str, ...]:
        """Return the paths of parts whose activations diffusers' own checkpointing would keep."""
        return ()

    def takes_guidance(self, network: Any) -> bool:
        """Return whether the network has an input for the guidance scale (``cond["guidance"]``)."""
        return False

    def check_folder(self, folder: PipelineFolder) -> None:
        """Raise UserError for a pipeline that is more than this family's adapter reads."""
        return

    def pipeline_options(self) -> dict[str, Any]:
        """Return what the pipeline's class wants besides components."""
        return {}


def resolution_shift(scheduler: Config, tokens: int) -> float:
    """Return ``mu`` of resolution-dependent shifting, linear in the sequence length (diffusers' scheduler config)."""
    low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    base, most = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    return float(base + (tokens - low) * (most - base) / (high - low))
