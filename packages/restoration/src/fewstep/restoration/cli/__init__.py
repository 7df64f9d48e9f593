"""The command `fewstep-restoration`: the same verbs as `fewstep restoration`."""

from __future__ import annotations

from fewstep.core.cli.main import domain_main


def main() -> int:
    """Run one command; returns the exit code."""
    return domain_main("restoration")
