"""The command `fewstep-lidar`: the same verbs as `fewstep lidar`."""

from __future__ import annotations

from fewstep.core.cli.main import domain_main


def main() -> int:
    """Run one command; returns the exit code."""
    return domain_main("lidar")
