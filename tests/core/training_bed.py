"""What the tests of training on pipelines share: every family's problem, with prompts and random latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from core.model_bed import PROMPTS, teacher
from torch import Tensor

from fewstep.core.data.problem import pipeline_problem
from fewstep.core.data.shown import Shown
from fewstep.core.data.source import EncodedTexts, TextSource
from fewstep.core.domain import Problem
from fewstep.core.image.domain import DOMAIN
from fewstep.core.models.loading import Teacher
from fewstep.core.recipe import Recipe
from fewstep.core.recipes import find_recipe
from fewstep.core.rng import Rng
from fewstep.core.training.config import load_config
from fewstep.core.training.settings import RunConfig

# whose shipped settings a family is trained under: its own, or those of an image family of its kind
SETTINGS = {
    "sd": "sd15",
    "wan": "sd3",
    "ltx": "sd3",
    "hunyuan-video": "flux",
    "cogvideox": "sd15",
    "modelscope": "sd15",
    "animatediff": "sd15",
}
RECIPES = {"sana": ("dmd2", "tdm", "consistency", "scm")}


def recipes_of(name: str) -> tuple[str, ...]:
    """The recipes a family ships settings for."""
    return RECIPES.get(name, ("dmd2", "tdm", "consistency", "ladd"))


class RandomLatents:
    """Latents that say nothing; a function of the sample alone."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def latents(self, samples: Sequence[int], rng: Rng) -> tuple[list[int], Tensor]:
        """Return the latents of samples."""
        made = [torch.randn(self.shape, generator=torch.Generator().manual_seed(sample)) for sample in samples]
        return list(samples), torch.stack(made)


def config_of(name: str, recipe: str, *overrides: str) -> RunConfig:
    """The settings a family's tiny teacher is trained under, with averages."""
    small = ("optim.lr=1e-2", "optim.weight_decay=0", "train.ema.kind=constant", "train.ema.decay=0.5")
    given = [f"domain.teacher=tiny:{name}", *small, *overrides]
    return load_config(f"{recipe}-{SETTINGS.get(name, name)}-tiny", given, domain=DOMAIN)


def problem_of(name: str, config: RunConfig) -> tuple[Problem, Recipe]:
    """A fresh problem, and its recipe: prompts alone where that is enough, or random latents."""
    found: Teacher = teacher(name)
    encoded = found.encode(PROMPTS)
    texts = EncodedTexts(PROMPTS, [0, 1], encoded.cond, encoded.null)
    kind = find_recipe(config.recipe_name)
    adversarial = getattr(config.recipe, "adversarial", None)
    with_fakes = config.recipe_name == "tdm" or (config.recipe_name == "dmd2" and adversarial.weight == 0)
    problem = pipeline_problem(
        found,
        config.domain.model,
        config.domain.roles,
        kind.role_specs(config.recipe),
        TextSource(texts, None if with_fakes else RandomLatents(found.shape)),
        encoded.null,
        Shown(PROMPTS, encoded.cond),
        evaluate=lambda samples, cond: {"contrast": float(samples.std())},
        render=lambda rows, stem: stem.with_suffix(".png"),
        seed=config.seed,
        device="cpu",
    )
    return problem, kind(config.recipe, problem.actors)
