"""The split of single things: nothing shared, nothing lost, and nothing held out whose parts were not seen."""

from __future__ import annotations

import pytest

from fewstep.core.errors import UserError
from fewstep.threed.shapes import all_prompts, split_prompts
from fewstep.threed.shapes.prompts import COLOURS, KINDS

SINGLE = tuple(prompt for prompt in all_prompts() if prompt.other is None)


@pytest.mark.parametrize("held_out", range(7))
def test_the_two_parts_are_the_single_things_and_share_none(held_out: int) -> None:
    train, held = split_prompts(held_out)
    assert len(held) == held_out
    assert set(train) | set(held) == set(SINGLE)
    assert not set(train) & set(held)


def test_held_out_are_all_colours_and_all_kinds_and_training_has_them_in_other_combinations() -> None:
    train, held = split_prompts()
    assert {p.thing.kind for p in held} == set(KINDS) == {p.thing.kind for p in train}
    assert {p.thing.colour for p in held} == set(COLOURS) == {p.thing.colour for p in train}
    assert len({p.thing.colour for p in held}) == len(held)


def test_more_than_there_are_colours_is_refused() -> None:
    with pytest.raises(UserError, match="7 prompts to hold out: from 0 to 6"):
        split_prompts(7)
