"""From six latents to six feature planes: an adapted autoencoder's decoder, or a small one of its own."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.errors import check
from fewstep.core.networks.freezing import freeze
from fewstep.core.rng import Rng
from fewstep.threed.planes.adapting import PLANES

DECODER_TARGETS = (
    "conv_in",
    "conv1",
    "conv2",
    "conv_shortcut",
    "upsamplers.0.conv",
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
)


def split_features(x: Float[Tensor, "k 2c h w"]) -> Float[Tensor, "b 6 c h w"]:
    """Return the first half of the channels of planes of geometry, the second half of those of texture."""
    planes = x.reshape(-1, PLANES, *x.shape[1:])
    half = x.shape[1] // 2
    return torch.cat([planes[:, : PLANES // 2, :half], planes[:, PLANES // 2 :, half:]], 1)


class TinyDecoder(nn.Module):
    """Convolutions between two doublings of the side: latents "b 6 c h w" to features "b 6 d 4h 4w"."""

    def __init__(self, latents: int, features: int, *, width: int = 48) -> None:
        super().__init__()
        self.enter = nn.Conv2d(latents, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, 2 * features, 3, padding=1)

    def forward(self, z: Float[Tensor, "b 6 c h w"]) -> Float[Tensor, "b 6 d hh ww"]:
        """Return feature planes."""
        x = self._doubled(F.silu(self.enter(z.flatten(0, 1))))
        x = self._doubled(F.silu(x + self.middle(x)))
        return split_features(self.leave(x))

    def _doubled(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class AutoencoderDecoder(nn.Module):
    """The decoder of an ``AutoencoderKL`` with LoRA and LoCon, its last convolution replaced by a trained one.

    latents: those of the diffusion model. ``scaled``: whether they are divided by the autoencoder's scaling factor
    first; PRD's training and its released weights do not (arXiv 2503.21694).
    """

    def __init__(self, vae: Any, features: int, *, rank: int = 16, scaled: bool = False, seed: int = 0) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__()
        check(vae.decoder.conv_out.out_channels < 2 * features, "planes need more features than a picture has colours")
        self.decoder, self.post_quant = freeze(vae.decoder), vae.post_quant_conv
        if self.post_quant is not None:
            freeze(self.post_quant)
        self.factor = float(vae.config.scaling_factor) if scaled else 1.0
        own = dict.fromkeys(self.parameters())
        with Rng(seed, 0, ()).network_noise("planes/decoder"):
            config = LoraConfig(
                r=rank, lora_alpha=rank, target_modules=list(DECODER_TARGETS), init_lora_weights="gaussian"
            )
            inject_adapter_in_model(config, self.decoder, adapter_name="planes")
            last = self.decoder.conv_out
            self.decoder.conv_out = nn.Conv2d(last.in_channels, 2 * features, 3, padding=1).to(last.weight.device)
        for parameter in self.parameters():
            parameter.requires_grad_(parameter not in own)

    def forward(self, z: Float[Tensor, "b 6 c h w"]) -> Float[Tensor, "b 6 d hh ww"]:
        """Return feature planes."""
        x = z.flatten(0, 1) / self.factor
        if self.post_quant is not None:
            x = self.post_quant(x)
        return split_features(self.decoder(x))
