"""The single things of the world in two parts: what students are trained on, and combinations they never see."""

from __future__ import annotations

from fewstep.core.errors import check
from fewstep.threed.shapes.prompts import COLOURS, KINDS, Prompt, Thing


def split_prompts(held_out: int = 6) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Return the prompts of single things as (training, held out), each in the order of the grammar.

    Held out are the first ``held_out`` colours, each with one kind, the kinds taken in turn: training has every kind
    and every colour, in other combinations. Raises UserError for more than there are colours.
    """
    colours = tuple(COLOURS)
    check(0 <= held_out <= len(colours), f"{held_out} prompts to hold out: from 0 to {len(colours)}, one of a colour")
    # two kinds at a time: neighbours in both lists would hold out the grammar's first prompt
    held = {Thing(colour, KINDS[(2 * i + 1) % len(KINDS)]) for i, colour in enumerate(colours[:held_out])}
    things = [Thing(colour, kind) for kind in KINDS for colour in colours]
    train = tuple(Prompt(thing) for thing in things if thing not in held)
    return train, tuple(Prompt(thing) for thing in things if thing in held)
