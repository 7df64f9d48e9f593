"""A small autoencoder is fitted: its latents get unit spread, and what it cannot see costs it exactly that."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import AutoencoderKL
from torch.testing import assert_close

from fewstep.core.image.autoencoder import fit_autoencoder, restoration_error
from fewstep.core.models.tiny import seeded
from fewstep.core.rng import Rng


def small():
    with seeded(0):
        return AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4, sample_size=4)


def plain(rng: Rng) -> torch.Tensor:
    """Pictures of one colour each."""
    return (2 * rng.uniform("colour", (3,)).float() - 1)[:, :, None, None].expand(-1, -1, 4, 4)


FIT = {"seed": 0, "batch": 16, "kl_weight": 1e-3, "spread_of": plain(Rng.for_batch(1, 0, 64))}


@pytest.mark.parametrize("clip", [math.inf, 1.0])
def test_training_restores_better_and_leaves_latents_of_unit_spread(clip):
    held_out = plain(Rng.for_batch(2, 0, 64))
    before = restoration_error(small(), held_out)
    vae = fit_autoencoder(small(), plain, steps=200, grad_clip=clip, **FIT)
    assert restoration_error(vae, held_out) < 0.5 * before
    latents = vae.encode(FIT["spread_of"]).latent_dist.mean * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_the_error_is_the_root_of_the_mean_square():
    class Grey:
        """Restores everything as 0.5."""

        def encode(self, x):
            return type("E", (), {"latent_dist": type("D", (), {"mean": x})})

        def decode(self, z):
            return type("R", (), {"sample": torch.full_like(z, 0.5)})

    pictures = torch.tensor([0.5, -0.5]).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert_close(restoration_error(Grey(), pictures), math.sqrt(0.5))
