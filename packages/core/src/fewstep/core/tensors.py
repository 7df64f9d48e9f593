"""Small tensor helpers every layer uses: per-sample coefficients and reductions, and where tensors lie."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError

Reduction = Literal["mean", "sum"]
"""How a loss goes from a sample's elements to one number; a mean divides gradients by their count."""


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype maths on ``tensors`` is done in: float64 when one of them is, float32 otherwise."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def precise(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged when it is float64."""
    return x.to(compute_dtype(x))


def expand_to(value: Float[Tensor, " b"] | Float[Tensor, ""], x: Float[Tensor, "b *d"]) -> Tensor:
    """Return ``value`` ("b", or a scalar) with trailing unit axes of ``x``, in the dtype maths on ``x`` uses."""
    value = value.to(device=x.device, dtype=compute_dtype(x))
    return value if value.ndim == 0 else value.reshape(value.shape[0], *([1] * (x.ndim - 1)))


def sample_mean(x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """Return the mean over everything but the batch axis, "b"."""
    return x.flatten(1).mean(1) if x.ndim > 1 else x


def sample_sum(x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """Return the sum over everything but the batch axis, "b"."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def reduce_sample(x: Float[Tensor, "b *d"], reduction: Reduction) -> Float[Tensor, " b"]:
    """Return the mean or the sum over everything but the batch axis, "b"."""
    return sample_mean(x) if reduction == "mean" else sample_sum(x)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return ``x`` itself, whose gradient reaches it multiplied by ``factor``, at any order."""
    return x if factor == 1.0 else x.detach() + factor * (x - x.detach())


def numel_per_sample(x: Float[Tensor, "b *d"]) -> int:
    """Return the number of elements in one sample."""
    return int(x[0].numel()) if x.ndim > 1 else 1


def find_device(name: str | torch.device = "") -> torch.device:
    """Return a device by name, by default CUDA's where there is one; UserError for one that is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}; leave it out, or give cpu") from error
    return device
