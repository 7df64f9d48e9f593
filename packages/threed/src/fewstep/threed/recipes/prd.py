"""Progressive rendering distillation (PRD, TriplaneTurbo, arXiv 2503.21694): image teachers make a 3D generator.

A student denoises six planes from noise in a few parts. After each, its clean prediction is decoded, rendered and
scored by every teacher; the next part starts from that prediction under fresh noise, without gradient. Each part is a
loss of its own (:meth:`Recipe.losses`), so memory is that of one part. No 3D data, no critic. A batch's condition holds
what the student reads, and what each teacher reads as ``<teacher>/<entry>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser, concat
from fewstep.core.errors import check, nearest
from fewstep.core.grids import time_grid
from fewstep.core.guidance import Guided, guidance_terms, plain
from fewstep.core.losses.integral import Normalizer, asd_loss, asd_time, normalizing_weight
from fewstep.core.losses.monitors import gap
from fewstep.core.process import Process, times
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.rollout import Noised, Sample, StudentConfig, noised, noised_at, student_plan
from fewstep.core.rng import Rng
from fewstep.core.tensors import sample_mean
from fewstep.core.times import TimeConfig
from fewstep.threed.judges import Judge, repeated
from fewstep.threed.planes.field import PlaneField
from fewstep.threed.planes.generator import PlaneGenerator, generator_of
from fewstep.threed.planes.meshing import mesh_views
from fewstep.threed.views import Views

SPARSITY_FLOOR = 0.01

Judges = Mapping[str, Judge]


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How one teacher judges.

    ``guidance_scale`` moves linearly to ``guidance_end`` (None: stays). ``against``: what the guided prediction is
    compared with: the teacher's conditional one (CSD; ASD with ``asd_ratio`` above 0, at a time noisier by so much), or
    the noise that was added (SDS). ``views``: how many views of an object it sees a step, for teachers that judge each
    view alone.
    """

    guidance_scale: float = 7.5
    guidance_end: float | None = None
    against: Literal["conditional", "noise"] = "conditional"
    asd_ratio: float = 0.0
    weight: float = 1.0
    views: int = 1

    def __post_init__(self) -> None:
        check(self.asd_ratio >= 0, f"asd_ratio must not be negative, got {self.asd_ratio:g}")
        check(self.views >= 1, f"a teacher sees one view or more, got {self.views}")
        still = self.against == "conditional" and self.asd_ratio == 0
        end = self.guidance_scale if self.guidance_end is None else self.guidance_end
        check(
            not still or (self.guidance_scale, end) != (1.0, 1.0),
            "a teacher compared with its own conditional prediction says nothing at guidance_scale 1: raise it",
        )


@dataclass(frozen=True, kw_only=True)
class PRDConfig(StudentConfig):
    """Settings of PRD.

    ``student_steps``: the parts, in training and after; ``moments``: how many times they are cut from (more than that:
    each part draws one of its share). ``sampling``: how the student goes on at inference: by DDIM as
    released, or with fresh noise as it was trained. ``teacher``: settings of every teacher, ``teachers`` those of some
    by name. ``normalizer``: see :func:`~fewstep.core.losses.integral.normalizing_weight`; ``clean`` is the released
    code's. ``time``: noise teachers judge at. ``renderers``: pictures of the volume, of the mesh (on a grid of
    ``resolution``), or both. ``sparsity``
    of opacity and ``eikonal`` (at ``points`` per object) fall to 0, and the gradient of colours through the volume to
    ``colour_gradient``, linearly over ``anneal_steps``.
    """

    student_steps: int = 4
    moments: int = 4
    sampling: Literal["deterministic", "renoise"] = "deterministic"
    teacher: TeacherConfig = TeacherConfig()
    teachers: dict[str, TeacherConfig] = field(default_factory=dict)
    normalizer: Normalizer = "noisy"
    floor: float = 0.1
    time: TimeConfig = TimeConfig(low=0.5, high=0.98, low_end=0.02, anneal_steps=20_000)
    renderers: tuple[Literal["volume", "mesh"], ...] = ("volume",)
    resolution: int = 64
    sparsity: float = 1.0
    eikonal: float = 1.0
    points: int = 1024
    colour_gradient: float = 0.01
    anneal_steps: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = len(self.fractions())
        check(
            self.moments == parts or (self.moments % parts == 0 and not self.student_times),
            f"moments must be a multiple of student_steps, got {self.moments} and {parts}",
        )
        check(self.floor > 0, f"floor must be positive, got {self.floor:g}")
        check(bool(self.renderers), "renderers: name volume, mesh, or both")
        check(self.anneal_steps >= 1 and self.points >= 1, "anneal_steps and points must be at least 1")

    def of_teacher(self, name: str) -> TeacherConfig:
        """Return the settings of one teacher."""
        return self.teachers.get(name, self.teacher)


def annealed(start: float, end: float, steps: int, step: int) -> float:
    """Return what has moved linearly from ``start`` at step 0 to ``end`` at ``steps``, and stays there."""
    return start + (end - start) * min(step / steps, 1.0)


def part_grid(process: Process, steps: int) -> tuple[float, ...]:
    """Return the leading grid moved up so that it starts at the noisiest time: 999, 749, 499, 249 for 4 of 1000."""
    if not process.discrete:
        return time_grid(process, steps, "trailing")
    levels = round(process.t_max) + 1
    return time_grid(process, steps, "leading", offset=levels - 1 - (steps - 1) * (levels // max(steps, 1)))


class PRD(Recipe):
    """Trains a feed-forward 3D generator by what frozen image models say of its renders."""

    name: ClassVar[str] = "prd"
    paper: ClassVar[str] = "2503.21694"
    summary: ClassVar[str] = "progressive rendering distillation: prompts to meshes in 4 steps, without 3D data"
    config_type: ClassVar[type] = PRDConfig
    config: PRDConfig

    def __init__(self, config: PRDConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.judges: Judges = actors.roles["judges"]
        self.generator: PlaneGenerator = generator_of(actors.denoiser("student"))
        check(bool(self.judges), "recipe 'prd' needs one teacher or more, this domain gives none")
        for name in config.teachers:
            check(name in self.judges, f"recipe.teachers: no teacher '{name}' here: {nearest(name, self.judges)}")

    @classmethod
    def role_specs(cls, config: PRDConfig) -> tuple[RoleSpec, ...]:
        """Return the student and the frozen teachers, a mapping of judges by name."""
        return (RoleSpec("student", ema=True), RoleSpec("judges", init="frozen"))

    @classmethod
    def phases(cls, config: PRDConfig) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("student", ("student",)),)

    @classmethod
    def plan(cls, config: PRDConfig, process: Process, num_steps: int) -> StepPlan:
        """Return the grid of the parts; UserError for another number of steps."""
        return student_plan(cls.name, config, process, num_steps, config.sampling)

    def times(self, rng: Rng) -> tuple[float, ...]:
        """Return one time per part, noisiest first, the same for the whole batch."""
        parts = len(self.config.fractions())
        share = self.config.moments // parts
        if share == 1:
            return self.config.grid(self.actors.process)
        grid = part_grid(self.actors.process, self.config.moments)
        return tuple(grid[part * share + rng.shared_integer(f"part/{part}", share)] for part in range(parts))

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return all parts at once, their graphs all in memory: for tests and loops of one's own."""
        parts = list(self.losses(phase, batch, rng, step))
        terms = {name: torch.stack([part.terms[name] for part in parts]).mean(0) for name in parts[0].terms}
        weights = {name: weight * len(parts) for name, weight in parts[0].weights.items()}
        metrics = {name: torch.stack([part.metrics[name] for part in parts]).mean(0) for name in parts[0].metrics}
        return LossTerms(terms, weights, metrics)

    def losses(self, phase: str, batch: Batch, rng: Rng, step: int) -> Iterator[LossTerms]:
        """Yield the loss of each part; its gradient goes no further back than that part's denoising."""
        process, student = self.actors.process, self.actors.denoiser("student")
        moments = self.times(rng)
        z = rng.normal("student/noise", self.actors.shape, self.actors.dtype)
        for index, moment in enumerate(moments):
            t = times(moment, batch.size, z.device)
            x = process.add_noise(z, rng.normal_like(f"student/renoise/{index}", z), t).to(self.actors.dtype)
            clean = student.x0(x, t, batch.cond)
            z = clean.detach()
            own = rng.fork(f"part{index}")
            yield self.judged(self.generator.field(clean), batch.cond, own, step, more=index + 1 < len(moments))
            del clean  # its graph, before the next part is made

    def judged(self, planes: PlaneField, cond: Cond, rng: Rng, step: int, more: bool = False) -> LossTerms:
        """Return what the teachers say of the fields of a part, and the regularisers."""
        config, parts = self.config, len(self.config.fractions())
        planes.colour_gradient = annealed(1.0, config.colour_gradient, config.anneal_steps, step)
        fade = annealed(1.0, 0.0, config.anneal_steps, step) / parts
        terms: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        metrics: dict[str, Tensor] = {}
        sparse: list[Tensor] = []
        for name, judge in self.judges.items():
            settings = config.of_teacher(name)
            for renderer in config.renderers:
                key = name if renderer == "volume" else f"{name}/mesh"
                rows = _rows(rng.fork(key), settings.views if judge.views == 1 else 1)
                camera = judge.cameras(rows.fork("cameras"))
                seen = (
                    planes.views(camera, rng=rows)
                    if renderer == "volume"
                    else mesh_views(planes, camera, config.resolution)
                )
                repeats = len(rows.ids) // len(rng.ids)
                told = repeated(told_to(name, cond), repeats)
                value, apart = self.score(judge, settings, judge.sample(seen, camera, told), rows, step)
                terms[key], weights[key] = _means(value, repeats), settings.weight / parts
                metrics[f"gap/{key}"] = _means(apart, repeats)
                if renderer == "volume":
                    sparse.append(_means(sparsity(seen), repeats * judge.views))
        if config.sparsity > 0 and fade > 0 and sparse:
            terms["sparsity"], weights["sparsity"] = torch.stack(sparse).mean(0), fade * config.sparsity
        if config.eikonal > 0 and fade > 0:
            terms["eikonal"] = planes.eikonal(rng, config.points)
            weights["eikonal"] = fade * config.eikonal
        return LossTerms(terms, weights, metrics, more)

    def score(
        self, judge: Judge, settings: TeacherConfig, sample: Sample, rng: Rng, step: int
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return the surrogate of a teacher's score difference, and how far its two predictions are apart.

        The gradient is ``(sigma/alpha) (eps_1 - eps_2) / (w + floor)``, w a mean over the elements of each picture;
        views judged jointly are averaged, elements summed.
        """
        process, config = judge.teacher.process, self.config
        still = Sample(sample.x0.detach(), sample.cond)
        at = noised(process, still, config.time, rng, "noised", step)
        end = settings.guidance_scale if settings.guidance_end is None else settings.guidance_end
        scale = annealed(settings.guidance_scale, end, config.anneal_steps, step)
        with torch.no_grad():
            first, second = self.predictions(judge.teacher, settings, still, at, scale, rng, step)
        joint = sample.x0.ndim == 5
        alpha, sigma = at.alpha, at.sigma
        views = sample.x0.shape[1] if joint else 1
        x, one, two, eps = (each.flatten(0, 1) if joint else each for each in (sample.x0, first, second, at.eps))
        alpha, sigma = alpha.repeat_interleave(views), sigma.repeat_interleave(views)
        weight = normalizing_weight(config.normalizer, x, one, eps, alpha, sigma, floor=config.floor)
        value = asd_loss(x, one, two, weight=sigma / alpha * weight, reduction="sum")
        return _means(value, views), gap(first, second)

    def predictions(
        self, teacher: Denoiser, settings: TeacherConfig, sample: Sample, at: Noised, scale: float, rng: Rng, step: int
    ) -> tuple[Tensor, Tensor]:
        """Return the guided noise and the one it is compared with."""
        if settings.against == "noise":
            return Guided(teacher, scale).eps(at.x_t, at.t, sample.cond), at.eps
        if settings.asd_ratio == 0:
            terms = guidance_terms(teacher, sample.cond)
            count = len(terms.conds)
            found = teacher.eps(torch.cat([at.x_t] * count), torch.cat([at.t] * count), concat(list(terms.conds)))
            return terms.combine(found.chunk(count), scale), terms.combine(found.chunk(count), 1.0)
        later = shifted_time(teacher.process, self.config.time, at.t, settings.asd_ratio, rng.uniform("asd"), step)
        noisier = noised_at(teacher.process, sample, later, at.eps)
        guided = Guided(teacher, scale).eps(at.x_t, at.t, sample.cond)
        return guided, teacher.eps(noisier.x_t, noisier.t, plain(sample.cond))


def shifted_time(
    process: Process, law: TimeConfig, t: Float[Tensor, " b"], ratio: float, share: Float[Tensor, " b"], step: int
) -> Float[Tensor, " b"]:
    """Return ASD's noisier time ``t + share ratio (t - t_low)``, rounded down to whole steps of a table."""
    low = float(process.unit_to_time(torch.tensor(law.bounds(step)[0], dtype=torch.float64)))
    shift = asd_time(t, low, share.to(t), ratio) - t
    shift = shift.clamp_min(0)
    return (t + (shift.floor() if process.discrete else shift)).clamp_max(process.t_max)


def sparsity(seen: Views) -> Float[Tensor, " v"]:
    """Return the mean of sqrt(opacity^2 + 0.01) of each picture."""
    return sample_mean((seen.alpha.square() + SPARSITY_FLOOR).sqrt())


def told_to(name: str, cond: Cond) -> Cond:
    """Return what a batch's condition has for one teacher: the entries called ``<name>/...``, without that."""
    return {key.removeprefix(f"{name}/"): value for key, value in cond.items() if key.startswith(f"{name}/")}


def _rows(rng: Rng, views: int) -> Rng:
    """Return a generator that takes the views of a sample for samples, next to each other."""
    return rng if views == 1 else replace(rng, ids=tuple(i * views + v for i in rng.ids for v in range(views)))


def _means(value: Float[Tensor, " n"], group: int) -> Float[Tensor, " b"]:
    return value.reshape(-1, group).mean(1)
