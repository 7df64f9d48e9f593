"""Plain diffusion training: how teachers are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import check
from fewstep.core.grids import time_grid
from fewstep.core.losses.denoising import Weighting, denoising_loss, denoising_weight
from fewstep.core.losses.distances import l2
from fewstep.core.prediction import Clean, compose, decompose
from fewstep.core.process import Process
from fewstep.core.recipe import Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Settings of plain diffusion training.

    ``weighting``: ``native`` is the plain squared error of whatever the network predicts (eps, v, flow ...); the others
    weigh the squared error of the clean sample (:func:`fewstep.core.losses.denoising.denoising_weight`).
    ``label_dropout``: share of samples trained without their condition, which guidance needs (0.1 in most papers).
    ``time``: the law of noise levels. ``init``: ``fresh`` weights, or the ``teacher``'s (fine-tuning).
    """

    weighting: Literal["native"] | Weighting = "native"
    min_snr_gamma: float = 5.0
    sigma_data: float = 0.5
    label_dropout: float = 0.0
    time: TimeConfig = field(default_factory=lambda: TimeConfig(low=0.0, high=1.0))
    init: Literal["fresh", "teacher"] = "fresh"

    def __post_init__(self) -> None:
        check(0 <= self.label_dropout < 1, f"label_dropout must lie in [0, 1), got {self.label_dropout:g}")


class Diffusion(Recipe):
    """One role, one phase: denoising score matching on data."""

    name: ClassVar[str] = "diffusion"
    paper: ClassVar[str] = "2006.11239"
    summary: ClassVar[str] = "plain denoising training of a teacher, with label dropout for guidance"
    config_type: ClassVar[type] = DiffusionConfig
    config: DiffusionConfig

    @classmethod
    def role_specs(cls, config: DiffusionConfig) -> tuple[RoleSpec, ...]:
        """Return the network to train, with an average that samples."""
        return (RoleSpec("student", init=config.init, ema=True),)

    @classmethod
    def phases(cls, config: DiffusionConfig) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("denoise", ("student",)),)

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the denoising loss at one drawn noise level per sample."""
        config, student = self.config, self.actors.denoiser("student")
        x0, process = batch.clean_samples(self.name), student.process
        cond = drop_condition(student, batch.cond, config.label_dropout, rng)
        t = config.time.draw(process, rng, "time", step).to(x0.device)
        eps = rng.normal_like("eps", x0)
        anchor = cond.get("anchor")
        x_t = process.add_noise(x0, eps, t, anchor).to(x0.dtype)
        prediction = student.predict(x_t, t, cond)
        if config.weighting == "native":
            value = l2(prediction.value, compose(Clean(x0, eps), prediction.kind, t, process, anchor))
        else:
            c = process.coefficients(t)
            weight = denoising_weight(
                config.weighting, c.alpha, c.sigma, gamma=config.min_snr_gamma, sigma_data=config.sigma_data
            )
            value = denoising_loss(decompose(prediction, x_t, t, process, anchor).x0, x0, weight)
        return LossTerms({"denoise": value})

    @classmethod
    def plan(cls, config: DiffusionConfig, process: Process, num_steps: int) -> StepPlan:
        """Return DDIM sampling on the process's usual grid."""
        return StepPlan(time_grid(process, num_steps), mode="deterministic")


def drop_condition(student: Denoiser, cond: Cond, share: float, rng: Rng) -> Cond:
    """Return the condition with a random ``share`` of the samples made unconditional, as the network's null has it.

    An empty condition stays as it is: data without classes trains an unconditional network.
    """
    if share == 0 or not cond:
        return cond
    null = student.null(cond)
    dropped = rng.uniform("label_dropout") < share

    def pick(name: str) -> Tensor:
        value = cond[name]
        mask = dropped.to(value.device).reshape(-1, *([1] * (value.ndim - 1)))
        return torch.where(mask, null[name], value)

    return {name: pick(name) if name in null else cond[name] for name in cond}
