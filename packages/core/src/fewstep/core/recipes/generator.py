"""What recipes with a generator and a fake score share: roles, the two phases, the fake score's own loss.

The student makes samples; the fake score, a second copy of the teacher, is trained by denoising to know the law of
those samples under noise; the student then moves along the difference between what teacher and fake score say. The
fake score trains first in a step, so that it has seen the student it judges.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser, edm_sigma_data
from fewstep.core.errors import check
from fewstep.core.guidance import Guided, Told, blanked, told
from fewstep.core.losses.denoising import Weighting, denoising_loss, denoising_weight
from fewstep.core.losses.distances import l2
from fewstep.core.prediction import Clean, compose, decompose
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import check_sees_data
from fewstep.core.recipes.rollout import Noised, Sample, StudentConfig, noised, student_plan, student_sample
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig

UpdateMode = Literal["every_step", "alternate"]


@dataclass(frozen=True, kw_only=True)
class FakeScoreConfig:
    """How the fake score is trained on the student's samples.

    ``time``: the law of its noise levels. ``weighting``: ``native`` is the plain squared error of whatever the network
    predicts; the others weigh the squared error of the clean sample (:mod:`fewstep.core.losses.denoising`).
    ``guidance_scale``: the prediction that is trained is a guided one (SiD-LSG, arXiv 2406.01561). ``label_dropout``:
    probability with which a whole batch is trained without its condition, which a guided fake score needs
    (SwiftBrush, arXiv 2312.05239: 0.1). ``blank``: entries of the condition, and with which probability the fake score
    is trained on a whole batch without them: as in the unconditional condition, or zeros where that has nothing of its
    own (VSD, arXiv 2305.16213: ``{camera: 0.1}``). At 1 it never sees the entry, not when it judges either. What a
    condition holds as ``fake/name`` it is told instead of ``name`` (a prompt without the view in it).
    """

    time: TimeConfig = TimeConfig(low=0.0, high=1.0)
    weighting: Literal["native"] | Weighting = "karras"
    guidance_scale: float = 1.0
    label_dropout: float = 0.0
    blank: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(0 <= self.label_dropout < 1, f"fake.label_dropout must lie in [0, 1), got {self.label_dropout:g}")
        for name, chance in self.blank.items():
            check(0 <= chance <= 1, f"fake.blank.{name} is a probability in [0, 1], got {chance:g}")

    def always_blank(self) -> tuple[str, ...]:
        """Return the entries the fake score never sees."""
        return tuple(name for name, chance in self.blank.items() if chance == 1)

    def blanked(self, rng: Rng) -> tuple[str, ...]:
        """Return the entries the fake score is trained without in this step."""
        return tuple(name for name, chance in self.blank.items() if rng.shared_uniform(f"blank/{name}") < chance)


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(StudentConfig):
    """Settings of every recipe with a generator and a fake score.

    ``guidance_scale``: of the teacher; ``fake_guidance_scale``: of the fake score when it judges (1: none, the usual
    choice). ``time``: the law of noise levels at which the student is judged. ``fake_warmup``: steps in which only the
    fake score trains. ``fake_updates``: how many steps there are per student update. ``update_mode``: the fake score
    trains on ``every_step`` (as in the papers' code), or its updates and the student's ``alternate``,
    ``fake_updates - 1`` to one.
    """

    guidance_scale: float = 1.0
    fake_guidance_scale: float = 1.0
    time: TimeConfig = TimeConfig()
    fake: FakeScoreConfig = FakeScoreConfig()
    fake_warmup: int = 0
    fake_updates: int = 1
    update_mode: UpdateMode = "every_step"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.fake_updates >= 1, f"fake_updates must be at least 1, got {self.fake_updates}")
        check(self.fake_warmup >= 0, f"fake_warmup must not be negative, got {self.fake_warmup}")
        check(
            self.update_mode == "every_step" or self.fake_updates >= 2,
            "update_mode 'alternate' needs fake_updates of at least 2: with 1 the fake score would never train",
        )


FAKE = ("fake_score",)


def fake_score_roles(fakes: tuple[str, ...] = FAKE) -> tuple[RoleSpec, ...]:
    """Return the student, the frozen teacher and the fake scores."""
    return (RoleSpec("student", ema=True), RoleSpec("teacher", init="frozen"), *(RoleSpec(name) for name in fakes))


def fake_score_phases(
    fake_updates: int,
    update_mode: UpdateMode = "every_step",
    with_fake: tuple[str, ...] = (),
    *,
    warmup: int = 0,
    fakes: tuple[str, ...] = FAKE,
) -> tuple[Phase, ...]:
    """Return the fake scores' phase, which trains ``with_fake`` too, and the student's every ``fake_updates`` steps."""
    skip = fake_updates if update_mode == "alternate" else 0
    return (
        Phase("fake_score", (*fakes, *with_fake), skip=skip),
        Phase("student", ("student",), every=fake_updates, start=warmup),
    )


class FakeScoreRecipe(Recipe):
    """A recipe whose phases are ``fake_score``, in which one or several fake scores train, and ``student``."""

    config: GeneratorConfig

    def __init__(self, config: Any, actors: Actors) -> None:
        super().__init__(config, actors)
        if actors.generate is None:
            check_sees_data(actors.denoiser("student"), config.grid(actors.process)[0])

    @classmethod
    def fakes(cls, config: Any) -> tuple[str, ...]:
        """Return the names of the fake scores."""
        return FAKE

    @classmethod
    def role_specs(cls, config: Any) -> tuple[RoleSpec, ...]:
        """Return the student, the frozen teacher and the fake scores."""
        return fake_score_roles(cls.fakes(config))

    @classmethod
    def phases(cls, config: Any) -> tuple[Phase, ...]:
        """Return the fake scores' phase and the student's, every ``fake_updates`` steps."""
        return fake_score_phases(
            config.fake_updates, config.update_mode, warmup=config.fake_warmup, fakes=cls.fakes(config)
        )

    @classmethod
    def plan(cls, config: Any, process: Process, num_steps: int) -> StepPlan:
        """Return re-noising at the student's times; UserError for a number of steps it was not made for."""
        return student_plan(cls.name, config, process, num_steps)

    @property
    def process(self) -> Process:
        """Return the process all roles share."""
        return self.actors.process

    def noised(
        self, sample: Sample, law: TimeConfig, rng: Rng, step: int, *, through: bool = False, stream: str = "noised"
    ) -> Noised:
        """Return the sample noised at times drawn from ``law``; attached to the sample when ``through``."""
        if not through:
            sample = Sample(sample.x0.detach(), sample.cond)
        return noised(self.process, sample, law, rng, stream, step)

    def teacher(self) -> Denoiser:
        """Return the teacher under its guidance."""
        return Guided(self.actors.denoiser("teacher"), self.config.guidance_scale)

    def real_score(self) -> Denoiser:
        """Return what knows the law of data where samples are judged: the teacher, unless a recipe says otherwise."""
        return self.teacher()

    def fake_score(self, name: str = FAKE[0]) -> Denoiser:
        """Return a fake score as it judges, under its guidance if any."""
        guided = Guided(self.actors.denoiser(name), self.config.fake_guidance_scale)
        return Told(guided, "fake", self.config.fake.always_blank())

    def clean_pair(self, sample: Sample, at: Noised, rng: Rng, *, through: bool) -> tuple[Tensor, Tensor]:
        """Return teacher's and fake score's clean predictions; with their graphs when ``through``.

        Both see the same dropout masks, so that copies that are in training mode still agree exactly.
        """
        with torch.set_grad_enabled(through):
            with rng.network_noise("dropout"):
                teacher = self.real_score().x0(at.x_t, at.t, sample.cond)
            with rng.network_noise("dropout"):
                return teacher, self.fake_score().x0(at.x_t, at.t, sample.cond)

    def eps_pair(self, sample: Sample, at: Noised, rng: Rng, fake: str = FAKE[0]) -> tuple[Tensor, Tensor]:
        """Return teacher's and a fake score's predictions of the noise, without gradient, under the same masks."""
        with torch.no_grad(), rng.network_noise("dropout"):
            teacher = self.teacher().eps(at.x_t, at.t, sample.cond)
        with torch.no_grad(), rng.network_noise("dropout"):
            return teacher, self.fake_score(fake).eps(at.x_t, at.t, sample.cond)

    def denoise(self, sample: Sample, at: Noised, rng: Rng, name: str = FAKE[0]) -> Tensor:
        """Return a fake score's denoising loss at a noised sample, one value per sample."""
        config, fake = self.config.fake, self.actors.denoiser(name)
        cond = blanked(fake, told(sample.cond, "fake"), config.blanked(rng))
        if config.label_dropout > 0 and rng.shared_uniform("label_dropout") < config.label_dropout:
            cond = fake.null(cond)
        prediction = Guided(fake, config.guidance_scale).predict(at.x_t, at.t, cond)
        anchor = cond.get("anchor")
        if config.weighting == "native":
            truth = compose(Clean(sample.x0, at.eps), prediction.kind, at.t, self.process, anchor)
            return l2(prediction.value, truth)
        weight = denoising_weight(config.weighting, at.alpha, at.sigma, sigma_data=edm_sigma_data(self.process))
        return denoising_loss(decompose(prediction, at.x_t, at.t, self.process, anchor).x0, sample.x0, weight)


class GeneratorRecipe(FakeScoreRecipe):
    """A recipe that judges one sample by one fake score; subclasses write :meth:`student_loss`."""

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the loss of the phase on fresh samples of the student."""
        sample = self.sample(batch, rng, grad=phase == "student")
        if phase == "student":
            return self.student_loss(sample, batch, rng, step)
        return self.fake_score_loss(sample, batch, rng, step)

    def sample(self, batch: Batch, rng: Rng, *, grad: bool) -> Sample:
        """Return samples of the student."""
        return student_sample(self.actors, self.config, batch, rng, grad=grad)

    @abstractmethod
    def student_loss(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the student's loss on a sample that carries its graph."""

    def fake_score_loss(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the denoising loss of the fake score on a detached sample."""
        return LossTerms({"denoise": self.denoise(sample, self.noised(sample, self.config.fake.time, rng, step), rng)})
