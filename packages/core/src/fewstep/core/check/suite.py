"""The laws that apply to a recipe, one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fewstep.core.check.conduct import conduct_laws
from fewstep.core.check.declarations import claims_of
from fewstep.core.check.expectation import (
    generator_laws,
    guidance_law,
    posterior_is_the_optimum,
    student_phases,
)
from fewstep.core.check.result import LawResult
from fewstep.core.check.stage import Case, Changes
from fewstep.core.check.trajectories import denoiser_sampling_law, trajectory_laws
from fewstep.core.process import VP, Process
from fewstep.core.recipe import Recipe


def run(recipe_type: type[Recipe], config: Any, process: Process | None = None) -> list[LawResult]:
    """Return what every law that applies finds of a recipe under a config, on ``process`` (Stable Diffusion's table).

    Networks are replaced by exact denoisers of known laws, and students by maps of few parameters, so that the right
    answer is known: no data, no training, seconds. Raises UserError when config and process do not go together.
    """
    claims = claims_of(recipe_type, config)
    case = Case(recipe_type, replace(config, **claims.instead), process or VP.scaled_linear(), claims)
    results = conduct_laws(case)
    if any("one value" in result.name and not result.passed for result in results):
        return results
    if claims.family == "generator":
        results += generator_laws(case)
    if claims.family == "denoising":
        results += [posterior_is_the_optimum(case, phase, "student", Changes()) for phase in student_phases(case)]
        results += denoiser_sampling_law(case)
    if claims.family == "trajectory" and claims.map is not None:
        results += trajectory_laws(case, claims.map)
    return [*results, *guidance_law(case)]
