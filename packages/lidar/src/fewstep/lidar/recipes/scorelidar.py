"""ScoreLiDAR (arXiv 2412.03515): score distillation of scene completion, with terms of the scene's geometry.

Samples are points; the geometric terms compare them with those of the complete scene, ``batch.x0``, as sets: the rows
of the two have nothing to do with each other.

The released code multiplies ``eps_teacher - eps_fake`` by ``x_t - x0``, with ``x0`` attached in both, which is a
constant: its students learn from the geometric terms alone. Here it acts on ``x0``, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.core.check.declarations import Claims
from fewstep.core.errors import UserError, check
from fewstep.core.losses.integral import vsd_loss
from fewstep.core.losses.points import Correspondence, scene_loss, select_key_points, structural_loss
from fewstep.core.process import Process
from fewstep.core.recipe import Batch, LossTerms, StepPlan
from fewstep.core.recipes.any_step import AnyStepConfig, any_step_plan
from fewstep.core.recipes.generator import GeneratorRecipe
from fewstep.core.recipes.rollout import Sample
from fewstep.core.rng import Rng
from fewstep.core.tensors import sample_mean


@dataclass(frozen=True, kw_only=True)
class ScoreLiDARConfig(AnyStepConfig):
    """Settings of ScoreLiDAR; defaults of the paper (table 6), whose student trains at one step and samples in eight.

    ``scene_weight``, ``point_weight``: of the Chamfer distance and of the structural term; at 0 a term is not computed,
    and without both no complete scenes are needed. ``squared``: Chamfer distance of squared lengths.
    ``correspondence``: ``index`` compares row with row, as the released code does; with rows in random order it only
    pulls points to the middle of the scene. Key points: the ``key_keep`` of highest curvature among a random
    ``key_share`` of the scene, curvature over ``neighbours`` of those. ``guidance_scale``: of the teacher; the student
    is then taught the guided scene, and is sampled without guidance.
    """

    scene_weight: float = 0.5
    point_weight: float = 0.01
    squared: bool = False
    correspondence: Correspondence = "nearest"
    key_share: float = 0.1
    key_keep: float = 1 / 3
    neighbours: int = 180

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.scene_weight >= 0, f"scene_weight must not be negative, got {self.scene_weight:g}")
        check(self.point_weight >= 0, f"point_weight must not be negative, got {self.point_weight:g}")
        for name, share in (("key_share", self.key_share), ("key_keep", self.key_keep)):
            check(0 < share <= 1, f"{name} must lie in (0, 1], got {share:g}")
        check(self.neighbours >= 1, f"neighbours must be at least 1, got {self.neighbours}")


class ScoreLiDAR(GeneratorRecipe):
    """Moves points along ``eps_teacher - eps_fake`` and towards the complete scene; no gradients through networks."""

    name: ClassVar[str] = "scorelidar"
    paper: ClassVar[str] = "2412.03515"
    summary: ClassVar[str] = "score distillation of scene completion with a structural loss: any step count"
    config_type: ClassVar[type] = ScoreLiDARConfig
    claims: ClassVar[Claims] = Claims(
        "generator", "reverse_kl", False, ("distillation",), plain={"scene_weight": 0.0, "point_weight": 0.0}
    )
    config: ScoreLiDARConfig

    @classmethod
    def plan(cls, config: ScoreLiDARConfig, process: Process, num_steps: int) -> StepPlan:
        """Return sampling at any number of steps."""
        return any_step_plan(config, process, num_steps)

    def student_loss(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the surrogate of score distillation, and the geometric terms that have a weight."""
        at = self.noised(sample, self.config.time, rng, step)
        teacher, fake = self.eps_pair(sample, at, rng)
        value = vsd_loss(sample.x0, teacher, fake, reduction=self.config.reduction)
        metrics = {"direction": sample_mean((teacher - fake).abs())}
        geometry = self.geometry(sample, batch, rng)
        weights = {"scene": self.config.scene_weight, "point": self.config.point_weight}
        return LossTerms({"distillation": value, **geometry}, weights, metrics)

    def geometry(self, sample: Sample, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        """Return the terms by name, each per sample; UserError where points or complete scenes are missing."""
        config, found = self.config, dict[str, Tensor]()
        if config.scene_weight == config.point_weight == 0:
            return found
        made, scene = sample.x0, batch.clean_samples(self.name)
        if made.ndim != 3 or made.shape[2] != 3:
            raise UserError(
                f"recipe '{self.name}': its geometric terms need points [b, n, 3], and samples here are "
                f"{list(made.shape)}; set scene_weight and point_weight to 0 to do without"
            )
        if config.scene_weight > 0:
            found["scene"] = scene_loss(made, scene, correspondence=config.correspondence, squared=config.squared)
        if config.point_weight > 0:
            uniforms = rng.uniform("key_points", (scene.shape[1],)).to(scene.device)
            keys = select_key_points(scene, uniforms, share=config.key_share, k=config.neighbours, keep=config.key_keep)
            found["point"] = structural_loss(made, scene, keys, correspondence=config.correspondence)
        return found
