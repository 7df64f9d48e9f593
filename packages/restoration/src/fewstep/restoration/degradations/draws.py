"""Parameters of the degradations, drawn for each sample out of its own stream."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.rng import Rng
from fewstep.restoration.degradations.config import KernelConfig, Range
from fewstep.restoration.degradations.kernels import Profile, gaussian_kernel, pad_kernel, pulse_kernel, sinc_kernel

PROFILES: tuple[Profile, ...] = ("gaussian", "generalized", "plateau")


def draw(rng: Rng, stream: str, bounds: Range) -> Float[Tensor, " b"]:
    """Return numbers uniform between ``bounds``, float64, one per sample."""
    return bounds[0] + (bounds[1] - bounds[0]) * rng.uniform(stream).cpu()


def chance(rng: Rng, stream: str, probability: float) -> Tensor:
    """Return True with ``probability`` (never for 0, always for 1), one per sample."""
    return rng.uniform(stream).cpu() < probability


def choice(rng: Rng, stream: str, mix: tuple[float, ...]) -> list[int]:
    """Return an index of ``mix``, drawn with its probabilities, for each sample."""
    edges = torch.tensor(mix, dtype=torch.float64).cumsum(0)[:-1]  # the last takes what rounding leaves
    return torch.searchsorted(edges, rng.uniform(stream).cpu(), right=True).tolist()


def _odd_size(rng: Rng, sizes: tuple[int, int]) -> int:
    return sizes[0] + 2 * int(rng.integers("size", (sizes[1] - sizes[0]) // 2 + 1)[0])


def _draw_beta(rng: Rng, bounds: Range) -> Tensor:
    """Half the time uniform below 1, half the time above."""
    low, high = bounds
    return torch.where(chance(rng, "beta side", 0.5), draw(rng, "beta", (low, 1)), draw(rng, "beta", (1, high)))


def _draw_one(config: KernelConfig, rng: Rng) -> Float[Tensor, "1 k k"]:
    size = _odd_size(rng, config.sizes)
    if bool(chance(rng, "sinc", config.sinc)):
        # small kernels cannot hold the wide rings of a low cutoff
        return sinc_kernel(size, draw(rng, "cutoff", (math.pi / (3 if size < 13 else 5), math.pi)))
    index = choice(rng, "kind", config.mix)[0]
    profile, isotropic = PROFILES[index // 2], index % 2 == 0
    sigma_x = draw(rng, "sigma x", config.sigma)
    sigma_y = None if isotropic else draw(rng, "sigma y", config.sigma)
    angle = None if isotropic else draw(rng, "angle", (-math.pi, math.pi))
    beta = None
    if profile != "gaussian":
        beta = _draw_beta(rng, config.beta_generalized if profile == "generalized" else config.beta_plateau)
    return gaussian_kernel(size, sigma_x, sigma_y, angle, beta, profile)


def each(rng: Rng) -> list[Rng]:
    """Return one generator per sample."""
    return [rng.select(index, index + 1) for index in range(len(rng.ids))]


def draw_kernels(config: KernelConfig, rng: Rng) -> Float[Tensor, "b k k"]:
    """Return a blur kernel for each sample, all of ``config.padded`` pixels a side, float64, sum 1."""
    return torch.cat([pad_kernel(_draw_one(config, one), config.padded) for one in each(rng)])


def draw_final_kernels(sizes: tuple[int, int], sinc: float, rng: Rng) -> Float[Tensor, "b k k"]:
    """Return for each sample a sinc of cutoff pi/3..pi with probability ``sinc``, else a pulse, ``sizes[1]`` a side."""
    kernels = []
    for one in each(rng):
        kernel = pulse_kernel(1)
        if bool(chance(one, "sinc", sinc)):
            kernel = sinc_kernel(_odd_size(one, sizes), draw(one, "cutoff", (math.pi / 3, math.pi)))
        kernels.append(pad_kernel(kernel, sizes[1]))
    return torch.cat(kernels)
