"""The command `fewstep-video`: the same verbs as `fewstep video`."""

from __future__ import annotations

from fewstep.core.cli.main import domain_main


def main() -> int:
    """Run one command; returns the exit code."""
    return domain_main("video")
