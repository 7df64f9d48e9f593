"""Prompts of a small grammar, written and read: ``a red cone on a blue box``, or ``a green torus`` alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product

from fewstep.core.errors import UserError, check
from fewstep.threed.shapes.primitives import PRIMITIVES

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.9, 0.15, 0.1),
    "yellow": (0.95, 0.8, 0.1),
    "green": (0.15, 0.7, 0.2),
    "cyan": (0.1, 0.75, 0.8),
    "blue": (0.15, 0.25, 0.9),
    "purple": (0.6, 0.2, 0.75),
}
KINDS = tuple(PRIMITIVES)
RELATIONS = ("on", "beside", "in front of")
"""Where the first thing is: above the second, at its +x side (right as seen from the front), at its +z side."""


@dataclass(frozen=True)
class Thing:
    """A primitive with a colour."""

    colour: str
    kind: str

    def __post_init__(self) -> None:
        """Raise UserError for words the world does not have."""
        check(self.colour in COLOURS, f"colour '{self.colour}' is not one of {', '.join(COLOURS)}")
        check(self.kind in KINDS, f"solid '{self.kind}' is not one of {', '.join(KINDS)}")

    def __str__(self) -> str:
        """Return the thing's part of a prompt."""
        return f"a {self.colour} {self.kind}"


@dataclass(frozen=True)
class Prompt:
    """What a prompt says: one thing, or where it is relative to a second one of another colour."""

    thing: Thing
    relation: str = ""
    other: Thing | None = None

    def __post_init__(self) -> None:
        """Raise UserError for relations the world does not have."""
        if self.other is None:
            check(not self.relation, f"'{self.thing} {self.relation}' lacks a second thing")
            return
        check(self.relation in RELATIONS, f"relation '{self.relation}' is not one of {', '.join(RELATIONS)}")
        check(self.thing.colour != self.other.colour, f"'{self}': the two things must differ in colour")
        flat = PRIMITIVES[self.other.kind].flat
        check(self.relation != "on" or flat, f"'{self}': nothing stands on a {self.other.kind}; use a box or cylinder")

    def __str__(self) -> str:
        """Return the prompt."""
        return f"{self.thing} {self.relation} {self.other}" if self.other else str(self.thing)


def _any(words: tuple[str, ...]) -> str:
    return "|".join(words)


THING = rf"a ({_any(tuple(COLOURS))}) ({_any(KINDS)})"
PROMPT = re.compile(rf"{THING}(?: ({_any(RELATIONS)}) {THING})?")


def read(text: str) -> Prompt:
    """Return what a prompt says, the inverse of ``str``; UserError for text that is not of the grammar."""
    found = PROMPT.fullmatch(text)
    if found is None:
        raise UserError(f"'{text[:80]}' is no prompt of the world of solids; write it like 'a red cone on a blue box'")
    colour, kind, relation, other_colour, other_kind = found.groups(default="")
    return Prompt(Thing(colour, kind), relation, Thing(other_colour, other_kind) if relation else None)


VOCABULARY = tuple(dict.fromkeys(word for text in ("a", *COLOURS, *KINDS, *RELATIONS) for word in text.split()))
"""The words of the grammar, each once."""


def all_prompts() -> tuple[Prompt, ...]:
    """Return every prompt of the grammar, single things first, always in the same order."""
    things = [Thing(colour, kind) for kind, colour in product(KINDS, COLOURS)]
    pairs = [
        Prompt(a, relation, b)
        for relation, a, b in product(RELATIONS, things, things)
        if a.colour != b.colour and (relation != "on" or PRIMITIVES[b.kind].flat)
    ]
    return (*(Prompt(thing) for thing in things), *pairs)
