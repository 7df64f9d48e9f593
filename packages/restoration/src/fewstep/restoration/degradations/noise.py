"""Gaussian and Poisson noise, one strength per sample, in colour or the same in all channels (gray)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.rng import Rng
from fewstep.restoration.degradations.images import check_images, to_8_bit

LUMA = (0.299, 0.587, 0.114)  # BT.601


def _check_strength(images: Tensor, strength: Tensor, rng: Rng, name: str) -> None:
    check_images(images)
    batch = images.shape[0]
    check(strength.shape == (batch,), f"{name}: one value per image, got {tuple(strength.shape)} for {batch} images")
    check(bool((strength >= 0).all()), f"{name}: must not be negative")
    check(len(rng.ids) == batch, f"{name}: {batch} images, but random numbers for {len(rng.ids)} samples")


def gaussian_noise(
    images: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], rng: Rng, gray: Bool[Tensor, " b"] | None = None
) -> Float[Tensor, "b c h w"]:
    """Return ``images`` plus normal noise of deviation ``sigma`` (images in [0, 1]); the result is not clipped.

    Samples marked ``gray`` get one field for all channels, drawn for each sample on its own.
    """
    _check_strength(images, sigma, rng, "noise sigma")
    noise = rng.normal_like("gaussian", images)
    if gray is not None:
        noise = torch.where(gray.to(images.device)[:, None, None, None], noise[:, :1], noise)
    return images + noise * sigma.to(images)[:, None, None, None]


def poisson_noise(
    images: Float[Tensor, "b c h w"], scale: Float[Tensor, " b"], rng: Rng, gray: Bool[Tensor, " b"] | None = None
) -> Float[Tensor, "b c h w"]:
    """Return ``images`` plus scale (P - x), x the 8-bit image, P = Poisson(x n) / n; the result is not clipped.

    n is the power of two at or above the number of distinct 8-bit values of that image, so the noise has mean 0 and
    variance scale^2 x / n (Real-ESRGAN's shot noise). Samples marked ``gray`` get the noise of their luma in all
    channels; they must be RGB. Drawn on the CPU: the same on every device.
    """
    _check_strength(images, scale, rng, "poisson scale")
    noise = torch.empty_like(images)
    for index, seed in enumerate(rng.integers("poisson", 2**53).tolist()):
        x = images[index].detach()
        if gray is not None and bool(gray[index]):
            check(x.shape[0] == 3, f"gray poisson noise: needs 3 channels (RGB), got {x.shape[0]}")
            x = (x * x.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
        clean = to_8_bit(x).double().cpu().numpy()
        photons = 1 << (np.unique(clean).size - 1).bit_length()  # what a white pixel stands for
        counts = np.random.Generator(np.random.Philox(seed)).poisson(clean * photons)
        noise[index] = torch.from_numpy(counts / photons - clean).to(images)
    return images + noise * scale.to(images)[:, None, None, None]
