"""Guidance. One convention everywhere: ``guided = uncond + guidance_scale * (cond - uncond)``.

Scale 1 is the conditional prediction, 0 the unconditional one. Methods whose papers write ``cond + w (cond - uncond)``
have ``guidance_scale = w + 1``. Guidance of eps, x0, v or score at one ``(x_t, t)`` is the same thing, since
conversions are affine.

**Alternatives in a condition.** An entry ``who/name`` is what ``who`` is to be told instead of ``name``; networks see
only :func:`plain` entries. ``negative/name`` "b n *" holds the entries of n negative prompts. With
``negative/weights`` "b n", numbers <= 0, guidance is Perp-Neg's with them; without, the first negative prompt stands
in for the empty one. ``fake/name`` "b *" is what a fake score is told (a prompt without the view in it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser, concat
from fewstep.core.errors import UserError, check
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.tensors import expand_to, precise, sample_sum


def _numbers(value: float | Tensor) -> Tensor:
    """Return a number in float64 (torch would round it to float32), tensors as they are."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def guide(
    cond: Float[Tensor, "b *d"], uncond: Float[Tensor, "b *d"], scale: float | Float[Tensor, " b"]
) -> Float[Tensor, "b *d"]:
    """Return ``uncond + scale (cond - uncond)``; ``scale`` is a number or one per sample."""
    factor = expand_to(_numbers(scale), cond)
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
    scale: float | Float[Tensor, " b"],
) -> Float[Tensor, "b *d"]:
    """Return Perp-Neg guidance ``uncond + scale [d + sum_i w_i perp(d_i, d)]`` (arXiv 2304.04968).

    ``d = cond - uncond``, ``d_i = negatives_i - uncond``, weights at most 0. Raises UserError for a positive weight.
    """
    direction = precise(cond) - precise(uncond)
    total = direction
    for negative, weight in zip(negatives, weights, strict=True):
        factor = _numbers(weight)
        if bool((factor > 0).any()):
            raise UserError(f"Perp-Neg weights must be <= 0, got {factor.max().item():g}")
        total = total + expand_to(factor, direction) * perpendicular(precise(negative) - precise(uncond), direction)
    return precise(uncond) + expand_to(_numbers(scale), direction) * total


def plain(cond: Cond) -> Cond:
    """Return the entries a network sees: those without a slash in their name."""
    return {name: value for name, value in cond.items() if "/" not in name}


def told(cond: Cond, who: str) -> Cond:
    """Return the plain condition with ``who``'s own entries in place."""
    own = {name.removeprefix(f"{who}/"): value for name, value in cond.items() if name.startswith(f"{who}/")}
    return {**plain(cond), **own}


def blanked(denoiser: Denoiser, cond: Cond, names: Sequence[str]) -> Cond:
    """Return the condition without some entries: the unconditional ones, zeros where those are no others.

    Raises UserError for an entry the condition does not have.
    """
    if not names:
        return cond
    missing = [name for name in names if name not in cond]
    check(not missing, f"fake.blank: the condition has no {missing}, only {sorted(cond)}")
    null = denoiser.null(cond)
    own = {name: torch.zeros_like(cond[name]) if null[name] is cond[name] else null[name] for name in names}
    return {**cond, **own}


class Told(Denoiser):
    """A denoiser that is told ``who``'s version of every condition, without the entries ``blank``."""

    def __init__(self, inner: Denoiser, who: str, blank: Sequence[str] = ()) -> None:
        self.inner, self.who, self.blank, self.process = inner, who, tuple(blank), inner.process

    def null(self, cond: Cond) -> Cond:
        """Return the inner denoiser's unconditional condition."""
        return self.inner.null(cond)

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the prediction under what the denoiser is told."""
        return self.inner.predict(x_t, t, blanked(self.inner, told(cond, self.who), self.blank))


class Negatives(NamedTuple):
    """Whole conditions with a negative prompt in place of the prompt, and Perp-Neg's weights "b n" if there are any."""

    conds: tuple[Cond, ...]
    weights: Tensor | None


def negatives(cond: Cond) -> Negatives:
    """Return the negative prompts of a condition; UserError when its entries hold different numbers of them."""
    found = {name.removeprefix("negative/"): value for name, value in cond.items() if name.startswith("negative/")}
    counts = {name: value.shape[1] for name, value in found.items()}
    check(len(set(counts.values())) <= 1, f"condition: as many negative prompts in every entry, got {counts}")
    weights, base = found.pop("weights", None), plain(cond)
    check(weights is None or bool(found), "condition: negative/weights without the negative prompts they are of")
    count = next(iter(counts.values()), 0)
    return Negatives(
        tuple({**base, **{name: value[:, i] for name, value in found.items()}} for i in range(count)), weights
    )


class Terms(NamedTuple):
    """What guidance asks: the condition, what it is compared with, Perp-Neg's negatives; and the weights of those."""

    conds: tuple[Cond, ...]
    weights: Tensor | None

    def combine(
        self, found: Sequence[Float[Tensor, "b *d"]], scale: float | Float[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """Return the guided prediction from one of each condition, in their order."""
        if self.weights is None:
            return guide(found[0], found[1], scale)
        return perp_neg(found[0], found[1], found[2:], self.weights.unbind(1), scale)


def guidance_terms(denoiser: Denoiser, cond: Cond) -> Terms:
    """Return what guidance of ``denoiser`` asks under a condition that may bring negative prompts."""
    given, base = negatives(cond), plain(cond)
    if given.weights is not None:
        return Terms((base, denoiser.null(base), *given.conds), given.weights)
    return Terms((base, given.conds[0] if given.conds else denoiser.null(base)), None)


class Guided(Denoiser):
    """A denoiser under classifier-free guidance, in one doubled batch (larger with Perp-Neg's negative prompts).

    ``scale``: a number, or one per sample, or the name of a condition entry that holds one per sample (random-scale
    guidance). ``negative``: entries of a condition used in place of the unconditional one. ``phi``: guidance rescale,
    on x0. Scale 1 is the conditional prediction whatever the negative prompts, and costs one evaluation only.
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
            return self.inner.predict(x_t, t, plain(cond))
        if self.negative is None:
            terms = guidance_terms(self.inner, cond)
        else:
            terms = Terms((plain(cond), {**plain(cond), **self.negative}), None)
        count = len(terms.conds)
        x, times, both = torch.cat([x_t] * count), torch.cat([t] * count), concat(list(terms.conds))
        if self.phi > 0:
            found = self.inner.x0(x, times, both).chunk(count)
            return Prediction(rescale(terms.combine(found, scale), found[0], self.phi), Kind.X0)
        prediction = self.inner.predict(x, times, both)
        return Prediction(terms.combine(prediction.value.chunk(count), scale), prediction.kind)
