"""Coloured solids as unions of primitives, as a function of a prompt, or of (seed, index).

A solid lies in the unit ball about the origin, y up, its front towards +z. The first thing of a prompt has a dark knob
at its front, so that no two views of any solid around the upright axis are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.rng import Rng
from fewstep.threed.shapes.primitives import PRIMITIVES, Sizes
from fewstep.threed.shapes.prompts import COLOURS, Prompt, Thing, all_prompts

KNOB = 0.09  # radius of the knob
DARK = (0.08, 0.08, 0.1)  # its colour
SINK = 0.04  # how deep things that touch go into each other
ASIDE = 0.1  # how far what stands on something is off its middle, towards +x
SMALLEST = 0.75  # of a primitive's largest size

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """One primitive of a solid, moved to ``centre``; ``colour`` is its albedo."""

    kind: str
    sizes: Sizes
    centre: Vector
    colour: Vector

    @property
    def extent(self) -> Vector:
        """Half its bounding box."""
        return PRIMITIVES[self.kind].extent(self.sizes)

    def distance(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Return the signed distance of points from this part alone."""
        return PRIMITIVES[self.kind].distance(points - points.new_tensor(self.centre), self.sizes)


@dataclass(frozen=True)
class Solid:
    """The union of ``parts``, and the prompt that tells of it."""

    prompt: Prompt
    parts: tuple[Part, ...]

    def distance(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Return the signed distance: exact outside; inside at most the distance in size, with the right sign."""
        return self._distances(points).amin(1)

    def albedo(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Return the colour in [0, 1] of the part each point is nearest to."""
        return points.new_tensor([part.colour for part in self.parts])[self._distances(points).argmin(1)]

    def normal(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Return the outward unit normal: the gradient of the distance, which is 0 only in the middle of a part."""
        with torch.enable_grad():
            at = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.distance(at).sum(), at)
        return gradient

    def _distances(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n parts"]:
        return torch.stack([part.distance(points) for part in self.parts], 1)


def build(prompt: Prompt, scales: tuple[float, float] = (1.0, 1.0)) -> Solid:
    """Return the solid of a prompt; ``scales``: the sizes of its first and second thing, 1 the largest."""
    first = _part(prompt.thing, scales[0])
    parts = [first]
    if prompt.other is not None:
        second = _part(prompt.other, scales[1])
        parts = [_moved(first, _offset(prompt.relation, first.extent, second.extent)), second]
    x, y, z = parts[0].centre
    front = PRIMITIVES[first.kind].front(first.sizes)
    parts.append(Part("sphere", (KNOB,), (x, y, z + front), DARK))
    return Solid(prompt, _centred(parts))


def draw(seed: int, index: int) -> Solid:
    """Return the solid number ``index`` of the world of ``seed``: prompt and sizes are a function of the two alone."""
    prompts = _prompts()
    rng = Rng(seed, 0, (index,), "solids")
    first, second = (SMALLEST + (1 - SMALLEST) * rng.uniform("scale", (2,))[0]).tolist()
    return build(prompts[int(rng.integers("prompt", len(prompts)))], (first, second))


@cache
def _prompts() -> tuple[Prompt, ...]:
    return all_prompts()


def _part(thing: Thing, scale: float) -> Part:
    sizes = tuple(scale * size for size in PRIMITIVES[thing.kind].sizes)
    return Part(thing.kind, sizes, (0.0, 0.0, 0.0), COLOURS[thing.colour])


def _offset(relation: str, first: Vector, second: Vector) -> Vector:
    """Return where the first part's centre is when the second's is the origin; side by side their bottoms are level."""
    if relation == "on":
        return (ASIDE, first[1] + second[1] - SINK, 0.0)
    level = first[1] - second[1]
    if relation == "beside":
        return (first[0] + second[0] - SINK, level, 0.0)
    return (0.0, level, first[2] + second[2] - SINK)


def _moved(part: Part, by: Vector) -> Part:
    x, y, z = part.centre
    return Part(part.kind, part.sizes, (x + by[0], y + by[1], z + by[2]), part.colour)


def _centred(parts: list[Part]) -> tuple[Part, ...]:
    """Return the parts with the middle of their common bounding box at the origin."""
    middle = []
    for axis in range(3):
        ends = [part.centre[axis] + sign * part.extent[axis] for part in parts for sign in (-1, 1)]
        middle.append(-(min(ends) + max(ends)) / 2)
    return tuple(_moved(part, (middle[0], middle[1], middle[2])) for part in parts)
