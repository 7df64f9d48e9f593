"""What is in each clip, as a function of (seed, index), and where it is at each frame, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewstep.core.rng import Rng
from fewstep.video.world.config import (
    COLOURS,
    CONTENT,
    DIGITS,
    DIRECTIONS,
    GROUNDS,
    PACES,
    SHAPES,
    TEXTURES,
    WorldConfig,
)
from fewstep.video.world.textures import WAVES

CANDIDATES = 8  # starts that are tried for a clip; the one that keeps objects furthest apart is taken


@dataclass(frozen=True)
class Scenes:
    """Clips as numbers, on the CPU; slots from ``count`` on are empty.

    ``name``, ``colour``, ``direction``, ``pace``: places in the lists of words of :mod:`.config`. ``variant``: in
    [0, 1), which of a digit's drawings. ``radius``: pixels. ``start``: (x, y) at the first frame, pixels from the top
    left corner; a texture's is 0. ``velocity``: (x, y) there, pixels a frame, y downward. ``ground``: place in
    GROUNDS. ``waves``: in [0, 1), what a texture is made of.
    """

    count: Int[Tensor, " b"]
    texture: Bool[Tensor, " b"]
    name: Int[Tensor, "b n"]
    colour: Int[Tensor, "b n"]
    variant: Float[Tensor, "b n"]
    radius: Float[Tensor, "b n"]
    direction: Int[Tensor, "b n"]
    pace: Int[Tensor, "b n"]
    start: Float[Tensor, "b n 2"]
    velocity: Float[Tensor, "b n 2"]
    ground: Int[Tensor, " b"]
    waves: Float[Tensor, "b k"]

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.count)

    def select(self, rows: slice | Tensor) -> Scenes:
        """Return some of the clips."""
        return Scenes(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Motion:
    """Where things are: ``position`` (x, y) in pixels from the top left corner, ``velocity`` in pixels a frame.

    A texture's position is how far it has drifted, within the picture's size. At a bounce ``velocity`` is the one
    after it. ``present``: which slots hold something.
    """

    position: Float[Tensor, "b n f 2"]
    velocity: Float[Tensor, "b n f 2"]
    present: Bool[Tensor, "b n"]

    @property
    def speed(self) -> Float[Tensor, "b n f"]:
        """Pixels a frame."""
        speed: Tensor = torch.linalg.vector_norm(self.velocity, dim=-1)
        return speed

    @property
    def direction(self) -> Float[Tensor, "b n f"]:
        """Radians counter-clockwise as seen, 0 to the right."""
        return torch.atan2(-self.velocity[..., 1], self.velocity[..., 0])


def draw_scenes(config: WorldConfig, seed: int, indices: Sequence[int]) -> Scenes:
    """Return the scenes of some indices; each is a function of the config, the seed and its index alone."""
    n, rng = config.objects, Rng(seed, 0, tuple(indices), "world")
    one, each = rng.uniform("clip", (3,)), rng.uniform("object", (6, n))
    content = _pick(one[:, 0], len(config.content))
    kinds = torch.tensor([CONTENT.index(name) for name in config.content])[content]
    texture = kinds == 2
    first = torch.tensor([0, len(SHAPES), len(SHAPES) + len(DIGITS)])[kinds][:, None]
    many = torch.tensor([len(SHAPES), len(DIGITS), len(TEXTURES)])[kinds][:, None]
    direction = _pick(each[:, 0], len(DIRECTIONS))
    pace = _pick(each[:, 1], len(PACES))
    slow, fast = (torch.tensor(each, dtype=torch.float64) * config.unit for each in (config.slow, config.fast))
    least, most = (torch.stack((slow[i], fast[i]))[pace] for i in (0, 1))
    speed = least + (most - least) * each[:, 2]
    angle = direction * (math.tau / len(DIRECTIONS)) + math.radians(config.jitter) * (2 * each[:, 3] - 1)
    scenes = Scenes(
        count=torch.where(texture, 1, 1 + _pick(one[:, 1], n)),
        texture=texture,
        name=first + (each[:, 4] * many).long(),
        colour=rng.uniform("colour", (len(COLOURS),)).argsort(1)[:, :n],  # all different
        variant=rng.uniform("variant", (n,)),
        radius=config.side * (config.radius[0] + (config.radius[1] - config.radius[0]) * each[:, 5]),
        direction=direction,
        pace=pace,
        start=torch.zeros(len(kinds), n, 2, dtype=torch.float64),
        velocity=torch.stack((angle.cos(), -angle.sin()), -1) * speed[..., None],
        ground=_pick(one[:, 2], len(GROUNDS)),
        waves=rng.uniform("waves", (2 * WAVES * WAVES if "textures" in config.content else 0,)),
    )
    return replace(scenes, start=_starts(config, scenes, rng.uniform("start", (CANDIDATES, n, 2))))


def trace(config: WorldConfig, scenes: Scenes) -> Motion:
    """Return where everything is at every frame: straight lines, folded at the walls or wrapped."""
    return _motion(config, scenes, scenes.start)


def _motion(config: WorldConfig, scenes: Scenes, start: Tensor) -> Motion:
    size = torch.tensor([config.width, config.height], dtype=torch.float64)
    time = torch.arange(config.frames, dtype=torch.float64)[:, None]
    straight = start[..., None, :] + time * scenes.velocity[..., None, :]
    velocity = scenes.velocity[..., None, :].expand_as(straight)
    position = straight.remainder(size)
    if config.edges == "bounce":
        wall = scenes.radius[..., None, None]
        room = size - 2 * wall
        along = (straight - wall).remainder(2 * room)
        back = along >= room
        still = scenes.texture[:, None, None, None]
        position = torch.where(still, position, wall + torch.where(back, 2 * room - along, along))
        velocity = torch.where(still | ~back, velocity, -velocity)
    present = torch.arange(start.shape[1]) < scenes.count[:, None]
    return Motion(position, velocity.contiguous(), present)


def _starts(config: WorldConfig, scenes: Scenes, u: Float[Tensor, "b k n 2"]) -> Float[Tensor, "b n 2"]:
    """Return the one of the candidates ``u`` whose objects come least close to each other.

    Where things bounce they do so in the second half of a clip only, if there is room, so that captions hold.
    """
    size = torch.tensor([config.width, config.height], dtype=torch.float64)
    if config.edges == "wrap":
        starts = u * size
    else:
        wall, free = scenes.radius[..., None], scenes.velocity * (config.frames // 2)
        low, high = wall - free.clamp_max(0), size - wall - free.clamp_min(0)
        middle = ((low + high) / 2).clamp(wall, size - wall)
        low, high = torch.where(low < high, low, middle), torch.where(low < high, high, middle)
        starts = low[:, None] + (high - low)[:, None] * u
    if config.objects > 1:
        gaps = torch.stack([_gap(config, scenes, starts[:, k]) for k in range(u.shape[1])], 1)
        best = gaps.argmax(1)
    else:
        best = torch.zeros(len(u), dtype=torch.long)
    chosen = starts[torch.arange(len(u)), best]
    return torch.where(scenes.texture[:, None, None], 0.0, chosen)


def _gap(config: WorldConfig, scenes: Scenes, start: Float[Tensor, "b n 2"]) -> Float[Tensor, " b"]:
    """Return the least distance between borders of two objects over a clip, in pixels; negative when they meet."""
    motion = _motion(config, scenes, start)
    apart = motion.position[:, :, None] - motion.position[:, None]
    if config.edges == "wrap":
        size = torch.tensor([config.width, config.height], dtype=torch.float64)
        apart = (apart + size / 2).remainder(size) - size / 2
    gap: Tensor = torch.linalg.vector_norm(apart, dim=-1).amin(-1) - scenes.radius[:, :, None] - scenes.radius[:, None]
    pairs = motion.present[:, :, None] & motion.present[:, None] & ~torch.eye(start.shape[1], dtype=torch.bool)
    return gap.masked_fill(~pairs, math.inf).amin((1, 2))


def _pick(u: Tensor, many: int) -> Tensor:
    return (u * many).long().clamp_max(many - 1)
