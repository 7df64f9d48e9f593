"""From signed distance or density to the opacity of a ray's section."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def inverse_std(raw: float | Tensor) -> Tensor:
    """Return NeuS's sharpness k = exp(10 raw): 0.3 gives 20.1, ln(100)/10 gives 100."""
    return torch.exp(10 * torch.as_tensor(raw))


def neus_cosine(
    normals: Float[Tensor, "*b 3"], directions: Float[Tensor, "*b 3"], anneal: float = 1.0
) -> Float[Tensor, "*b"]:
    """Return the cosine, at most 0, between a ray and the gradient; below ``anneal`` 1 partly of a softer kind.

    Source: NeuS (arXiv 2106.10689), whose training raises ``anneal`` from 0 to 1.
    """
    cosine = (normals * directions).sum(-1)
    return -(F.relu(0.5 - 0.5 * cosine) * (1 - anneal) + F.relu(-cosine) * anneal)


def neus_alpha(
    sdf: Float[Tensor, "*b"],
    cosine: Float[Tensor, "*b"],
    lengths: Float[Tensor, "*b"],
    k: float | Tensor,
    slack: float = 1e-5,
) -> Float[Tensor, "*b"]:
    """Return (s(k prev) - s(k next) + slack) / (s(k prev) + slack), clamped to [0, 1], s the sigmoid.

    sdf: at the middle of a section.  cosine: at most 0; prev and next are ``sdf`` half a ``lengths`` before and after.
    Source: NeuS (arXiv 2106.10689), equation 13, linearised. ``slack`` makes deep sections opaque.
    """
    half = 0.5 * cosine * lengths
    before, after = torch.sigmoid(k * (sdf - half)), torch.sigmoid(k * (sdf + half))
    return ((before - after + slack) / (before + slack)).clamp(0, 1)


def volsdf_density(sdf: Float[Tensor, "*b"], k: float | Tensor) -> Float[Tensor, "*b"]:
    """Return k times the Laplace distribution's share at -sdf, of scale 1/k: k inside, k/2 on the surface, 0 outside.

    Source: VolSDF (arXiv 2106.12052), equations 2 and 3, with density k.
    """
    return k * (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() * k))


def density_alpha(density: Float[Tensor, "*b"], lengths: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Return the opacity 1 - exp(-density length) of sections of constant density."""
    return -torch.expm1(-density * lengths)
