"""Methods, one file each; :func:`find_recipe` imports the one asked for."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from fewstep.core.errors import UserError, nearest
from fewstep.core.recipe import Recipe

# name -> (module, class): listing recipes imports none of them
BUILT_IN: dict[str, tuple[str, str]] = {
    "diffusion": ("fewstep.core.recipes.diffusion", "Diffusion"),
    "sds": ("fewstep.core.recipes.sds", "SDS"),
    "vsd": ("fewstep.core.recipes.vsd", "VSD"),
    "diff-instruct": ("fewstep.core.recipes.diff_instruct", "DiffInstruct"),
    "dmd2": ("fewstep.core.recipes.dmd2", "DMD2"),
    "f-distill": ("fewstep.core.recipes.f_distill", "FDistill"),
    "sid": ("fewstep.core.recipes.sid", "SiD"),
    "sim": ("fewstep.core.recipes.sim", "SIM"),
    "uni-instruct": ("fewstep.core.recipes.uni_instruct", "UniInstruct"),
    "tdm": ("fewstep.core.recipes.tdm", "TDM"),
    "consistency": ("fewstep.core.recipes.consistency", "Consistency"),
    "tcd": ("fewstep.core.recipes.tcd", "TCD"),
    "scm": ("fewstep.core.recipes.scm", "SCM"),
    "progressive": ("fewstep.core.recipes.progressive", "Progressive"),
    "distillation-dpo": ("fewstep.core.recipes.distillation_dpo", "DistillationDPO"),
    "diffusion-dpo": ("fewstep.core.recipes.diffusion_dpo", "DiffusionDPO"),
    "ladd": ("fewstep.core.recipes.ladd", "LADD"),
    "accvideo": ("fewstep.core.recipes.accvideo", "AccVideo"),
}


def recipe_names() -> list[str]:
    """Return the names of all recipes, built in and installed (entry-point group ``fewstep.recipes``)."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group="fewstep.recipes"))})


def find_recipe(name: str) -> type[Recipe]:
    """Return a recipe class; UserError naming the nearest one when there is none of that name."""
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name]
        found: type[Recipe] = getattr(importlib.import_module(module), attribute)
        return found
    for point in entry_points(group="fewstep.recipes"):
        if point.name == name:
            loaded: type[Recipe] = point.load()
            return loaded
    raise UserError(f"no recipe '{name}': {nearest(name, recipe_names())}")
