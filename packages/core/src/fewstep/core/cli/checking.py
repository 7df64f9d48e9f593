"""`fewstep check`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from fewstep.core.check import format_results, run
from fewstep.core.domain import find_domain
from fewstep.core.errors import TrainingError
from fewstep.core.recipes import find_recipe
from fewstep.core.training.config import load_config


def check_recipe(args: Namespace) -> None:
    """Run the laws on a recipe, its settings and the process of its teacher; TrainingError when one fails."""
    recipe = find_recipe(args.recipe)
    # a file names its domain; a shipped config's name, and the defaults, are the image domain's
    domain = None if args.config and Path(args.config).is_file() else find_domain("image")
    config = load_config(args.config, [f"recipe.name={args.recipe}", *args.overrides], domain=domain)
    process = find_domain(config.domain_name).process(config.domain)
    results = run(recipe, config.recipe, process)
    print(format_results(results))
    failed = [result.name for result in results if not result.passed]
    if failed:
        raise TrainingError(f"check {args.recipe}: {len(failed)} of {len(results)} laws fail: {', '.join(failed)}")
