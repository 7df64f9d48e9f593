"""Captions of a small grammar, written and read.

``a red disc moves up left slowly and a blue 7 moves right fast, on black``; of an image, whose motion cannot be seen,
``a red disc and a blue 7, on black``; textures are plural, ``green clouds move down fast, on white``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fewstep.core.errors import UserError
from fewstep.video.world.config import COLOURS, DIRECTIONS, GROUNDS, NAMES, PACES, TEXTURES
from fewstep.video.world.scenes import Scenes


@dataclass(frozen=True)
class Thing:
    """What a caption says of one thing; ``direction`` and ``pace`` are empty where motion is not told."""

    colour: str
    name: str
    direction: str = ""
    pace: str = ""

    @property
    def texture(self) -> bool:
        """Whether it fills the picture."""
        return self.name in TEXTURES

    def __str__(self) -> str:
        """Return the thing's part of a caption."""
        said = f"{self.colour} {self.name}" if self.texture else f"a {self.colour} {self.name}"
        verb = "move" if self.texture else "moves"
        return f"{said} {verb} {self.direction} {self.pace}" if self.direction else said


@dataclass(frozen=True)
class Caption:
    """What a caption says."""

    things: tuple[Thing, ...]
    ground: str

    def __str__(self) -> str:
        """Return the caption."""
        said = [str(thing) for thing in self.things]
        listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
        return f"{listed}, on {self.ground}"


def _any(words: tuple[str, ...]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # "up left" before "up"


THING = re.compile(
    rf"(?:a )?(?P<colour>{_any(COLOURS)}) (?P<name>{_any(NAMES)})"
    rf"(?: moves? (?P<direction>{_any(DIRECTIONS)}) (?P<pace>{_any(PACES)}))?"
)


def describe(scenes: Scenes, motion: bool = True) -> list[Caption]:
    """Return what captions say of scenes, without ``motion`` what one frame shows."""
    rows = zip(
        scenes.count.tolist(),
        scenes.colour.tolist(),
        scenes.name.tolist(),
        scenes.direction.tolist(),
        scenes.pace.tolist(),
        scenes.ground.tolist(),
        strict=True,
    )
    captions = []
    for count, colours, names, directions, paces, ground in rows:
        things = tuple(
            Thing(COLOURS[c], NAMES[name], DIRECTIONS[d] if motion else "", PACES[p] if motion else "")
            for c, name, d, p in zip(colours[:count], names[:count], directions[:count], paces[:count], strict=True)
        )
        captions.append(Caption(things, GROUNDS[ground]))
    return captions


def read(text: str) -> Caption:
    """Return what a caption says; UserError for text that is not of the grammar."""
    listed, _, ground = text.rpartition(", on ")
    things = tuple(Thing(**found.groupdict(default="")) for found in THING.finditer(listed))
    caption = Caption(things, ground) if things and ground in GROUNDS else None
    if caption is None or str(caption) != text:
        example = Caption((Thing(COLOURS[0], NAMES[0], DIRECTIONS[0], PACES[0]),), GROUNDS[0])
        raise UserError(f"'{text[:80]}' is no caption of the drawn world; write it like '{example}'")
    return caption
