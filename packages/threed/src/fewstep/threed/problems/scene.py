"""One scene for one prompt: what is optimised is the scene, and its renders are the samples recipes see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Cond, NetworkDenoiser
from fewstep.core.domain import Problem
from fewstep.core.errors import UserError, check
from fewstep.core.image.rendering import render_rows
from fewstep.core.networks.roles import build_roles
from fewstep.core.recipe import Actors, Batch, RoleSpec, StepPlan
from fewstep.core.rng import Rng
from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.judges import Judge
from fewstep.threed.scenes.field import FieldScene
from fewstep.threed.scenes.splats import GaussianScene
from fewstep.threed.settings import SceneConfig, ThreedConfig
from fewstep.threed.teachers.opening import open_judge
from fewstep.threed.teachers.view_model import to_samples
from fewstep.threed.truth import Truth, find_truth
from fewstep.threed.views import Scene

LOOK = "look"
"""Condition entry "b 2" of fixed views: azimuth and elevation in degrees. Without it cameras are drawn."""


class PromptSource:
    """One prompt, over and over."""

    def __init__(self, cond: Cond) -> None:
        self.cond = cond

    def __len__(self) -> int:
        return 0

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return the prompt for every sample of a step."""
        return Batch(len(rng.ids), self.rows(len(rng.ids), device), device=device)

    def rows(self, n: int, device: torch.device | str) -> Cond:
        """Return the prompt's condition ``n`` times."""
        return {name: value.expand(n, *value.shape[1:]).to(device) for name, value in self.cond.items()}


def make_scene(config: SceneConfig, seed: int) -> Scene:
    """Return the scene a run starts from."""
    if config.kind == "gaussians":
        return GaussianScene.ball(config.count, config.radius, config.degree, seed)
    return FieldScene(
        config.kind,
        side=config.planes[0],
        channels=config.planes[1],
        radius=config.radius,
        sections=config.sections,
        fine=config.fine,
        sharpness=config.sharpness,
        seed=seed,
    )


class Renderer:
    """A scene seen by a judge: :meth:`generate` is the student of core's recipes."""

    def __init__(self, scene: Scene, judge: Judge, source: PromptSource, background: str) -> None:
        self.scene, self.judge, self.source, self.background = scene, judge, source, background

    def generate(self, batch: Batch, rng: Rng) -> tuple[Tensor, Cond]:
        """Return renders from drawn cameras, or from those the condition fixes, and what judges are told of them."""
        fixed = batch.cond.get(LOOK)
        if fixed is not None:
            camera = fixed_cameras(self.judge, fixed)
            seen = self.scene.views(camera)
        else:
            camera = self.judge.cameras(rng.fork("view")).to(batch.device)
            seen = self.scene.views(camera, self.behind(rng).to(batch.device), rng.fork("render"))
        return self.judge.sample(seen, camera, self.source.rows(batch.size, batch.device))

    def behind(self, rng: Rng) -> Tensor:
        """Return the background of every view."""
        views = len(rng.ids) * self.judge.views
        if self.background == "white":
            return torch.ones(views, 3)
        return rng.uniform("background", (1,)).float().repeat_interleave(self.judge.views, 0).expand(views, 3)


def fixed_cameras(judge: Judge, look: Tensor, size: int = 0) -> Camera:
    """Return cameras at "b 2" angles, those of a joint judge's sample at equal steps from each."""
    ranges, views = judge.ranges, judge.views
    side = size or judge.size
    angles = look.float().repeat_interleave(views, 0)
    step = torch.arange(views, device=look.device).repeat(len(look)) * (360 / views)
    fov = torch.full_like(step, sum(ranges.fov_y_deg) / 2, dtype=torch.float32)
    relative = sum(ranges.relative_distance) / 2
    distance = relative / torch.tan(torch.deg2rad(fov) / 2)
    return orbit(angles[:, 0] + step, angles[:, 1], distance, fov, side, side)


def looks(n: int) -> Tensor:
    """Return ``n`` angles around an object, at elevations that alternate."""
    index = torch.arange(n)
    return torch.stack([22.5 + index * (360 / max(n, 1)), torch.where(index % 2 == 0, 10.0, 25.0)], dim=1).float()


def build_scene(config: ThreedConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str) -> Problem:
    """Return the problem of one scene; UserError for recipes that need a network as the student."""
    student = next((spec for spec in specs if spec.name == "student"), None)
    if student is None or student.extras or student.init == "fresh":
        raise UserError("domain.student 'scene': this recipe trains a network; use one that judges samples, like 'sds'")
    check(bool(config.teacher), "domain.teacher: a scene needs a teacher that judges its renders: name one")
    judge = open_judge(config)
    source = PromptSource(judge.encode([config.prompt]))
    scene = make_scene(config.scene, seed).to(device)
    renderer = Renderer(scene, judge, source, config.scene.background)
    others = [spec for spec in specs if spec.name != "student"]
    example = judge.told(fixed_cameras(judge, looks(1)), source.rows(1, "cpu"))
    roles = build_roles(judge.teacher, others, config.roles, seed, shape=judge.shape, cond=example)
    for role in roles.values():
        module = role.backbone if isinstance(role, NetworkDenoiser) else role
        if isinstance(module, nn.Module):
            module.to(device)
    truth = find_truth(config.prompt)
    weights = {"opacity": config.scene.opacity, "eikonal": config.scene.eikonal}

    def penalties(rng: Rng) -> dict[str, Tensor]:
        if not any(weights.values()):
            return {}
        return {name: weights[name] * value for name, value in scene.penalties(rng).items() if weights[name] > 0}

    def conditions(n: int, _seed: int) -> Cond:
        look = looks(n).to(device)
        return {**judge.told(fixed_cameras(judge, look), source.rows(n, device)), LOOK: look}

    def evaluate(samples: Tensor, cond: Cond) -> dict[str, float]:
        if truth is None:
            return {}
        return truth.of_pictures(judge.pictures(samples), fixed_cameras(judge, cond[LOOK]))

    def render(rows: Sequence[tuple[str, Tensor]], stem: Path) -> Path:
        shown = [(label, to_samples(judge.pictures(samples))) for label, samples in rows]
        return render_rows(shown, stem)

    def export(student: Any, plan: StepPlan, folder: Path, card: Mapping[str, Any]) -> None:
        from fewstep.threed.assets import write_asset

        write_asset(student.cpu(), folder, card, prompt=config.prompt)

    return Problem(
        actors=Actors({"student": scene, **roles}, judge.process, judge.shape, renderer.generate, penalties=penalties),
        data=source,
        conditions=conditions,
        evaluate=evaluate,
        render=render,
        export=export,
        notes={"teacher": config.teacher, "metric": Truth.protocol if truth is not None else "none: no truth is known"},
    )
