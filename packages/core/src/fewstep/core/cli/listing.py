"""`fewstep list`."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Sequence

from fewstep.core.domain import domain_names, find_domain
from fewstep.core.recipes import find_recipe, recipe_names
from fewstep.core.report.tables import table
from fewstep.core.training.config import config_names

TWIN = "-tiny"  # the same on a random network, in seconds


def show_list(args: Namespace) -> None:
    """Print recipes with their papers, and domains with their configs."""
    recipes = [find_recipe(name) for name in recipe_names()]
    print("recipes\n")
    print(table([{"name": r.name, "paper": f"arXiv {r.paper}", "what it does": r.summary} for r in recipes]))
    print("\ndomains\n")
    found = [find_domain(name) for name in domain_names()]
    print(table([{"name": d.name, "what is there": d.summary} for d in found]))
    for domain in found:
        names = config_names(domain)
        if names:
            print(f"\nconfigs of {domain.name} (fewstep {domain.name} train --config NAME)\n")
            print(
                "\n".join(
                    textwrap.wrap("  ".join(_with_twins(names)), 110, initial_indent="  ", subsequent_indent="  ")
                )
            )


def _with_twins(names: Sequence[str]) -> list[str]:
    """Return names, a config and its ``-tiny`` twin as one."""
    there = set(names)
    shown = [name for name in names if not (name.endswith(TWIN) and name.removesuffix(TWIN) in there)]
    return [f"{name}[{TWIN}]" if name + TWIN in there else name for name in shown]
