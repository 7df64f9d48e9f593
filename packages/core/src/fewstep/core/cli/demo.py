"""`fewstep demo`."""

from __future__ import annotations

from argparse import Namespace

from fewstep.core.cli.main import domain_verbs
from fewstep.core.domain import find_domain
from fewstep.core.errors import UserError


def run_demo(args: Namespace) -> None:
    """Run a domain's demo; UserError for a domain without one."""
    domain = find_domain(args.name)
    verbs = domain_verbs(domain.name)
    if "demo" not in verbs:
        raise UserError(f"domain '{domain.name}' has no demo; `fewstep demo image` has one")
    verbs["demo"].run(args)
