"""The world drawn: scenes and where everything is in, frames out."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.video.world.config import DIGITS, HIGH, NAMES, SHAPES, Quality, WorldConfig
from fewstep.video.world.scenes import Motion, Scenes, trace
from fewstep.video.world.shapes import COVERAGE, digit, drawings
from fewstep.video.world.textures import cover

DARK, BRIGHT = 0.05, 0.95
# red, yellow, green, cyan, blue, purple; black and white
PALETTE = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))
GRAYS = (DARK, BRIGHT)
CHUNK = 2**19  # pixels drawn at a time: enough to hide the cost of a call, few enough to stay in a cache


def render(config: WorldConfig, scenes: Scenes, quality: Quality = HIGH) -> Float[Tensor, "b f 3 h w"]:
    """Return the clips of scenes as float32 in [0, 1], a filmed version of the same world for each quality."""
    frames = torch.empty(len(scenes), config.frames, 3, config.height, config.width)
    many = max(1, CHUNK // (config.frames * config.height * config.width))
    for at in range(0, len(scenes), many):
        part = scenes.select(slice(at, at + many))
        frames[at : at + many] = film(draw(config, part, trace(config, part)), quality, wrap=config.edges == "wrap")
    return frames


def draw(config: WorldConfig, scenes: Scenes, motion: Motion) -> Float[Tensor, "b f 3 h w"]:
    """Return crisp frames in [0, 1]; later slots cover earlier ones."""
    colours = torch.tensor(PALETTE) * (BRIGHT - DARK) + DARK
    canvas = torch.tensor(GRAYS)[scenes.ground].view(-1, 1, 1, 1, 1)
    canvas = canvas.repeat(1, config.frames, 3, config.height, config.width)
    for slot in range(motion.present.shape[1]):
        share = _shares(config, scenes, motion, slot)
        canvas.lerp_(colours[scenes.colour[:, slot], None, :, None, None], share[:, :, None])
    return canvas


def film(frames: Float[Tensor, "*b 3 h w"], quality: Quality, wrap: bool = False) -> Float[Tensor, "*b 3 h w"]:
    """Return frames in [0, 1] blurred, hazy and pale; ``wrap``: the blur goes around the edges, else it mirrors."""
    if quality.blur > 0:
        height, width = frames.shape[-2:]
        sigma = quality.blur * min(height, width) / 32
        frames = (frames @ blur_matrix(width, sigma, wrap).T).mT @ blur_matrix(height, sigma, wrap).T
        frames = frames.mT
    keep = quality.contrast * quality.saturation
    if keep < 1:
        gray = frames.mean(-3, keepdim=True)
        frames = torch.add((1 - quality.contrast) * quality.haze + (quality.contrast - keep) * gray, frames, alpha=keep)
    return frames


def blur_matrix(size: int, sigma: float, wrap: bool) -> Float[Tensor, "n n"]:
    """Return the matrix that blurs ``size`` samples by a Gaussian; rows sum to one, and columns too."""
    reach = math.ceil(4 * sigma)
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weight = torch.exp(-0.5 * (offset / sigma) ** 2)
    at = torch.arange(size)[:, None] + offset.long()
    if wrap:
        at = at.remainder(size)
    else:
        at = at.remainder(2 * size)
        at = torch.where(at < size, at, 2 * size - 1 - at)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, at, (weight / weight.sum()).expand(size, -1)).float()


def _shares(config: WorldConfig, scenes: Scenes, motion: Motion, slot: int) -> Float[Tensor, "b f h w"]:
    """Return the share of each pixel that the thing in a slot covers."""
    share = torch.zeros(len(scenes), config.frames, config.height, config.width)
    names = scenes.name[:, slot].masked_fill(~motion.present[:, slot], -1)
    textures = scenes.texture & (names >= 0)
    if textures.any():
        kind = scenes.name[textures, slot] - len(SHAPES) - len(DIGITS)
        waves, offset = scenes.waves[textures], motion.position[textures, slot]
        share[textures] = cover(waves, kind, offset, config.height, config.width)
    for name in sorted(set(names[~textures].tolist())):
        if name < 0:
            continue
        rows = names == name
        x, y = _distances(config, motion.position[rows, slot])
        radius = scenes.radius[rows, slot].float().view(-1, 1, 1, 1)
        if NAMES[name] in COVERAGE:
            share[rows] = COVERAGE[NAMES[name]](x, y, radius)
        else:
            images, shown = drawings()
            those = torch.tensor(shown[name - len(SHAPES)])
            which = those[(scenes.variant[rows, slot] * len(those)).long()]
            share[rows] = digit(x, y, radius, images[which, None])
    return share


def _distances(config: WorldConfig, position: Float[Tensor, "b f 2"]) -> tuple[Tensor, Tensor]:
    """Return distances of pixel centres from positions, x "b f 1 w" and y "b f h 1", the shortest where edges wrap."""
    x = torch.arange(config.width) + 0.5 - position[..., None, :1]
    y = torch.arange(config.height)[:, None] + 0.5 - position[..., None, 1:]
    if config.edges == "wrap":
        x = (x + config.width / 2).remainder(config.width) - config.width / 2
        y = (y + config.height / 2).remainder(config.height) - config.height / 2
    return x.float(), y.float()
