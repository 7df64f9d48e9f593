"""Recipes on the exact beds: expected gradients by quadrature, short trainings with fast randomness."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from core.score_bed import F64, Bed, Mixture, bed
from torch import Tensor, nn

from fewstep.core.denoiser import Cond, Denoiser, EDMScaling, NetworkDenoiser
from fewstep.core.losses.denoising import denoising_loss, denoising_weight
from fewstep.core.metrics.sliced import sliced_wasserstein
from fewstep.core.networks.discriminator import Discriminator
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.prediction import Prediction
from fewstep.core.process import EDM, Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Recipe
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig


class QuickRng(Rng):
    """The same interface from one generator per stream: for long loops of many samples."""

    def _fill(self, stream: str, shape: tuple[int, ...], ids: tuple[int, ...], normal: bool, double: bool) -> Tensor:
        text = f"{self.seed}:{self.step}:{self.scope}:{stream}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn if normal else torch.rand
        return draw((len(ids), *shape), generator=generator, dtype=F64 if double else torch.float32)


class GridRng(QuickRng):
    """Draws the noise of ``grids`` (set per test) for the student's samples, everything else as usual."""

    def normal_like(self, stream: str, x: Tensor) -> Tensor:
        return GRID["e"] if stream == "noised/eps" else super().normal_like(stream, x)


GRID: dict[str, Tensor] = {}


def at_level(process: Process, t: float) -> TimeConfig:
    """The law that always draws ``t`` (to 1e-12)."""
    u = float(process.time_to_unit(torch.tensor(t, dtype=F64)))
    return TimeConfig(low=u, high=u + 1e-12)


def on_bed(
    recipe_type: type[Recipe], config: Any, here: Bed, roles: Mapping[str, Any] | None = None, step: int = 0
) -> tuple[Recipe, LossTerms]:
    """A recipe and its student's loss with everything exact, one value per node of the grid."""
    given = {"teacher": here.teacher, "fake_score": here.fake, **(roles or {})}
    actors = Actors(given, here.process, (1,), generate=lambda batch, rng: (here.x0, {}), dtype=F64)
    recipe = recipe_type(config, actors)
    GRID["e"] = here.e
    n = len(here.z)
    rng = GridRng(0, step, tuple(range(n)))
    return recipe, recipe.loss("student", Batch(n), rng, step)


class ExactRatio(Discriminator):
    """A discriminator at its optimum: the logit is the log ratio of the bed's densities, attached to ``x_t``."""

    def __init__(self, here: Bed) -> None:
        super().__init__()
        self.here = here

    def patch_logits(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return (self.here.teacher.log_density(x_t, t) - self.here.fake.log_density(x_t, t))[:, None]


def in_pieces(
    recipe_type: type[Recipe], config: Any, cuts: Sequence[int], *, steps: int = 3, size: int = 12
) -> tuple[Tensor, dict[str, Tensor], Recipe]:
    """Run student phases with the batch cut into micro-batches; returns the samples' losses and the recipe's state."""
    here = bed("R1", nodes=3)
    roles = {"teacher": here.teacher, "fake_score": here.fake, "discriminator": ExactRatio(here)}

    def generate(batch: Batch, rng: Rng) -> tuple[Tensor, Cond]:
        return here.k * rng.normal("z", (1,), F64) + here.b, {}

    recipe = recipe_type(config, Actors(roles, here.process, (1,), generate, dtype=F64))
    losses = []
    for step in range(steps):
        rng = Rng.for_batch(0, step, size)
        for start, stop in zip([0, *cuts], [*cuts, size], strict=True):
            losses.append(recipe.loss("student", Batch(stop - start), rng.select(start, stop), step).total().detach())
        recipe.after_step(step)
    return torch.cat(losses), recipe.state(), recipe


class Learner(Denoiser, nn.Module):
    """The exact denoiser of a Gaussian with a mean and a standard deviation to be learned."""

    def __init__(self, process: Process, mean: float, std: float) -> None:
        nn.Module.__init__(self)
        self.process = process
        self.mean, self.std = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (mean, std))

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
        law = Mixture(self.process, [1.0], [0.0], [1.0])
        law.means, law.stds = self.mean.reshape(1, 1), self.std.reshape(1)
        return law.predict(x_t, t, cond)


class Watched(Denoiser):
    """A denoiser that notes whether it was differentiated through."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process, self.attached = inner, inner.process, []

    def null(self, cond: Cond) -> Cond:
        return self.inner.null(cond)

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
        self.attached.append(torch.is_grad_enabled() and x_t.requires_grad)
        return self.inner.predict(x_t, t, cond)


def descend(
    recipe: Recipe,
    parameters: Mapping[str, Sequence[Tensor]],
    lr: Mapping[str, float],
    *,
    steps: int,
    batch: int,
    data: Callable[[Rng], Batch] | None = None,
    make: Callable[..., torch.optim.Optimizer] = lambda p, lr: torch.optim.Adam(p, lr, betas=(0.0, 0.999)),
    seed: int = 0,
) -> list[dict[str, float]]:
    """Run the phases; returns what each step logged (the batch means of the student's metrics)."""
    optimizers = {phase: make(list(p), lr[phase]) for phase, p in parameters.items()}
    frozen = {id(p): p for group in parameters.values() for p in group}
    log = []
    for step in range(steps):
        for phase in recipe.phases(recipe.config):
            if not phase.due(step):
                continue
            mine = {id(p) for p in parameters[phase.name]}
            for key, p in frozen.items():
                p.requires_grad_(key in mine)
            rng = QuickRng(seed, step, tuple(range(batch)), batch=batch).fork(phase.name)
            terms = recipe.loss(phase.name, data(rng.fork("data")) if data else Batch(batch), rng, step)
            optimizers[phase.name].zero_grad()
            terms.total().mean().backward()
            optimizers[phase.name].step()
            if phase.name == "student":
                log.append({name: value.mean().item() for name, value in terms.metrics.items()})
        recipe.after_step(step)
    return log


# a mixture in the plane, and networks that know it roughly


WEIGHTS, MEANS, STDS = [0.5, 0.5], [[-0.6, -0.3], [0.6, 0.3]], [0.2, 0.2]
PLANE = EDM(sigma_data=0.7)


@dataclass(frozen=True)
class Plane:
    """Two blobs in the plane: the exact teacher in float32, and networks that denoise it roughly."""

    teacher: Mixture
    network: NetworkDenoiser

    def data(self, rng: Rng) -> Batch:
        blob = rng.integers("blob", 2)
        x0 = torch.tensor(MEANS)[blob] + STDS[0] * rng.normal("x0", (2,))
        return Batch(len(rng.ids), {}, x0)

    def copy(self) -> NetworkDenoiser:
        made = MLPBackbone(2, width=32, depth=2, time_scale=10.0)
        made.load_state_dict(self.network.backbone.state_dict())
        return self.network.with_backbone(made)

    def distance(self, student: NetworkDenoiser, t: float, seed: int = 1) -> float:
        """Sliced Wasserstein distance of 1000 one-step samples to as many of the mixture."""
        rng = QuickRng(seed, 0, tuple(range(1000)))
        with torch.no_grad():
            made = student.x0(t * rng.normal("z", (2,)), torch.full((1000,), t, dtype=F64), {})
        truth = self.data(rng).x0
        assert truth is not None
        return sliced_wasserstein(made, truth)


@functools.cache
def plane(steps: int = 250) -> Plane:
    """Train a small denoiser on the mixture: what students and fake scores start from (as copies: it is shared)."""
    teacher = Mixture(PLANE, WEIGHTS, MEANS, STDS, dtype=torch.float32)
    network = NetworkDenoiser(MLPBackbone(2, width=32, depth=2, time_scale=10.0), PLANE, EDMScaling(0.7))
    here = Plane(teacher, network)
    optimizer = torch.optim.Adam(network.backbone.parameters(), 4e-3)
    law = TimeConfig(law="lognormal", mean=-0.5, std=1.5)
    for step in range(steps):
        rng = QuickRng(5, step, tuple(range(256)))
        x0 = here.data(rng).x0
        t = law.draw(PLANE, rng, "t")
        c = PLANE.coefficients(t)
        x_t = PLANE.add_noise(x0, rng.normal("eps", (2,)), t)
        weight = denoising_weight("karras", c.alpha, c.sigma, sigma_data=0.7)
        loss = denoising_loss(network.x0(x_t, t, {}), x0, weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return here


__all__ = [
    "ExactRatio",
    "Learner",
    "Plane",
    "QuickRng",
    "Watched",
    "GRID",
    "GridRng",
    "at_level",
    "descend",
    "on_bed",
    "plane",
]
