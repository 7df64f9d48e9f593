"""What video families share: frames in the shape of a latent, "c f h w", and sizes that fit patches in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.models.family import Config, Family, Size


class VideoFamily(Family):
    """A family whose latents are "c f h w".

    ``usual``: the size the pipeline's call makes when it is asked for none; a network config with ``sample_height``,
    ``sample_width`` (latent pixels) and ``sample_frames`` (frames) goes before it.
    """

    media: ClassVar[Literal["image", "video"]] = "video"
    usual: ClassVar[Size]
    # attention and feed-forward: few-step students change how much a layer does, not only where it looks
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    def channels(self, network: Config) -> int:
        """Return the number of channels of a latent: a network may take more, when it is told frames."""
        return int(network.get("out_channels") or network["in_channels"])

    def time_compression(self, vae: Config | None) -> int:
        """Return how many frames a latent frame stands for; the first one stands for one."""
        return int(vae.get("temporal_compression_ratio") or 4) if vae else 1

    def time_patch(self, network: Config) -> int:
        """Return how many latent frames the network takes as one."""
        return int(network.get("patch_size_t") or 1)

    def sample_shape(self, network: Config, vae: Config | None, size: Size) -> tuple[int, ...]:
        """Return "c f h w"; UserError for pixels or frames the autoencoder or the network cannot take."""
        channels, height, width = super().sample_shape(network, vae, size)
        step, first = self._frames(network, vae)
        near = max(0, round((size.frames - first) / step)) * step + first
        check(
            size.frames >= first and (size.frames - first) % step == 0,
            f"{size.frames} frames: this {self.name} model takes {step}k+{first} frames, such as {near}",
        )
        return (channels, (size.frames - 1) // self.time_compression(vae) + 1, height, width)

    def _frames(self, network: Config, vae: Config | None) -> tuple[int, int]:
        compression, patch = self.time_compression(vae), self.time_patch(network)
        return compression * patch, compression * (patch - 1) + 1

    def default_size(self, network: Config, vae: Config | None) -> Size:
        """Return the size the pipeline makes when none is asked for, its frames filled up to what the network sees."""
        height, width, frames = (network.get(f"sample_{side}") for side in ("height", "width", "frames"))
        if not (height and width and frames):
            return self.usual
        step, first = self._frames(network, vae)
        factor = self.compression(vae)
        return Size(height * factor, width * factor, frames + (first - frames) % step)

    def tokens(self, network: Config, shape: Sequence[int]) -> int:
        """Return the length of the sequence a video of ``shape`` is to the network."""
        return math.prod(shape[1:]) // (self.time_patch(network) * self.patch(network) ** 2)


class MomentScaled(VideoFamily):
    """A family whose latents are scaled channel by channel, to mean 0 and standard deviation 1."""

    def moments(self, vae: Any) -> tuple[Any, Any]:
        """Return means and standard deviations of the autoencoder's latents, one per channel."""
        return vae.config.latents_mean, vae.config.latents_std

    def scale(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents as the network knows them."""
        mean, std = (_per_channel(each, latents) for each in self.moments(vae))
        return (latents - mean) / std

    def unscale(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents as the autoencoder knows them."""
        mean, std = (_per_channel(each, latents) for each in self.moments(vae))
        return latents * std + mean


def _per_channel(values: Any, like: Tensor) -> Tensor:
    made = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    return made.view(1, -1, *[1] * (like.ndim - 2))
