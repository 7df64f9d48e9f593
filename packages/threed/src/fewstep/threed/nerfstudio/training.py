"""A recipe of core on one scene, for a training loop that is not core's: it is asked for losses, camera by camera."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Cond, NetworkDenoiser
from fewstep.core.errors import TrainingError, UserError, check
from fewstep.core.networks.roles import build_roles
from fewstep.core.recipe import Actors, Batch, Recipe
from fewstep.core.recipes.rollout import StudentConfig
from fewstep.core.recipes.sds import SDS
from fewstep.core.recipes.vsd import VSD
from fewstep.core.rng import Rng
from fewstep.core.training.cast import Cast
from fewstep.threed.cameras import Camera
from fewstep.threed.problems.scene import PromptSource, make_scene
from fewstep.threed.settings import ThreedConfig
from fewstep.threed.teachers.opening import open_judge

RECIPES: tuple[type[Recipe], ...] = (SDS, VSD)
POSE, INTRINSICS = "pose", "intrinsics"
"""Condition entries "b v 4 4" and "b v 3 3": the cameras a loop gives, ``v`` per sample."""


def recipe_of(config: StudentConfig) -> type[Recipe]:
    """Return the recipe a config belongs to; UserError for one that does not judge samples alone."""
    for each in RECIPES:
        if type(config) is each.config_type:
            return each
    names = ", ".join(each.name for each in RECIPES)
    raise UserError(f"recipe: a {type(config).__name__} is none of those nerfstudio can train a scene with ({names})")


class SceneTraining:
    """A scene, its judge and a recipe; :meth:`losses` is one step of every phase that is due.

    The phases of a step share one backward pass: each builds its graph with gradients into its own roles only, so that
    the critic of VSD sees the scene as it was before the step. ``critic``: the parameters of all trained roles but the
    scene. Raises UserError for what the judge cannot give.
    """

    def __init__(self, config: ThreedConfig, recipe: StudentConfig, seed: int, device: torch.device | str) -> None:
        check(bool(config.teacher), "teacher: a scene needs a teacher that judges its renders: name one")
        kind = recipe_of(recipe)
        self.config, self.seed, self.device = config, seed, device
        self.judge = open_judge(config)
        self.prompt = PromptSource(self.judge.encode([config.prompt]))
        self.scene = make_scene(config.scene, seed).to(device)
        specs = kind.role_specs(recipe)
        others = [spec for spec in specs if spec.name != "student"]
        roles = build_roles(self.judge.teacher, others, config.roles, seed, shape=self.judge.shape)
        for role in roles.values():
            if isinstance(role, NetworkDenoiser):
                role.backbone.to(device)
        actors = Actors({"student": self.scene, **roles}, self.judge.process, self.judge.shape, self.generate)
        self.recipe, self.phases = kind(recipe, actors), kind.phases(recipe)
        self.cast = Cast(actors, specs, self.phases)

    @property
    def critic(self) -> list[nn.Parameter]:
        """The parameters that are trained besides the scene's."""
        named = {name: p for phase in self.phases for name, p in self.cast.parameters(phase.name)}
        return [p for name, p in named.items() if not name.startswith("student.")]

    def draws(self, step: int, samples: int, scope: str) -> Rng:
        """Return the generator of a step, the one core's loop would give a phase called ``scope``."""
        return Rng(self.seed, step, tuple(range(samples)), scope, self.device, samples)

    def cameras(self, step: int, samples: int) -> Camera:
        """Return the cameras core's loop would see the scene from when it trains it at ``step``."""
        return self.judge.cameras(self.draws(step, samples, "student").fork("view"))

    def losses(self, camera: Camera, step: int) -> dict[str, Tensor]:
        """Return the batch means of the losses of the phases due, by "phase/term"; their sum is to be minimised.

        Raises TrainingError for one that is not finite.
        """
        views = self.judge.views
        samples = len(camera) // views
        told = self.prompt.rows(samples, self.device)
        batch = Batch(samples, {**told, **_packed(camera.to(self.device), views)}, device=self.device)
        found: dict[str, Tensor] = {}
        for phase in self.phases:
            if not phase.due(step):
                continue
            self.cast.enter(phase.name)
            rng = self.draws(step, samples, phase.name)
            terms = self.recipe.loss(phase.name, batch, rng, step)
            for name, value in terms.terms.items():
                found[f"{phase.name}/{name}"] = terms.weights.get(name, 1.0) * value.mean()
            if "student" in phase.trains:
                found |= {f"{phase.name}/{name}": value for name, value in self.penalties(rng).items()}
        for phase in self.phases:
            for _, parameter in self.cast.parameters(phase.name):
                parameter.requires_grad_(True)  # the backward pass that follows is of all phases
        for name, value in found.items():
            if not bool(value.isfinite()):
                raise TrainingError(f"step {step}: the loss '{name}' is not finite: lower the learning rate")
        # a step without a phase: nothing moves
        return found or {"none": torch.zeros((), device=self.device, requires_grad=True)}

    def penalties(self, rng: Rng) -> dict[str, Tensor]:
        """Return what the scene has against itself after a render, weighted; nothing where no weight is set."""
        scene = self.config.scene
        weights = {"opacity": scene.opacity, "eikonal": scene.eikonal}
        if not any(weights.values()):
            return {}
        own = self.scene.penalties(rng.fork("penalties"))
        return {name: weights[name] * value for name, value in own.items() if weights[name] > 0}

    def generate(self, batch: Batch, rng: Rng) -> tuple[Tensor, Cond]:
        """Return renders from the batch's cameras as the judge's samples, and what they are judged under."""
        judge, size = self.judge, self.judge.size
        pose, intrinsics = (batch.cond[name].flatten(0, 1) for name in (POSE, INTRINSICS))
        camera = Camera(pose, intrinsics, size, size)
        grey: float | Tensor = 1.0
        if self.config.scene.background == "random":
            grey = rng.uniform("background", (1,)).float().repeat_interleave(judge.views, 0).expand(-1, 3)
        seen = self.scene.views(camera, grey, rng.fork("render"))
        told = {name: value for name, value in batch.cond.items() if name not in (POSE, INTRINSICS)}
        return judge.sample(seen, camera, told)


def _packed(camera: Camera, views: int) -> Cond:
    return {
        POSE: camera.world_to_camera.reshape(-1, views, 4, 4),
        INTRINSICS: camera.intrinsics.reshape(-1, views, 3, 3),
    }
