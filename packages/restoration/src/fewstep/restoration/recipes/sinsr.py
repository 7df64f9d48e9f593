"""SinSR (arXiv 2311.14760): one step that goes from noise to the sample, and the same network for the way back.

The deterministic teacher pairs every start with one sample. The student learns that map; at the least noise, where a
denoiser would have nothing to do, it learns the inverse; and the inverse gives clean data a start of its own, from
which the student should return to the data itself rather than to what the teacher makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.check.declarations import Claims
from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.losses.distances import l2
from fewstep.core.prediction import Kind, decompose
from fewstep.core.process import Process, times
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import check_sees_data
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state
from fewstep.restoration.process import ResidualDenoiser
from fewstep.restoration.recipes.rollout import TeacherConfig, start_at_noise, target_of


@dataclass(frozen=True, kw_only=True)
class SinSRConfig(TeacherConfig):
    """Settings of SinSR; defaults of the paper.

    ``distill_weight``: of the regression on the teacher's sample; ``inverse_weight``: of the way back from that sample
    to its start; ``data_weight``: of the way to clean samples from the starts the inverse gives them. A term of weight
    0 is not computed. The ``target`` must be a deterministic map of the start.
    """

    distill_weight: float = 1.0
    inverse_weight: float = 1.0
    data_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = (self.distill_weight, self.inverse_weight, self.data_weight)
        check(min(weights) >= 0, f"distill_weight, inverse_weight and data_weight must not be negative, got {weights}")
        check(max(weights) > 0, "distill_weight, inverse_weight and data_weight are all 0: nothing to learn from")
        check(self.target in ("deterministic", "prepared"), f"sinsr inverts its target, which '{self.target}' is not")


class SinSR(Recipe):
    """Trains a one-step student and its inverse in one network."""

    name: ClassVar[str] = "sinsr"
    paper: ClassVar[str] = "2311.14760"
    summary: ClassVar[str] = "one-step restoration: the deterministic teacher's samples, and the way back to the noise"
    config_type: ClassVar[type] = SinSRConfig
    claims: ClassVar[Claims] = Claims("generator", through=False, at_rest=False, terms=("distill",), inputs="data")
    config: SinSRConfig

    def __init__(self, config: SinSRConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        check_sees_data(actors.denoiser("student"))

    @classmethod
    def role_specs(cls, config: SinSRConfig) -> tuple[RoleSpec, ...]:
        """Return the student and, where targets are made on the fly, the frozen teacher."""
        rolls_out = config.target == "deterministic" and max(config.distill_weight, config.inverse_weight) > 0
        teacher = (RoleSpec("teacher", init="frozen"),) if rolls_out else ()
        return (RoleSpec("student", ema=True), *teacher)

    @classmethod
    def phases(cls, config: SinSRConfig) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("student", ("student",)),)

    @classmethod
    def plan(cls, config: SinSRConfig, process: Process, num_steps: int) -> StepPlan:
        """Return the one step; UserError for another number."""
        check(num_steps == 1, f"recipe '{cls.name}': a student of one step cannot sample in {num_steps}")
        return StepPlan((process.t_max,))

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the squared errors that have a weight."""
        config, process, terms = self.config, self.actors.process, dict[str, Tensor]()
        start = start_at_noise(self.actors, batch, rng)
        student, t = self.actors.denoiser("student"), start.times()
        if max(config.distill_weight, config.inverse_weight) > 0:
            target = target_of(config, self.actors, start, batch, rng)
            if config.distill_weight > 0:
                terms["distill"] = l2(student.x0(start.x, t, start.cond), target)
            if config.inverse_weight > 0:
                terms["inverse"] = l2(self.inverse(target, start.cond), start.x)
        if config.data_weight > 0:
            x0 = batch.clean_samples(self.name)
            with torch.no_grad():
                begun = self.inverse(x0, start.cond).to(self.actors.dtype)
            terms["data"] = l2(student.x0(begun, times(process.t_max, len(x0), x0.device), start.cond), x0)
        weights = {"distill": config.distill_weight, "inverse": config.inverse_weight, "data": config.data_weight}
        return LossTerms(terms, {name: weights[name] for name in terms})

    def inverse(self, x0: Tensor, cond: Cond) -> Float[Tensor, "b *d"]:
        """Return the start the student sees behind a sample, which it is shown at the least noise.

        A network whose output is the clean sample gives the start itself, as in the paper. Any other is read for its
        noise, with which sampling would start: of the clean sample it has hardly a say at that level (a network of
        residuals 0.04 of its output), of the noise it has nearly all.
        """
        process, student = self.actors.process, self.actors.denoiser("student")
        x = x0.detach().to(self.actors.dtype)
        t = times(process.t_min, len(x), x.device)
        found = student.predict(x, t, cond)
        if found.kind is Kind.X0 and not isinstance(student, ResidualDenoiser):
            return found.value
        noise = decompose(found, x, t, process, cond.get("anchor")).eps
        return initial_state(process, noise, process.t_max, cond)
