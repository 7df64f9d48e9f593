"""Recipes with a fake score train parameters that are only seen through a renderer."""

from __future__ import annotations

import pytest
import torch
from core.recipe_bed import descend
from core.score_bed import F64

from fewstep.core.analytic import GaussianTeacher
from fewstep.core.denoiser import Denoiser
from fewstep.core.networks.discriminator import Discriminator
from fewstep.core.process import CosineVP
from fewstep.core.recipe import Actors
from fewstep.core.recipes import find_recipe
from fewstep.core.times import TimeConfig

PROCESS = CosineVP()
TRUTH = torch.tensor([0.8, -0.5, 0.3], dtype=F64)
SPREAD = 0.3
LAW = TimeConfig(low=0.1, high=0.9)


class Views(Denoiser):
    """The exact denoiser of views of a scene: the picture of a camera "b 2" is ``camera-map scene + SPREAD noise``."""

    def __init__(self, scene):
        self.process, self.scene = PROCESS, scene

    def null(self, cond):
        return cond

    def predict(self, x_t, t, cond):
        mean = render(self.scene().detach(), cond["camera"])
        return GaussianTeacher(PROCESS, mean, SPREAD).predict(x_t, t, {})


def render(scene, camera):
    """Two numbers per view, linear in the scene: along the camera, and across it."""
    along, across = camera[:, 0], camera[:, 1]
    return torch.stack([along * scene[0] + across * scene[1], along * scene[2] - across * scene[0]], 1)


class Ratio(Discriminator):
    """The best logit of views of the truth against views of the scene."""

    def __init__(self, scene):
        super().__init__()
        self.scene, self.gain = scene, torch.nn.Parameter(torch.ones((), dtype=F64))

    def patch_logits(self, x_t, t, cond):
        real, made = (
            GaussianTeacher(PROCESS, render(s, cond["camera"]), SPREAD).log_density(x_t, t)
            for s in (TRUTH, self.scene().detach())
        )
        return self.gain * (real - made)[:, None]


@pytest.mark.parametrize("name", ["vsd", "dmd2", "diff-instruct", "sid", "uni-instruct", "sds"])
def test_a_scene_moves_to_the_truth_of_its_views(name):
    scene = torch.zeros(3, dtype=F64, requires_grad=True)

    def generate(batch, rng):
        angle = 6.283 * rng.uniform("camera")
        camera = torch.stack([angle.cos(), angle.sin()], 1)
        return render(scene, camera) + SPREAD * rng.normal("spread", (2,), F64), {"camera": camera}

    recipe = find_recipe(name)
    settings = {"guidance_scale": 1.0} if name == "sds" else {"fake_updates": 1}
    config = recipe.config_type(time=LAW, **settings)
    roles = {"teacher": Views(lambda: TRUTH), "fake_score": Views(lambda: scene), "discriminator": Ratio(lambda: scene)}
    made = recipe(config, Actors(roles, PROCESS, (2,), generate, dtype=F64))
    made.phases = lambda config: tuple(p for p in recipe.phases(config) if p.name == "student")
    before = (scene - TRUTH).norm().item()
    descend(made, {"student": [scene]}, {"student": 0.04}, steps=40, batch=16)
    assert (scene - TRUTH).norm().item() < 0.2 * before


def test_views_are_rendered_as_stated():
    camera = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64)
    assert render(TRUTH, camera).tolist() == [[0.8, 0.3], [-0.5, -0.8]]
