"""A network that makes scenes of prompts, judged by every configured teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fewstep.core.domain import Problem
from fewstep.core.errors import check
from fewstep.core.recipe import RoleSpec
from fewstep.threed.feedforward import build_planes
from fewstep.threed.settings import ThreedConfig
from fewstep.threed.shapes.named import named_prompts
from fewstep.threed.teachers.opening import open_judge


def build_generator(config: ThreedConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str) -> Problem:
    """Return the problem of a generator of planes; UserError for what this domain cannot give."""
    check(bool(config.teacher), "domain.teacher: a generator needs a teacher that judges its renders: name one")
    names = {"teacher": config.teacher, **config.teachers}
    judges = {name: open_judge(config, teacher) for name, teacher in names.items()}
    problem = build_planes(config.planes, judges, named_prompts(config.prompts), specs, seed, device)
    problem.notes["teacher"] = ", ".join(names.values())
    return problem
