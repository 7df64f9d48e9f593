"""What pulls a sample, by variant of score distillation: the teacher is asked, and the answers put into a loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.core.annealed import value_at
from fewstep.core.denoiser import Cond, Denoiser, concat
from fewstep.core.errors import check
from fewstep.core.guidance import Guided, guidance_terms, guide, negatives, plain
from fewstep.core.losses.integral import (
    asd_loss,
    asd_time,
    csd_loss,
    csd_negative_loss,
    ism_loss,
    rescale_groups,
    sds_loss,
    sjc_loss,
    x0_sds_loss,
)
from fewstep.core.prediction import Clean, Kind, Prediction, decompose
from fewstep.core.process import Process
from fewstep.core.recipes.rollout import Noised, Sample, noised_at
from fewstep.core.recipes.sds_settings import SDSConfig, Variant
from fewstep.core.rng import Rng
from fewstep.core.solvers import invert
from fewstep.core.steps import ddim_step
from fewstep.core.tensors import expand_to

LEAST = 1e-3
"""The fraction of the noise levels of a continuous process below which nothing is asked: eps there is 0/0."""


@dataclass(frozen=True)
class Question:
    """A detached sample, noised at a time, and who is asked about it."""

    teacher: Denoiser
    config: SDSConfig
    sample: Sample
    at: Noised
    rng: Rng
    step: int

    @property
    def process(self) -> Process:
        """Return the teacher's process."""
        return self.teacher.process

    @property
    def scale(self) -> float:
        """Return the guidance scale in force."""
        return value_at(self.config.guidance_scale, self.step)

    def guided(self, at: Noised) -> Clean:
        """Return the guided prediction at a noised sample."""
        return Guided(self.teacher, self.scale).clean(at.x_t, at.t, self.sample.cond)

    def under(self, conds: tuple[Cond, ...]) -> list[Clean]:
        """Return the predictions at the noised sample under each of the conditions, in one batch."""
        count, at = len(conds), self.at
        found = self.teacher.clean(torch.cat([at.x_t] * count), torch.cat([at.t] * count), concat(list(conds)))
        return [Clean(*pair) for pair in zip(found.x0.chunk(count), found.eps.chunk(count), strict=True)]

    def negative(self) -> Cond:
        """Return the condition with the first negative prompt; UserError where there is none."""
        found = negatives(self.sample.cond).conds
        check(
            bool(found),
            f"variant '{self.config.variant}' needs a negative prompt, the condition brings none: give the domain one",
        )
        return found[0]

    def fraction(self, u: Tensor) -> Tensor:
        """Return the time at a fraction of the noise levels, one a network was trained at."""
        return self.process.round(self.process.unit_to_time(u.clamp(0.0 if self.process.discrete else LEAST, 1.0)))


class Pull(NamedTuple):
    """``loss`` of the sample, given ``weight`` and ``reduction``; the guided prediction and the state it is of."""

    loss: Callable[..., Tensor]
    guided: Clean
    at: Noised


def sds(q: Question) -> Pull:
    """Pull along ``eps_guided - noise``."""
    guided = q.guided(q.at)
    return Pull(partial(sds_loss, eps_teacher=guided.eps, eps=q.at.eps), guided, q.at)


def clean_space(q: Question) -> Pull:
    """Pull along ``x - x0_guided``, rescaled if so configured."""
    if q.config.rescale == 0:
        guided = q.guided(q.at)
        return Pull(partial(x0_sds_loss, x0_teacher=guided.x0), guided, q.at)
    terms = guidance_terms(q.teacher, q.sample.cond)
    found = q.under(terms.conds)
    x0, eps = (terms.combine([getattr(each, kind) for each in found], q.scale) for kind in ("x0", "eps"))
    x0 = rescale_groups(x0, found[0].x0, q.config.rescale, q.config.views)
    return Pull(partial(x0_sds_loss, x0_teacher=x0), Clean(x0, eps), q.at)


def chained(q: Question) -> Pull:
    """Pull along ``eps_guided - noise``, or ``eps_guided`` alone, in variance-exploding form."""
    guided, at = q.guided(q.at), q.at
    tau = at.sigma / at.alpha
    x_noisy = q.sample.x0 + expand_to(tau, at.eps) * at.eps
    loss = partial(sjc_loss, x_noisy=x_noisy, denoised=guided.x0, tau=tau, variance_reduced=q.config.variance_reduced)
    return Pull(loss, guided, at)


def classifier(q: Question) -> Pull:
    """Pull along ``eps_cond - eps_uncond``, the reference moving to the negative prompt if so configured."""
    share = q.config.negative_share
    if share is not None:
        base = plain(q.sample.cond)
        cond, uncond, negative = q.under((base, q.teacher.null(base), q.negative()))
        guided = Clean(guide(cond.x0, uncond.x0, q.scale), guide(cond.eps, uncond.eps, q.scale))
        loss = partial(
            csd_negative_loss,
            eps_cond=cond.eps,
            eps_negative=negative.eps,
            eps_uncond=uncond.eps,
            negative_share=value_at(share, q.step),
        )
        return Pull(loss, guided, q.at)
    terms = guidance_terms(q.teacher, q.sample.cond)
    found = q.under(terms.conds)
    x0, eps = [each.x0 for each in found], [each.eps for each in found]
    guided = Clean(terms.combine(x0, q.scale), terms.combine(eps, q.scale))
    # with Perp-Neg's negatives the direction is guidance's too
    loss = partial(csd_loss, eps_cond=terms.combine(eps, 1.0), eps_uncond=eps[1])
    return Pull(loss, guided, q.at)


def asynchronous(q: Question) -> Pull:
    """Pull along ``eps_guided - eps_cond``, the latter at a noisier time and the same noise."""
    low, _ = q.config.time.bounds(q.step)
    floor = float(q.process.unit_to_time(torch.tensor(low, dtype=torch.float64)))
    share = q.rng.uniform("asd").to(q.at.t)
    later = asd_time(q.at.t, floor, share, q.config.asd_ratio).clamp_max(q.process.t_max)
    noisier = noised_at(q.process, q.sample, q.process.round(later), q.at.eps)
    guided = q.guided(q.at)
    shifted = q.teacher.eps(noisier.x_t, noisier.t, plain(q.sample.cond))
    return Pull(partial(asd_loss, eps_teacher=guided.eps, eps_shifted=shifted), guided, q.at)


def noise_free(q: Question) -> Pull:
    """Pull along ``eps_guided - eps_negative``, along ``eps_guided`` where there is little noise."""
    base = plain(q.sample.cond)
    cond, uncond, negative = q.under((base, q.teacher.null(base), q.negative()))
    guided = Clean(guide(cond.x0, uncond.x0, q.scale), guide(cond.eps, uncond.eps, q.scale))
    noisy = q.process.time_to_unit(q.at.t) >= q.config.nfsd_split
    below = expand_to(noisy.to(guided.eps), negative.eps) * negative.eps
    return Pull(partial(sds_loss, eps_teacher=guided.eps, eps=below), guided, q.at)


def interval(q: Question) -> Pull:
    """Pull along what the guided teacher says at a state, and inversion said one step below it."""
    how, at, process = q.config.ism, q.at, q.process
    null, u = q.teacher.null(plain(q.sample.cond)), process.time_to_unit(at.t)
    low = u - how.delta_at(q.step)
    start = low - how.inversions * how.stride
    eps = at.eps + how.offset_noise * channel_noise(q.rng, at.eps)
    between = (torch.minimum(start.clamp_min(0) + i * how.stride, low) for i in range(1, how.inversions))
    stops = rising([q.fraction(u) for u in (start, *between, low)])
    below = noised_at(process, q.sample, stops[0], eps)
    x_s = invert(q.teacher, below.x_t, stops, null).x if len(stops) > 1 else below.x_t
    eps_s = q.teacher.eps(x_s, stops[-1], null)
    anchor = q.sample.cond.get("anchor")
    x_t = ddim_step(decompose(Prediction(eps_s, Kind.EPS), x_s, stops[-1], process, anchor), at.t, process, anchor)
    reached = state_of(process, q.sample, x_t.to(x_s.dtype), at)
    guided = q.guided(reached)
    loss = partial(
        ism_loss, eps_teacher=guided.eps, eps_inverse=eps_s, alpha=at.alpha, sigma=at.sigma, scale=how.factor
    )
    return Pull(loss, guided, reached)


def by_inversion(q: Question) -> Pull:
    """Pull along ``x - x0_guided`` at a state whose noise is what inversion of the sample finds."""
    how, at, process = q.config.sdi, q.at, q.process
    top = process.time_to_unit(at.t) + how.overshoot * q.rng.uniform("sdi").to(at.t)
    stops = rising([q.fraction(top * i / how.steps) for i in range(how.steps + 1)])
    clean = noised_at(process, q.sample, stops[0], torch.zeros_like(at.eps)).x_t
    found = invert(
        Guided(q.teacher, how.guidance_scale), clean, stops, q.sample.cond, eta=how.eta, rng=q.rng, stream="sdi"
    ).x
    c = process.coefficients(stops[-1])
    last = state_of(process, q.sample, found, Noised(found, at.eps, stops[-1], c.alpha, c.sigma))
    own = noised_at(process, q.sample, at.t, last.eps)
    guided = q.guided(own)
    return Pull(partial(x0_sds_loss, x0_teacher=guided.x0), guided, own)


def rising(stops: list[Tensor]) -> list[Tensor]:
    """Return times that rise, or stay, per sample, without those at which no sample moves."""
    return [stops[0], *(b for a, b in itertools.pairwise(stops) if bool((b > a).any()))]


def state_of(process: Process, sample: Sample, x_t: Tensor, at: Noised) -> Noised:
    """Return a state at the time of ``at`` with the noise that leads to it from the sample."""
    core = process.offset(x_t, at.t, sample.cond.get("anchor"))
    eps = (core - expand_to(at.alpha, core) * sample.x0) / expand_to(at.sigma, core)
    return at._replace(x_t=x_t, eps=eps.to(x_t.dtype))


def channel_noise(rng: Rng, like: Tensor) -> Tensor:
    """Return unit normal numbers, one per channel of samples "b *c h w"; zero for samples without pixels."""
    if like.ndim < 4:
        return torch.zeros_like(like)
    return rng.normal("ism/offset", (*like.shape[1:-2], 1, 1), like.dtype).to(like.device)


PULLS: Mapping[Variant, Callable[[Question], Pull]] = {
    "sds": sds,
    "x0": clean_space,
    "sjc": chained,
    "csd": classifier,
    "asd": asynchronous,
    "ism": interval,
    "nfsd": noise_free,
    "sdi": by_inversion,
}
