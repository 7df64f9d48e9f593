"""Expectations over unit normals by quadrature: a uniform grid with Gaussian weights, which converges exponentially."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check


class GaussGrid(NamedTuple):
    """Nodes of independent unit normals, ``noise`` "axes n 1", and their probabilities ``mass`` "n", which sum to 1."""

    noise: Tensor
    mass: Tensor

    def mean(self, value: Float[Tensor, "n *d"]) -> Float[Tensor, "*d"]:
        """Return the expectation of a function given by its values at the nodes."""
        mean: Tensor = torch.tensordot(self.mass.to(value), value, dims=1)
        return mean


def gauss_grid(n: int = 201, span: float = 9.0, axes: int = 2, dtype: torch.dtype = torch.float64) -> GaussGrid:
    """Return the tensor grid of ``axes`` unit normals with ``n`` nodes each on ``[-span, span]``.

    Errors are below 1e-9 for smooth functions with 201 nodes (the trapezoid rule). Raises UserError for fewer than 2.
    """
    check(n >= 2 and axes >= 1, f"a grid needs at least 2 nodes and 1 axis, got {n} and {axes}")
    line = torch.linspace(-span, span, n, dtype=torch.float64)
    density = torch.exp(-(line**2) / 2)
    density = density / density.sum()
    noise = torch.stack([x.flatten() for x in torch.meshgrid(*[line] * axes, indexing="ij")])
    mass = density
    for _ in range(axes - 1):
        mass = (mass[:, None] * density).flatten()
    return GaussGrid(noise[..., None].to(dtype), mass.to(dtype))
