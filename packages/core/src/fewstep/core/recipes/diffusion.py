"""Plain diffusion training: how teachers are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import check
from fewstep.core.grids import time_grid
from fewstep.core.losses.denoising import Weighting, denoising_loss, denoising_weight
from fewstep.core.losses.distances import l2
from fewstep.core.prediction import Clean, Prediction, compose, decompose
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


class Answer(NamedTuple):
    """A network's prediction at ``x_t`` "b *d" and ``t`` "b"; the clean sample and noise that ``x_t`` is made of."""

    prediction: Prediction
    clean: Clean
    x_t: Tensor
    t: Tensor
    anchor: Tensor | None


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
        return LossTerms({"denoise": self.denoise(self.answer(batch, rng, step))})

    def answer(self, batch: Batch, rng: Rng, step: int) -> Answer:
        """Return what the network says of noised data."""
        student = self.actors.denoiser("student")
        x0 = batch.clean_samples(self.name)
        cond = drop_condition(student, batch.cond, self.config.label_dropout, rng)
        t = self.config.time.draw(student.process, rng, "time", step).to(x0.device)
        eps, anchor = rng.normal_like("eps", x0), cond.get("anchor")
        x_t = student.process.add_noise(x0, eps, t, anchor).to(x0.dtype)
        return Answer(student.predict(x_t, t, cond), Clean(x0, eps), x_t, t, anchor)

    def denoise(self, answer: Answer) -> Float[Tensor, " b"]:
        """Return the weighted squared error of an answer."""
        config, process = self.config, self.actors.denoiser("student").process
        prediction, clean, x_t, t, anchor = answer
        if config.weighting == "native":
            return l2(prediction.value, compose(clean, prediction.kind, t, process, anchor))
        c = process.coefficients(t)
        weight = denoising_weight(
            config.weighting, c.alpha, c.sigma, gamma=config.min_snr_gamma, sigma_data=config.sigma_data
        )
        return denoising_loss(decompose(prediction, x_t, t, process, anchor).x0, clean.x0, weight)

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
