"""Guidance. One convention everywhere: ``guided = uncond + guidance_scale * (cond - uncond)``.

Scale 1 is the conditional prediction, 0 the unconditional one. Methods whose papers write ``cond + w (cond - uncond)``
have ``guidance_scale = w + 1``. Guidance of eps, x0, v or score at one ``(x_t, t)`` is the same thing, since
conversions are affine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser, concat
from fewstep.core.errors import UserError
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.tensors import expand_to, precise, sample_sum


def guide(
    cond: Float[Tensor, "b *d"], uncond: Float[Tensor, "b *d"], scale: float | Float[Tensor, " b"]
) -> Float[Tensor, "b *d"]:
    """Return ``uncond + scale (cond - uncond)``; ``scale`` is a number or one per sample."""
    factor = expand_to(torch.as_tensor(scale), cond)
    return precise(uncond) + factor * (precise(cond) - precise(uncond))


def rescale(guided: Float[Tensor, "b *d"], cond: Float[Tensor, "b *d"], phi: float) -> Float[Tensor, "b *d"]:
    """Return ``guided`` pulled back to the conditional prediction's standard deviation by ``phi`` in [0, 1].

    ``phi guided std(cond)/std(guided) + (1 - phi) guided``, standard deviations per sample (arXiv 2305.08891, section
    3.4).
    """
    ratio = cond.flatten(1).std(1) / guided.flatten(1).std(1)
    return guided * (phi * expand_to(ratio, guided) + (1 - phi))


def perpendicular(x: Float[Tensor, "b *d"], y: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
    """Return the part of ``x`` orthogonal to ``y``, per sample."""
    return x - expand_to(sample_sum(x * y) / sample_sum(y * y).clamp_min(1e-6), x) * y


def perp_neg(
    cond: Float[Tensor, "b *d"],
    uncond: Float[Tensor, "b *d"],
    negatives: Sequence[Float[Tensor, "b *d"]],
    weights: Sequence[float | Float[Tensor, " b"]],
    scale: float,
) -> Float[Tensor, "b *d"]:
    """Return Perp-Neg guidance ``uncond + scale [d + sum_i w_i perp(d_i, d)]`` (arXiv 2304.04968).

    ``d = cond - uncond``, ``d_i = negatives_i - uncond``, weights at most 0. Raises UserError for a positive weight.
    """
    direction = precise(cond) - precise(uncond)
    total = direction
    for negative, weight in zip(negatives, weights, strict=True):
        factor = torch.as_tensor(weight)
        if bool((factor > 0).any()):
            raise UserError(f"Perp-Neg weights must be <= 0, got {factor.max().item():g}")
        total = total + expand_to(factor, direction) * perpendicular(precise(negative) - precise(uncond), direction)
    return precise(uncond) + scale * total


class Guided(Denoiser):
    """A denoiser under classifier-free guidance, in one doubled batch.

    ``scale``: a number, or one per sample, or the name of a condition entry that holds one per sample (random-scale
    guidance). ``negative``: entries of a condition used in place of the unconditional one. ``phi``: guidance rescale,
    on x0. Scale 1 costs one evaluation only.
    """

    def __init__(
        self, inner: Denoiser, scale: float | str = 1.0, *, negative: Cond | None = None, phi: float = 0.0
    ) -> None:
        self.inner, self.scale, self.negative, self.phi, self.process = inner, scale, negative, phi, inner.process

    def null(self, cond: Cond) -> Cond:
        """Return the inner denoiser's unconditional condition."""
        return self.inner.null(cond)

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the guided prediction (the inner kind, or x0 when rescaled)."""
        if isinstance(self.scale, str):
            scale: float | Tensor = cond[self.scale]
            cond = {name: value for name, value in cond.items() if name != self.scale}
        else:
            scale = self.scale
        if isinstance(scale, float | int) and scale == 1.0:
            return self.inner.predict(x_t, t, cond)
        negative = self.inner.null(cond) if self.negative is None else {**cond, **self.negative}
        x2, t2 = torch.cat([x_t, x_t]), torch.cat([t, t])
        both = concat([cond, negative])
        if self.phi > 0:
            with_cond, without = self.inner.x0(x2, t2, both).chunk(2)
            return Prediction(rescale(guide(with_cond, without, scale), with_cond, self.phi), Kind.X0)
        prediction = self.inner.predict(x2, t2, both)
        with_cond, without = prediction.value.chunk(2)
        return Prediction(guide(with_cond, without, scale), prediction.kind)
