"""Short runs of the toy domain, for the tests of the loop."""

from __future__ import annotations

import io
import os
from pathlib import Path

import torch
from core.toys import ToyDomain
from torch import Tensor

from fewstep.core.domain import Problem
from fewstep.core.recipe import Recipe
from fewstep.core.recipes import BUILT_IN, find_recipe
from fewstep.core.training.config import load_config
from fewstep.core.training.loop import Outcome, train
from fewstep.core.training.settings import RunConfig

BUILT_IN.setdefault("toy", ("core.toys", "ToyRecipe"))
# settings that let every part of a recipe act within six steps
PARTS = {
    "dmd2": ("recipe.fake_updates=2", "recipe.adversarial.weight=0.1", "recipe.regression_weight=0.5",
             "recipe.regression_steps=2", "recipe.student_steps=2", "train.sample_steps=[2]"),
    "f-distill": ("recipe.fake_updates=2",),
    "progressive": ("recipe.start_steps=4", "recipe.round_steps=1"),  # rounds end after steps 1 and 3
}  # fmt: skip
LORA = ("domain.dtype=float64", "domain.roles.mode=lora")
ZERO = ("train.micro_batch=2", "train.grad_clip=0.5")  # accumulation and clipping, both inside the engine
SMALL = ("train.steps=6", "train.batch=8", "optim.lr=1e-2", "train.log_every=2", "train.eval_samples=12")


def child_environment() -> dict[str, str]:
    """The environment of a child process that imports what this one imports, and the tests' own modules."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def config_of(*overrides: str, recipe: str = "toy") -> RunConfig:
    return load_config(None, [f"recipe.name={recipe}", *SMALL, *PARTS.get(recipe, ()), *overrides], domain=ToyDomain())


def build(config: RunConfig) -> tuple[Problem, Recipe]:
    method = find_recipe(config.recipe_name)
    problem = ToyDomain().build(config.domain, method.role_specs(config.recipe), config.seed, "cpu")
    return problem, method(config.recipe, problem.actors)


def go(config: RunConfig, folder: Path, *, resume: bool = False, problem=None, recipe=None) -> tuple[Outcome, str]:
    """Train; returns how it ended and what was printed."""
    if problem is None:
        problem, recipe = build(config)
    stream = io.StringIO()
    outcome = train(config, problem, recipe, folder, resume=resume, stream=stream)
    return outcome, stream.getvalue()


def newest(folder: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint."""
    from fewstep.core.training.checkpoint import checkpoints_in, read_checkpoint

    snapshot = read_checkpoint(checkpoints_in(folder / "checkpoints")[0][1])
    return {f"{file}/{name}": value for file, tensors in snapshot.tensors.items() for name, value in tensors.items()}


def differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not equal bit for bit."""
    assert a.keys() == b.keys()
    return [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]


__all__ = ["build", "child_environment", "config_of", "differences", "go", "newest"]
