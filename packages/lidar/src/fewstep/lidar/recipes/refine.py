"""The refiner's training (arXiv 2403.13470, section 3.4): the Chamfer distance between what it makes and the scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewstep.core.errors import UserError
from fewstep.core.losses.points import chamfer_loss
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Settings of the refiner's loss. ``squared``: of squared lengths, as published; else of plain ones."""

    squared: bool = True


class Refine(Recipe):
    """Teaches a network to move and multiply the points of a jittered scene until they lie on the scene."""

    name: ClassVar[str] = "refine"
    paper: ClassVar[str] = "2403.13470"
    summary: ClassVar[str] = "LiDiff's refiner: several points out of each, by Chamfer distance"
    config_type: ClassVar[type] = RefineConfig
    config: RefineConfig

    def __init__(self, config: RefineConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        if actors.generate is None:
            raise UserError("recipe 'refine' trains a refiner: set domain.student to refiner")

    @classmethod
    def role_specs(cls, config: RefineConfig) -> tuple[RoleSpec, ...]:
        """Return the refiner, from fresh weights."""
        return (RoleSpec("student", init="fresh", ema=True),)

    @classmethod
    def phases(cls, config: RefineConfig) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("student", ("student",)),)

    @classmethod
    def plan(cls, config: RefineConfig, process: Process, num_steps: int) -> StepPlan:
        """Return a single evaluation; a refiner has no noise levels."""
        return StepPlan((process.t_min,))

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the distance: both directions, each a mean over its cloud, added up."""
        assert self.actors.generate is not None
        made, _ = self.actors.generate(batch, rng)
        halved = chamfer_loss(made, batch.clean_samples(self.name), squared=self.config.squared)
        return LossTerms({"chamfer": 2 * halved})
