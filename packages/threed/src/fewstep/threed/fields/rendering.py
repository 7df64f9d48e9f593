"""Volume rendering: sections of rays, where to put them, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.threed.fields.normals import ScalarField, unit, value_and_gradient
from fewstep.threed.fields.opacity import density_alpha, neus_alpha, neus_cosine, volsdf_density

FLOOR = 1e-5  # of importance: a ray that meets nothing is sampled evenly

Opacity = Callable[[Tensor, Tensor, Tensor, bool], "tuple[Tensor, Tensor]"]
"""(points "r n 3", directions "r 1 3", lengths "r n", trainable) to (alpha "r n", outward unit normals "r n 3")."""


@dataclass(frozen=True)
class Rays:
    """What rays see: colours over the background, opacity, and depth and normal weighted by it (not divided by it)."""

    rgb: Float[Tensor, "r c"]
    opacity: Float[Tensor, " r"]
    depth: Float[Tensor, " r"]
    normal: Float[Tensor, "r 3"]
    weights: Float[Tensor, "r n"]


def composite_weights(alpha: Float[Tensor, "*r n"]) -> Float[Tensor, "*r n"]:
    """Return alpha_i prod_{j<i} (1 - alpha_j), front to back along the last axis."""
    passed = torch.cumprod(1 - alpha, dim=-1)
    return alpha * torch.cat([torch.ones_like(passed[..., :1]), passed[..., :-1]], dim=-1)


def even_edges(
    near: Float[Tensor, " r"], far: Float[Tensor, " r"], sections: int, jitter: Float[Tensor, "r m"] | None = None
) -> Float[Tensor, "r m"]:
    """Return the ``sections`` + 1 edges of equal sections, the inner ones moved by up to half a section.

    jitter: uniform in [0, 1), one number per edge, or None for edges that stay.
    """
    check(sections >= 1, f"a ray needs one section or more, got {sections}")
    steps = torch.linspace(0, 1, sections + 1, dtype=near.dtype, device=near.device).expand(len(near), -1)
    if jitter is not None:
        moved = steps + (jitter.to(steps) - 0.5) / sections
        steps = torch.cat([steps[:, :1], moved[:, 1:-1], steps[:, -1:]], dim=1)
    return near[:, None] + (far - near)[:, None] * steps


def importance_edges(
    edges: Float[Tensor, "r m"], weights: Float[Tensor, "r n"], uniforms: Float[Tensor, "r k"]
) -> Float[Tensor, "r k"]:
    """Return depths distributed as ``weights`` over the sections between ``edges``, by inverting their distribution.

    uniforms: in [0, 1]; equal steps give equal shares of the weight.
    """
    share = weights + FLOOR
    share = share / share.sum(-1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(share[:, :1]), share.cumsum(-1)], dim=-1)
    cdf = cdf / cdf[:, -1:]
    above = torch.searchsorted(cdf.contiguous(), uniforms.contiguous(), right=True).clamp(1, cdf.shape[1] - 1)
    low, high = cdf.gather(1, above - 1), cdf.gather(1, above)
    start, end = edges.gather(1, above - 1), edges.gather(1, above)
    return start + (end - start) * ((uniforms - low) / (high - low)).clamp(0, 1)


def box_span(
    origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], bound: float = 1.0, nearest: float = 0.01
) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
    """Return where rays enter and leave the cube [-bound, bound]^3; a ray that misses it has an empty span."""
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    one, other = (-bound - origins) / safe, (bound - origins) / safe
    near = torch.minimum(one, other).amax(-1).clamp_min(nearest)
    return near, torch.maximum(torch.maximum(one, other).amin(-1), near)


def neus_opacity(sdf: ScalarField, k: float | Tensor, anneal: float = 1.0, slack: float = 1e-5) -> Opacity:
    """Return the opacity of a signed distance by NeuS."""

    def opacity(points: Tensor, directions: Tensor, lengths: Tensor, trainable: bool) -> tuple[Tensor, Tensor]:
        value, gradient = value_and_gradient(sdf, points, create_graph=trainable)
        cosine = neus_cosine(unit(gradient), directions, anneal)
        return neus_alpha(value, cosine, lengths, k, slack), unit(gradient)

    return opacity


def volsdf_opacity(sdf: ScalarField, k: float | Tensor) -> Opacity:
    """Return the opacity of a signed distance by VolSDF."""

    def opacity(points: Tensor, directions: Tensor, lengths: Tensor, trainable: bool) -> tuple[Tensor, Tensor]:
        value, gradient = value_and_gradient(sdf, points, create_graph=trainable)
        return density_alpha(volsdf_density(value, k), lengths), unit(gradient)

    return opacity


def density_opacity(density: ScalarField) -> Opacity:
    """Return the opacity of a density; its normals point where it falls fastest."""

    def opacity(points: Tensor, directions: Tensor, lengths: Tensor, trainable: bool) -> tuple[Tensor, Tensor]:
        value, gradient = value_and_gradient(density, points, create_graph=trainable)
        return density_alpha(value, lengths), -unit(gradient)

    return opacity


def render_rays(
    opacity: Opacity,
    colour: Callable[[Tensor], Tensor],
    origins: Float[Tensor, "r 3"],
    directions: Float[Tensor, "r 3"],
    edges: Float[Tensor, "r m"],
    background: float | Float[Tensor, "#r c"] = 1.0,
    *,
    fine: int = 0,
    uniforms: Float[Tensor, "r k"] | None = None,
    trainable: bool = False,
) -> Rays:
    """Return what unit rays see of a field whose sections lie between ``edges``.

    fine: edges added where a first pass without gradient finds weight, at equal shares or at ``uniforms``.
    trainable: whether gradients reach the field through its normals too, not only through its values and colours.
    """

    def sections(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        middle, lengths = 0.5 * (at[:, 1:] + at[:, :-1]), at[:, 1:] - at[:, :-1]
        return origins[:, None] + middle[..., None] * directions[:, None], middle, lengths

    if fine:
        points, _, lengths = sections(edges)
        with torch.no_grad():
            weights = composite_weights(opacity(points, directions[:, None], lengths, False)[0])
            if uniforms is None:
                even = (torch.arange(fine, dtype=edges.dtype, device=edges.device) + 0.5) / fine
                uniforms = even.expand(len(edges), fine)
            edges = torch.cat([edges, importance_edges(edges, weights, uniforms.to(edges))], dim=1).sort(dim=1).values
    points, middle, lengths = sections(edges)
    alpha, normals = opacity(points, directions[:, None], lengths, trainable)
    weights = composite_weights(alpha)
    seen = weights.sum(-1)
    rgb = (weights[..., None] * colour(points)).sum(1) + (1 - seen)[:, None] * background
    normal = (weights[..., None] * normals).sum(1)
    return Rays(rgb, seen, (weights * middle).sum(-1), normal, weights)
