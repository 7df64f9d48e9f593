"""Training the small autoencoders of the pipelines that come with the packages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.rng import Rng


def fit_autoencoder(
    vae: Any,
    draw: Callable[[Rng], Tensor],
    *,
    seed: int,
    steps: int,
    batch: int,
    kl_weight: float,
    spread_of: Tensor,
    grad_clip: float = math.inf,
) -> Any:
    """Return an AutoencoderKL of diffusers trained on the pictures "b c h w" in [-1, 1] that ``draw`` gives, frozen.

    Loss: squared error plus ``kl_weight`` times the divergence from unit normal noise, both per element; Adam, cosine
    decay from 2e-3. ``scaling_factor`` becomes what gives the latents of the pictures ``spread_of`` unit spread.
    """
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rng = Rng.for_batch(seed, step, batch)
        x = draw(rng)
        posterior = vae.encode(x).latent_dist
        restored = vae.decode(posterior.mean + posterior.std * rng.normal_like("latent", posterior.mean)).sample
        loss = (restored - x).square().mean() + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if math.isfinite(grad_clip):
            torch.nn.utils.clip_grad_norm_(vae.parameters(), grad_clip)
        optimizer.step()
        schedule.step()
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        spread = vae.encode(spread_of).latent_dist.mean.std()
    vae.register_to_config(scaling_factor=round(1 / float(spread), 4))
    return vae


@torch.no_grad()
def restoration_error(vae: Any, pictures: Float[Tensor, "n c h w"]) -> float:
    """Return the root mean squared error of pictures in [-1, 1] that an autoencoder restores."""
    restored: Tensor = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    return float((restored - pictures).square().mean().sqrt())
