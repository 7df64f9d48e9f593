"""The threed domain: scenes whose renders are judged by image models, and those image models themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fewstep.core.domain import Problem
from fewstep.core.errors import check
from fewstep.core.image.teacher import reading, scheduler_config
from fewstep.core.process import Process
from fewstep.core.recipe import RoleSpec
from fewstep.threed.settings import ThreedConfig

NO_SHAPES = "a plan of this domain's memory needs scenes and weights, which the device meta has not"


class ThreedDomain:
    """Scenes of Gaussians or fields, distilled from image models that know prompts and cameras."""

    name = "threed"
    summary = "3D: scenes of Gaussians or triplane fields out of image models; solids by prompt"
    config_type: type = ThreedConfig
    configs = Path(__file__).parent / "configs"

    def process(self, config: ThreedConfig) -> Process:
        """Return the process of the configured teacher."""
        from fewstep.threed.orbit.problem import PROCESS
        from fewstep.threed.teachers.opening import teacher_process

        if config.student == "orbit":
            return PROCESS
        return teacher_process(config) if config.teacher else reading(scheduler_config(config.process))[0]

    def build(self, config: ThreedConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str) -> Problem:
        """Return the problem with every role built; UserError for what this domain cannot give."""
        check(torch.device(device).type != "meta", NO_SHAPES)
        if config.student == "views":
            from fewstep.threed.problems.model_of_views import build_views

            return build_views(config, specs, seed, device)
        if config.student == "planes":
            from fewstep.threed.problems.generator import build_generator

            return build_generator(config, specs, seed, device)
        if config.student == "orbit":
            from fewstep.threed.orbit.problem import orbit_problem

            return orbit_problem(config.orbit, specs, seed, device)
        from fewstep.threed.problems.scene import build_scene

        return build_scene(config, specs, seed, device)


DOMAIN = ThreedDomain()
