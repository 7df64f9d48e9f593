"""A recipe set on a stage: a known law of data, a known law of samples, oracles in every role."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.analytic import ExactDenoiser, GaussianTeacher, MixtureTeacher
from fewstep.core.check.cast import Actor, BestDiscriminator, GeneratorStudent, usual_kind
from fewstep.core.check.declarations import Claims
from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import UserError
from fewstep.core.prediction import Kind
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Recipe, StepPlan
from fewstep.core.rng import Rng

MEAN, STD = 0.7, 0.5
"""The data on the line."""
SHIFT, SCALE = 0.4, 0.65
"""The student's samples there: ``SCALE z + SHIFT``; near enough that every f-divergence is finite both ways."""
FIELD = 64
"""Numbers in a sample where laws are about means over elements."""
LATE = 10**6
"""A step after every warm-up."""


@dataclass(frozen=True)
class Case:
    """What is checked: a recipe under a config and a process, and what it claims."""

    recipe: type[Recipe]
    config: Any
    process: Process
    claims: Claims

    @property
    def step(self) -> int:
        """Return the step laws are about."""
        return LATE if self.claims.late else 0

    def plainly(self, **changes: Any) -> Case:
        """Return the case with the claims' ``plain`` fields and ``changes`` set, those the config has."""
        known = {f.name for f in fields(self.config)}
        wanted = {name: value for name, value in (self.claims.plain | changes).items() if name in known}
        return replace(self, config=replace(self.config, **wanted))

    def plans(self, sizes: Iterable[int]) -> Iterator[StepPlan]:
        """Return the plans of those numbers of steps the student was made for."""
        for steps in sizes:
            with suppress(UserError):
                yield self.recipe.plan(self.config, self.process, steps)

    def plan(self) -> StepPlan:
        """Return the student's shortest plan; UserError when there is none of up to 256 steps."""
        for plan in self.plans(range(1, 257)):
            return plan
        raise UserError(f"recipe '{self.recipe.name}': it plans no sampling in 1 to 256 steps")


@dataclass(frozen=True)
class Laws:
    """Data and samples: ``data`` and ``student`` are their exact denoisers, ``scale`` and ``shift`` the generator's."""

    data: ExactDenoiser
    student: ExactDenoiser
    scale: Tensor
    shift: Tensor
    labels: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a sample."""
        return tuple(self.shift.shape)

    def at_rest(self) -> Laws:
        """Return the same data with samples that are the data."""
        return replace(self, student=self.data)


def line(process: Process) -> Laws:
    """Return Gaussian data and Gaussian samples of one number."""
    scale, shift = torch.tensor([SCALE], dtype=torch.float64), torch.tensor([SHIFT], dtype=torch.float64)
    data = GaussianTeacher(process, torch.tensor([MEAN], dtype=torch.float64), STD)
    return Laws(data, GaussianTeacher(process, shift, scale), scale, shift)


def field_of_numbers(process: Process) -> Laws:
    """Return the line's laws for samples of many independent numbers, over which normalisers are nearly constant."""
    on_line = line(process)
    scale, shift = on_line.scale.repeat(FIELD), on_line.shift.repeat(FIELD)
    data = GaussianTeacher(process, torch.full((FIELD,), MEAN, dtype=torch.float64), STD)
    return Laws(data, GaussianTeacher(process, shift, scale), scale, shift)


def plane(process: Process) -> Laws:
    """Return a labelled mixture, and Gaussian samples, of two numbers."""
    scale = torch.tensor([0.8, 0.6], dtype=torch.float64)
    shift = torch.tensor([0.4, -0.2], dtype=torch.float64)
    data = MixtureTeacher(process, [0.3, 0.7], [[-2.0, 0.5], [1.5, -0.3]], [0.4, 0.6])
    return Laws(data, GaussianTeacher(process, shift, scale), scale, shift, labels=2)


@dataclass
class Stage:
    """A recipe and its actors."""

    case: Case
    laws: Laws
    recipe: Recipe
    actors: Actors

    def terms(self, phase: str, batch: Batch, rng: Rng, *, claimed: bool = False) -> Tensor:
        """Return the weighted loss of a phase per sample; of the claims' terms only when ``claimed``."""
        if self.case.claims.negatives:
            negative = {"negative/label": torch.zeros(batch.size, 1, dtype=torch.long)}
            batch = replace(batch, cond={**batch.cond, **negative})
        found = self.recipe.loss(phase, batch, rng, self.case.step)
        names = set(self.case.claims.terms) & set(found.terms) if claimed else set()
        if names:
            found = LossTerms({name: found.terms[name] for name in names}, found.weights)
        return found.total()

    def parameters(self, role: str) -> list[nn.Parameter]:
        """Return a role's parameters."""
        return list(self.actors.module(role).parameters())


@dataclass(frozen=True)
class Changes:
    """How a stage departs from the usual: roles replaced, and the dtype of its noise."""

    roles: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64


def set_stage(case: Case, laws: Laws, changes: Changes | None = None) -> Stage:
    """Return a recipe among oracles; roles that no phase trains have frozen parameters."""
    changes = changes or Changes()
    kind = usual_kind(case.process)
    roles: dict[str, Any] = {}
    specs = {spec.name: spec for spec in case.recipe.role_specs(case.config)}
    student = changes.roles.get("student") or _student(case, laws, kind)
    for name, spec in specs.items():
        if name in changes.roles:
            roles[name] = changes.roles[name]
        elif name == "student":
            roles[name] = student
        elif spec.kind == "discriminator":
            roles[name] = BestDiscriminator(laws.data, laws.student)
        elif spec.kind == "module":
            if spec.build is None:
                raise UserError(f"role '{name}': a module needs a way to build it")
            roles[name] = spec.build(0).to(changes.dtype)
        elif name == "teacher" or spec.init == "frozen":
            roles[name] = Actor(laws.data, kind)
        elif name.startswith("fake_"):
            roles[name] = Actor(laws.student, kind)
        else:
            roles[name] = copy.deepcopy(student)
    trained = {name for phase in case.recipe.phases(case.config) for name in phase.trains}
    for name, role in roles.items():
        if isinstance(role, nn.Module):
            role.requires_grad_(name in trained)
    actors = Actors(roles, case.process, laws.shape, dtype=changes.dtype, judges={"size": _size})
    return Stage(case, laws, case.recipe(case.config, actors), actors)


def _student(case: Case, laws: Laws, kind: Kind) -> Denoiser:
    if case.claims.family == "generator":
        own = case.claims.inputs == "samples"
        inputs = (laws.shift, laws.scale) if own else (0 * laws.shift + MEAN, 0 * laws.scale + STD)
        return GeneratorStudent(case.process, laws.scale, laws.shift, case.plan(), inputs)
    actor = Actor(laws.data, kind)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.fill_(case.claims.apart)
    return actor


def _size(x: Tensor, batch: Batch) -> Tensor:
    """Judge samples by their mean square: the smaller the better."""
    return x.flatten(1).square().mean(1)


def make_batch(laws: Laws, rng: Rng, dtype: torch.dtype = torch.float64) -> Batch:
    """Return data of the law, with labels and anchors where there are any."""
    size, cond = len(rng.ids), {}
    if laws.labels:
        cond["label"] = torch.tensor(rng.ids) % laws.labels
    if laws.data.process.has_anchor:
        cond["anchor"] = rng.normal("check/anchor", laws.shape, dtype)
    return Batch(size, cond, laws.data.sample(rng, cond, stream="check/data", dtype=dtype))


def null_condition(laws: Laws, size: int) -> Cond:
    """Return the condition of a batch on the line, where an anchor is zero."""
    if not laws.data.process.has_anchor:
        return {}
    return {"anchor": torch.zeros(size, *laws.shape, dtype=torch.float64)}
