"""Gradients of a field by autograd: normals, and the loss that keeps a signed distance one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.tensors import sample_mean

ScalarField = Callable[[Tensor], Tensor]
"""A number at every point: "*b 3" to "*b"."""

TINY = 1e-12


def value_and_gradient(
    field: ScalarField, points: Float[Tensor, "*b 3"], *, create_graph: bool = False
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b 3"]]:
    """Return a field's values and gradients at ``points``.

    The values can be trained wherever gradients are on, the gradients with ``create_graph`` only.
    """
    training = torch.is_grad_enabled()
    with torch.enable_grad():
        at = points if points.requires_grad else points.detach().requires_grad_()
        value = field(at)
        (gradient,) = torch.autograd.grad(
            value.sum(), at, create_graph=create_graph, retain_graph=create_graph or training
        )
    return (value if training else value.detach()), gradient


def unit(vectors: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """Return vectors of length 1 (zero for zero)."""
    return vectors * torch.rsqrt((vectors * vectors).sum(-1, keepdim=True).clamp_min(TINY))


def eikonal_loss(gradient: Float[Tensor, "b *n 3"]) -> Float[Tensor, " b"]:
    """Return the mean of (|gradient| - 1)^2 per sample (IGR, arXiv 2002.10099)."""
    size = (gradient * gradient).sum(-1).clamp_min(TINY).sqrt()
    return sample_mean((size - 1) ** 2)
