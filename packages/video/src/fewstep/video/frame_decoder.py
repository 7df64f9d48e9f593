"""Pixels of single frames with gradient: what a discriminator of frames looks at."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.core.data.problem import Decoder


class FrameDecoder(nn.Module):
    """Decodes single latent frames through a teacher's autoencoder; gradients flow through, its weights are no
    parameters of this module.

    ``recompute``: decode again in the backward pass, frame by frame and block by block, instead of keeping activations,
    which are a thousand times a frame.
    """

    def __init__(self, decoder: Decoder, *, recompute: bool) -> None:
        super().__init__()
        self._decoder, self.recompute = decoder, recompute

    def forward(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 v u"]:
        """Return frames in [-1, 1], float32."""
        vae: Any = self._decoder.ready().vae
        if self.recompute and torch.is_grad_enabled() and latents.requires_grad:
            if getattr(vae, "_supports_gradient_checkpointing", False) and not vae.is_gradient_checkpointing:
                vae.enable_gradient_checkpointing()
            pieces = torch.split(latents, 1)
            found = torch.cat([checkpoint(self._decoded, vae, x, use_reentrant=False) for x in pieces])
        else:
            found = self._decoded(vae, latents)
        out: Tensor = found.squeeze(2).float()
        return out

    def _decoded(self, vae: Any, latents: Tensor) -> Tensor:
        return self._decoder.teacher.family.to_pixels(vae, latents.unsqueeze(2))
