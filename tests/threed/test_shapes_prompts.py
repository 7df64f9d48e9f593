"""Prompts of solids: written and read back, refused with a line that helps; solids a function of (seed, index)."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.shapes import Prompt, Thing, all_prompts, build, draw, read
from fewstep.threed.shapes.primitives import PRIMITIVES
from fewstep.threed.shapes.prompts import COLOURS, KINDS
from fewstep.threed.shapes.solids import KNOB, SMALLEST


def test_every_prompt_is_read_back_and_no_two_are_alike():
    prompts = all_prompts()
    assert [read(str(prompt)) for prompt in prompts] == list(prompts)
    assert len({str(prompt) for prompt in prompts}) == len(prompts)
    singles, colours = len(KINDS) * len(COLOURS), len(COLOURS) * (len(COLOURS) - 1)
    flat = sum(primitive.flat for primitive in PRIMITIVES.values())
    assert len(prompts) == singles + colours * len(KINDS) * (2 * len(KINDS) + flat)
    assert read("a red cone on a blue box") == Prompt(Thing("red", "cone"), "on", Thing("blue", "box"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red",
        "red cone",
        "a pink cone",
        "a red cone ",
        "a red cone on",
        "a red cone under a blue box",
        "a red cone on a blue box\n",
        "a red cone on a red box",
        "a red box on a blue cone",
        "a red cone on a blue box on a green box",
        "a red cone" * 10_000,
    ],
)
def test_other_text_is_refused_in_one_short_line(text):
    with pytest.raises(UserError) as error:
        read(text)
    assert "\n" not in str(error.value).replace(text[-1:] if text.endswith("\n") else "\0", "")
    assert len(str(error.value)) < 250


def test_a_prompt_cannot_say_half_a_relation():
    with pytest.raises(UserError, match="second"):
        Prompt(Thing("red", "cone"), "on")
    with pytest.raises(UserError, match="relation"):
        Prompt(Thing("red", "cone"), "under", Thing("blue", "box"))


def test_a_solid_is_a_function_of_seed_and_index():
    assert [draw(3, i) for i in range(20)] == [draw(3, i) for i in range(20)]
    assert draw(3, 0) != draw(4, 0)
    solids = [draw(0, i) for i in range(300)]
    assert len({str(solid.prompt) for solid in solids}) > 200
    assert {solid.prompt.relation for solid in solids} >= {"on", "beside", "in front of"}
    ratios = torch.tensor([part.sizes[0] / PRIMITIVES[part.kind].sizes[0] for s in solids for part in s.parts[:-1]])
    assert SMALLEST <= ratios.min() < SMALLEST + 0.02
    assert 0.98 < ratios.max() <= 1


def test_relations_place_the_first_thing():
    def centres(relation):
        solid = build(Prompt(Thing("red", "box"), relation, Thing("blue", "cylinder")))
        return torch.tensor([part.centre for part in solid.parts], dtype=torch.float64)

    on, beside, front = (centres(relation) for relation in ("on", "beside", "in front of"))
    assert on[0, 1] - on[1, 1] == pytest.approx(0.3 + 0.36 - 0.04)
    assert beside[0, 0] - beside[1, 0] == pytest.approx(0.42 + 0.34 - 0.04)
    assert front[0, 2] - front[1, 2] == pytest.approx(0.34 + 0.34 - 0.04)
    for placed in (beside, front):
        assert placed[0, 1] - 0.3 == pytest.approx(float(placed[1, 1]) - 0.36)  # on the same floor


def test_the_knob_sits_on_the_front_of_the_first_thing():
    for prompt in all_prompts()[::7]:
        solid = build(prompt)
        knob = torch.tensor([solid.parts[-1].centre], dtype=torch.float64)
        assert_close(solid.parts[0].distance(knob), torch.zeros(1, dtype=torch.float64), atol=1e-12, rtol=0)
        assert solid.parts[-1].sizes == (KNOB,)
