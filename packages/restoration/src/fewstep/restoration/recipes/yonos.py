"""YONOS-SR's scale distillation (arXiv 2401.17258): a network for a small magnification teaches one for a larger.

Both look at the same noisy sample; the teacher is given a picture that lost less. Its single prediction, at the noise
level at hand, is the student's target: with conditions that are nested (the student's low-quality picture made from the
teacher's, :func:`fewstep.restoration.degradations.nested.nested_pair`) the best student is that of plain training, and
its targets vary less by the teacher's own error.

**Processes with an anchor.** Their state holds the low-quality picture, ``x_t = alpha x0 + sigma eps + eta y``. Student
and teacher each get the state made with their own ``y`` from the same ``x0``, ``t`` and ``eps``: what is noisy in it is
then the same for both, each network is where it was trained, and nothing of the milder picture reaches the student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.grids import time_grid
from fewstep.core.losses.denoising import denoising_loss, denoising_weight
from fewstep.core.losses.monitors import gap
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import check_sees_data
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig


@dataclass(frozen=True, kw_only=True)
class YonosConfig:
    """Settings of scale distillation; the paper's weight is not known.

    ``weighting``: of the squared x0 error, ``truncated_snr`` (the larger of x0's and eps's own loss), ``uniform``, or
    ``snr_plus_one`` (v's own loss); none vanishes at the greatest noise, where one-step students are used. ``time``:
    the law of noise levels.
    """

    weighting: Literal["truncated_snr", "uniform", "snr_plus_one"] = "truncated_snr"
    time: TimeConfig = TimeConfig(low=0.0, high=1.0)


class Yonos(Recipe):
    """Teaches a student what a frozen teacher of a smaller magnification says of the same noisy sample."""

    name: ClassVar[str] = "yonos"
    paper: ClassVar[str] = "2401.17258"
    summary: ClassVar[str] = "scale distillation: the teacher sees the same sample less degraded; 1-4 steps"
    config_type: ClassVar[type] = YonosConfig
    config: YonosConfig

    def __init__(self, config: YonosConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        check_sees_data(actors.denoiser("student"))

    @classmethod
    def role_specs(cls, config: YonosConfig) -> tuple[RoleSpec, ...]:
        """Return the student, which starts as the teacher, and the frozen teacher."""
        return (RoleSpec("student", ema=True), RoleSpec("teacher", init="frozen"))

    @classmethod
    def phases(cls, config: YonosConfig) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("student", ("student",)),)

    @classmethod
    def plan(cls, config: YonosConfig, process: Process, num_steps: int) -> StepPlan:
        """Return DDIM from the noisiest level, in one step or more: the student is still a diffusion model."""
        return StepPlan(time_grid(process, num_steps), mode="deterministic")

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the weighted squared distance of the two predictions of x0; UserError without ``milder``."""
        student, teacher = self.actors.denoiser("student"), self.actors.denoiser("teacher")
        x0, process = batch.clean_samples(self.name), student.process
        own, milder = conditions(batch.cond)
        t = self.config.time.draw(process, rng, "time", step).to(x0.device)
        eps = rng.normal_like("eps", x0)
        with torch.no_grad(), rng.network_noise("dropout"):
            x_t = process.add_noise(x0, eps, t, milder["anchor"]).to(x0.dtype)
            target = teacher.x0(x_t, t, milder)
        x_t = process.add_noise(x0, eps, t, own["anchor"]).to(x0.dtype)
        with rng.network_noise("dropout"):
            predicted = student.x0(x_t, t, own)
        c = process.coefficients(t)
        value = denoising_loss(predicted, target, denoising_weight(self.config.weighting, c.alpha, c.sigma))
        return LossTerms({"scale": value}, metrics={"gap": gap(target, predicted), "error": gap(x0, predicted)})


def conditions(cond: Cond) -> tuple[Cond, Cond]:
    """Return the student's condition and the teacher's, whose ``anchor`` is ``milder``.

    The low-quality picture at its own size, ``lq``, is the student's and stays there. UserError for a condition without
    the two anchors or with anchors of two sizes.
    """
    missing = [name for name in ("anchor", "milder") if name not in cond]
    if missing:
        raise UserError(
            f"recipe 'yonos' needs cond['{missing[0]}'] and got {sorted(cond)}: the teacher sees the picture at a "
            "smaller magnification, set domain.milder_scale"
        )
    own = {name: value for name, value in cond.items() if name != "milder"}
    sizes = [tuple(cond[name].shape) for name in ("anchor", "milder")]
    check(sizes[0] == sizes[1], f"recipe 'yonos': anchors must be of the sample's size, got {sizes[0]} and {sizes[1]}")
    return own, {name: value for name, value in own.items() if name != "lq"} | {"anchor": cond["milder"]}
