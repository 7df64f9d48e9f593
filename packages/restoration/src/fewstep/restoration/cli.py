"""The command `fewstep-restoration`."""

from __future__ import annotations

import sys

from fewstep.restoration.domain import NO_RECIPES


def main() -> int:
    """Say that there is nothing to run yet; the exit status is 2, that of a mistake in use."""
    print(NO_RECIPES, file=sys.stderr)
    return 2
