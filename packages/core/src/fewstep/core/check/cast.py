"""Networks replaced by oracles: exact teachers and fake scores, linear students, the best discriminator."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.analytic import ExactDenoiser, GaussianTeacher, MixtureTeacher, log_ratio
from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.networks.discriminator import Discriminator
from fewstep.core.prediction import Clean, Kind, Prediction, compose, decompose
from fewstep.core.process import EDM, CosineVP, Process, RectifiedFlow, TrigFlow, times
from fewstep.core.recipe import StepPlan
from fewstep.core.sampling import initial_state
from fewstep.core.steps import ddim_step
from fewstep.core.tensors import expand_to


def usual_kind(process: Process) -> Kind:
    """Return what networks of a process usually predict."""
    if isinstance(process, RectifiedFlow):
        return Kind.FLOW
    if isinstance(process, TrigFlow):
        return Kind.VELOCITY
    if isinstance(process, CosineVP):
        return Kind.V
    return Kind.X0 if isinstance(process, EDM) or process.has_anchor else Kind.EPS


class Actor(nn.Module, Denoiser):
    """A denoiser with two parameters that move its prediction, both 0 at first, when it says what ``inner`` does.

    With ``(a, s) = (alpha, sigma)/|(alpha, sigma)|`` and ``delta = gain x + shift``: x0 moves by ``s delta``, eps by
    ``-a delta``, which every kind can express at every noise level. ``seen``: at each call, whether a gradient would
    flow through it, and the times.
    """

    def __init__(self, inner: Denoiser, kind: Kind) -> None:
        super().__init__()
        self.inner, self.kind, self.process = inner, kind, inner.process
        self.gain = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.seen: list[tuple[bool, Tensor]] = []

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the moved prediction."""
        self.seen.append((x_t.requires_grad and torch.is_grad_enabled(), t))
        anchor, c = cond.get("anchor"), self.process.coefficients(t)
        clean = exact_clean(self.inner, x_t, t, cond)
        length = torch.hypot(c.alpha, c.sigma)
        core = self.process.offset(x_t, t, anchor)
        delta = self.gain.to(core) * core / expand_to(length, core) + self.shift.to(core)
        moved = Clean(
            clean.x0 + expand_to(c.sigma / length, core) * delta,
            clean.eps - expand_to(c.alpha / length, core) * delta,
        )
        return Prediction(compose(moved, self.kind, t, self.process, anchor), self.kind)

    def null(self, cond: Cond) -> Cond:
        """Return the inner unconditional condition."""
        return self.inner.null(cond)


def exact_clean(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Cond) -> Clean:
    """Return x0 and eps; without a detour through one kind where the law is known."""
    if isinstance(denoiser, ExactDenoiser):
        return denoiser.exact_clean(denoiser.level(x_t, t, cond), cond)
    return denoiser.clean(x_t, t, cond)


Pair = tuple[Tensor, Tensor]


class GeneratorStudent(nn.Module, Denoiser):
    """A student whose samples are ``k z + b`` at each of its times, z exactly unit normal.

    At the first time of its plan z is the noise sampling starts from. Later, z is the same number where steps are
    deterministic, and otherwise the input brought to unit normal: noised samples, whose mean and standard deviation
    are ``inputs``. ``made``: its outputs.
    """

    def __init__(self, process: Process, k: Tensor, b: Tensor, plan: StepPlan, inputs: Pair) -> None:
        super().__init__()
        self.process, self.plan, self.inputs = process, plan, inputs
        self.k, self.b = nn.Parameter(k.clone()), nn.Parameter(b.clone())
        self.made: list[Tensor] = []

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return ``k z + b`` as a clean sample."""
        zero, one = self._path(x_t * 0, t, cond), self._path(x_t * 0 + 1, t, cond)
        z = ((x_t - zero) / (one - zero)).detach()
        self.made.append(self.k.to(x_t) * z + self.b.to(x_t))
        return Prediction(self.made[-1], Kind.X0)

    def _path(self, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the input at ``t`` for a given ``z``."""
        anchor, k, b = cond.get("anchor"), self.k.detach().to(z), self.b.detach().to(z)
        x, first = initial_state(self.process, z, self.plan.times[0], cond), self.plan.times[0]
        if self.plan.mode != "deterministic":
            c = self.process.coefficients(t)
            alpha, sigma, (mean, std) = expand_to(c.alpha, z), expand_to(c.sigma, z), (v.to(z) for v in self.inputs)
            later = self.process.offset(alpha * mean + (alpha**2 * std**2 + sigma**2).sqrt() * z, t, anchor, sign=1.0)
            return torch.where(expand_to((t >= first).to(z.dtype), z) > 0, x, later)
        found = x
        for now, after in itertools.pairwise(self.plan.times):
            clean = decompose(Prediction(k * z + b, Kind.X0), x, times(now, len(x)), self.process, anchor)
            x = ddim_step(clean, times(after, len(x)), self.process, anchor)
            found = torch.where(expand_to((t <= after).to(z.dtype), z) > 0, x, found)
        return found

    def null(self, cond: Cond) -> Cond:
        """Return ``cond``: this student has no condition."""
        return cond


class LandingStudent(Denoiser):
    """A deterministic student whose every step lands on the law of the data exactly, from any Gaussian input.

    ``times``: where its steps start, noisiest first; the last one ends at clean data.
    """

    def __init__(self, law: GaussianTeacher, times: Sequence[float]) -> None:
        self.process, self.law = law.process, law
        self.times = torch.tensor(times, dtype=torch.float64)

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the clean sample whose DDIM step lands there."""
        index = (self.times[:, None] - t.double()).abs().argmin(0)
        c, mean, std = self.process.coefficients(self.times), self.law.mean.to(x_t), self.law.std.to(x_t)
        one, zero = c.alpha.new_ones(1), c.alpha.new_zeros(1)
        alphas, sigmas = torch.cat([c.alpha[1:], one])[index], torch.cat([c.sigma[1:], zero])[index]
        level = self.law.level(x_t, t, cond)
        spread = (level.alpha**2 * std**2 + level.sigma**2).sqrt()
        nothing, unit = (initial_state(self.process, n, self.times[0].item(), cond) for n in (x_t * 0, x_t * 0 + 1))
        first = expand_to((index == 0).to(x_t.dtype), x_t)
        z = torch.where(first > 0, (x_t - nothing) / (unit - nothing), (level.core - level.alpha * mean) / spread)
        alpha, sigma = expand_to(alphas, x_t), expand_to(sigmas, x_t)
        landing = alpha * mean + (alpha**2 * std**2 + sigma**2).sqrt() * z
        ratio = sigma / level.sigma
        return Prediction((landing - ratio * level.core) / (alpha - ratio * level.alpha), Kind.X0)


class BestDiscriminator(Discriminator):
    """``gain log(q/p) + shift`` of two known laws, the best logit at gain 1 and shift 0."""

    def __init__(self, q: ExactDenoiser, p: ExactDenoiser) -> None:
        super().__init__()
        self.q, self.p = q, p
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def patch_logits(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b p"]:
        """Return one logit per sample."""
        logit = log_ratio(self.q, self.p, x_t, t, cond)
        return (self.gain.to(logit) * logit + self.shift.to(logit))[:, None]


class ClassPair(MixtureTeacher):
    """Two Gaussian classes, 0 and 1; the unconditional prediction is that of class 1.

    Guidance between classes of equal spread is the Gaussian of the guided mean, exactly.
    """

    def null(self, cond: Cond) -> Cond:
        """Return ``cond`` with every label 1."""
        return {**cond, "label": torch.ones_like(cond["label"])}
