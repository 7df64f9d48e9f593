"""A command a domain adds to the command line. Light on purpose: listing commands loads no library.

Domains name theirs in the entry-point group ``fewstep.verbs``: a mapping from names to :class:`Verb`, whose ``run``
imports what it needs when it is called. A verb called ``demo`` is what ``fewstep demo DOMAIN`` runs.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """``summary``: one line of help; ``arguments``: adds options to a parser; ``run``: does it, raising UserError."""

    summary: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]
