"""`fewstep check`."""

from __future__ import annotations

from argparse import Namespace

from fewstep.core.check import format_results, run
from fewstep.core.errors import TrainingError
from fewstep.core.recipes import find_recipe
from fewstep.core.training.config import load_config


def check_recipe(args: Namespace) -> None:
    """Run the laws on a recipe and its settings; TrainingError when one fails."""
    recipe = find_recipe(args.recipe)
    named = [f"recipe.name={args.recipe}", *args.overrides]
    config = load_config(args.config, named if args.config else [*named, "domain.name=image"])
    results = run(recipe, config.recipe)
    print(format_results(results))
    failed = [result.name for result in results if not result.passed]
    if failed:
        raise TrainingError(f"check {args.recipe}: {len(failed)} of {len(results)} laws fail: {', '.join(failed)}")
