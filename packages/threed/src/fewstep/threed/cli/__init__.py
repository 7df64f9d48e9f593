"""The command `fewstep-threed`: the same verbs as `fewstep threed`."""

from __future__ import annotations

from fewstep.core.cli.main import domain_main


def main() -> int:
    """Run one command; returns the exit code."""
    return domain_main("threed")
