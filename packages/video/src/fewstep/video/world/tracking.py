"""Motion measured from frames alone, drawn or generated: centroids of colours, and phase correlation of textures.

Both look at what haze, paleness and blur leave as it is, hues and the phases of low frequencies, so that the crisp and
the blurred version of a clip measure alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.video.world.captions import read
from fewstep.video.world.config import COLOURS
from fewstep.video.world.scenes import Motion

FLOOR = 0.25  # share of a clip's strongest colour below which a pixel is no thing's: noise and casts
WINDOW = 0.15  # standard deviation of the window around a centroid, as a share of the shorter side
ROUNDS = 3  # of moving the window onto the centroid
LEAST = 0.004  # share of the picture a colour covers at least for a thing to be there
WHITENING = 1e-2  # spectral power, over the largest, below which phases count for less
BAND = 0.25  # cycles a pixel up to which phases count


@dataclass(frozen=True)
class Tracks:
    """Centroids of the colours: ``position`` (x, y) in pixels from the top left corner, in the order of COLOURS.

    ``area``: share of the picture a colour covers, in units of the clip's strongest colour.
    """

    position: Float[Tensor, "b k f 2"]
    area: Float[Tensor, "b k f"]


@dataclass(frozen=True)
class Measured:
    """Displacements (x, y) between frames in pixels, y downward, of each thing; ``found``: where it was seen."""

    displacement: Float[Tensor, "b n g 2"]
    found: Bool[Tensor, "b n g"]


def track(clips: Float[Tensor, "b f 3 h w"], wrap: bool = False) -> Tracks:
    """Return the centroid of each colour of the palette at each frame of clips in [0, 1].

    ``wrap``: things leave on one side and come in on the other. Where a colour is missing, its position means nothing.
    """
    parts = [_centroids(clip, wrap) for clip in clips.float()]
    position, area = (torch.stack(each) for each in zip(*parts, strict=True))
    return Tracks(position, area)


def drift(clips: Float[Tensor, "b f 3 h w"]) -> Float[Tensor, "b g 2"]:
    """Return by how much (x, y) the whole picture shifts from frame to frame, around the edges, in pixels.

    Whole pixels by phase correlation, the rest by a plane fitted to the phases of low frequencies.
    """
    height, width = clips.shape[-2:]
    spectrum = torch.fft.fft2(clips.double() - clips.double().mean((-2, -1), keepdim=True))
    cross = (spectrum[:, :-1].conj() * spectrum[:, 1:]).sum(2)
    power = cross.abs()
    white = cross / (power + WHITENING * power.amax((-2, -1), keepdim=True)).clamp_min(1e-30)
    peak = torch.fft.ifft2(white).real.flatten(-2).argmax(-1)
    shift = torch.stack((_signed(peak % width, width), _signed(peak // width, height)), -1).double()
    across = torch.fft.fftfreq(width, dtype=torch.float64).expand(height, -1)
    down = torch.fft.fftfreq(height, dtype=torch.float64)[:, None].expand(-1, width)
    k = torch.stack((across, down), -1)
    weight = power * (k.norm(dim=-1) <= BAND)
    normal = torch.einsum("bfhw,hwi,hwj->bfij", weight, k, k)
    # a still or plain picture has no phases to fit: it has not moved
    normal = normal + 1e-12 * torch.eye(2) * (1 + normal.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None])
    for _ in range(2):
        turned = cross * torch.polar(torch.ones(()).double(), math.tau * torch.einsum("bfi,hwi->bfhw", shift, k))
        slope = torch.einsum("bfhw,hwi->bfi", weight * turned.angle(), k)
        shift = shift - torch.linalg.solve(normal, slope) / math.tau
    return shift


def measure(clips: Float[Tensor, "b f 3 h w"], captions: Sequence[str], wrap: bool = False) -> Measured:
    """Return the motion of each thing its caption names, in clips in [0, 1]; UserError for a foreign caption."""
    told = [read(caption) for caption in captions]
    slots = max(len(caption.things) for caption in told)
    height, width = clips.shape[-2:]
    displacement = torch.zeros(len(clips), slots, clips.shape[1] - 1, 2, dtype=torch.float64)
    found = torch.zeros(displacement.shape[:-1], dtype=torch.bool)
    for row, caption in enumerate(told):
        if caption.things[0].texture:
            displacement[row, 0], found[row, 0] = drift(clips[row, None])[0], True
            continue
        tracks = track(clips[row, None], wrap)
        for slot, thing in enumerate(caption.things):
            colour = COLOURS.index(thing.colour)
            steps = tracks.position[0, colour].diff(dim=0)
            displacement[row, slot] = around(steps, width, height) if wrap else steps
            seen = tracks.area[0, colour] >= LEAST
            found[row, slot] = seen[1:] & seen[:-1]
    return Measured(displacement, found)


def displacements(motion: Motion, textures: Bool[Tensor, " b"], width: int, height: int, wrap: bool) -> Measured:
    """Return the true displacements between frames; ``textures``: which clips are one, and wrap in any case."""
    steps = motion.position.diff(dim=2)
    around_edges = textures[:, None, None, None] | torch.tensor(wrap)
    steps = torch.where(around_edges, around(steps, width, height), steps)
    return Measured(steps, motion.present[..., None].expand(steps.shape[:-1]))


def around(steps: Float[Tensor, "*b 2"], width: int, height: int) -> Float[Tensor, "*b 2"]:
    """Return the shortest displacements (x, y) that lead to the same place where edges wrap."""
    size = torch.tensor([width, height], dtype=steps.dtype)
    return (steps + size / 2).remainder(size) - size / 2


def hues(frames: Float[Tensor, "*f 3 h w"]) -> Float[Tensor, "*f k h w"]:
    """Return how much of each colour of the palette is in each pixel: at its hue all, a twelfth of a turn off none."""
    red, green, blue = frames.unbind(-3)
    across, up = red - (green + blue) / 2, (green - blue) * math.sqrt(0.75)
    angle = (torch.arange(len(COLOURS), dtype=frames.dtype) * (math.tau / len(COLOURS))).view(-1, 1, 1)
    across, up = across.unsqueeze(-3), up.unsqueeze(-3)
    along = across * angle.cos() + up * angle.sin()
    return (along - math.sqrt(3) * (up * angle.cos() - across * angle.sin()).abs()).clamp_min(0)


def _centroids(clip: Float[Tensor, "f 3 h w"], wrap: bool) -> tuple[Float[Tensor, "k f 2"], Float[Tensor, "k f"]]:
    height, width = clip.shape[-2:]
    weight = hues(clip).transpose(0, 1).double()
    largest = weight.amax().clamp_min(1e-6)
    weight = (weight - FLOOR * weight.amax((1, 2, 3), keepdim=True)).clamp_min(0)
    area = weight.mean((-2, -1)) / ((1 - FLOOR) * largest)
    x = torch.arange(width, dtype=torch.float64) + 0.5
    y = torch.arange(height, dtype=torch.float64)[:, None] + 0.5
    position = torch.stack((_mean(weight, x, width, wrap), _mean(weight, y, height, wrap)), -1)
    window = WINDOW * min(height, width)
    for _ in range(ROUNDS):
        dx, dy = x - position[..., None, None, 0], y - position[..., None, None, 1]
        if wrap:
            dx, dy = (dx + width / 2) % width - width / 2, (dy + height / 2) % height - height / 2
        near = weight * torch.exp(-0.5 * (dx / window) ** 2) * torch.exp(-0.5 * (dy / window) ** 2)
        total = near.sum((-2, -1)).clamp_min(1e-9)
        step = torch.stack(((near * dx).sum((-2, -1)), (near * dy).sum((-2, -1))), -1) / total[..., None]
        position = position + step
    if wrap:
        position = position.remainder(torch.tensor([width, height], dtype=torch.float64))
    return position, area


def _mean(weight: Float[Tensor, "k f h w"], at: Tensor, size: int, wrap: bool) -> Float[Tensor, "k f"]:
    """Return the mean of a coordinate, on the circle where edges wrap."""
    if not wrap:
        return (weight * at).sum((-2, -1)) / weight.sum((-2, -1)).clamp_min(1e-9)
    turn = math.tau / size * at
    angle = torch.atan2((weight * turn.sin()).sum((-2, -1)), (weight * turn.cos()).sum((-2, -1)))
    return (angle * (size / math.tau)).remainder(size)


def _signed(at: Tensor, size: int) -> Tensor:
    return torch.where(at > (size - 1) // 2, at - size, at)
