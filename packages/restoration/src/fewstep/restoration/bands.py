"""A picture restored from top to bottom: rows leave when they are final, so that none holds the whole result."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fewstep.restoration.colour import REACH, fix_colour
from fewstep.restoration.tiling import Tiles, even_weights

PIXELS = 3 * 2**20  # of the rows that leave together
LEAST = 64  # of them, as each comes with the rows around it that fixing its colours needs
TAPS = 2  # pixels that bicubic interpolation looks at on either side

Along = list[tuple[int, Tensor]]  # starts and weights of tiles along one axis


class Plan:
    """Where the tiles of a picture of ``size`` lie; ``multiple``: see :func:`even_weights`."""

    def __init__(self, size: tuple[int, int], tiles: Tiles, scale: int, multiple: int) -> None:
        self.size, self.scale = size, scale
        self.down: Along = even_weights(size[0], tiles, scale, multiple)
        self.across: Along = even_weights(size[1], tiles, scale, multiple)

    @property
    def count(self) -> int:
        """Return the number of tiles."""
        return len(self.down) * len(self.across)

    @property
    def side(self) -> int:
        """Return the largest side of a tile, in pixels of the input."""
        return max(len(weights) for _, weights in self.down + self.across) // self.scale

    @property
    def step(self) -> int:
        """Return how many rows of the result leave together."""
        return max(PIXELS // (self.size[1] * self.scale), LEAST)


def restored_rows(
    function: Callable[[Tensor, int, int], Tensor], x: Float[Tensor, "c h w"], plan: Plan
) -> Iterator[Float[Tensor, "d n l"]]:
    """Yield the rows of ``function`` of a picture, in order, blended in float32 from tiles.

    ``function``: a tile "1 c n m" and its place (top, left) in ``x`` to "1 d n*scale m*scale". What is yielded is
    valid until the next rows are asked for.
    """
    scale, (height, width) = plan.scale, plan.size
    tops = [top * scale for top, _ in plan.down] + [height * scale]
    rest: Tensor | None = None  # rows of the band that the next one adds to
    for index, (top, down) in enumerate(plan.down):
        band: Tensor | None = None
        for left, across in plan.across:
            tile = x[None, :, top : top + len(down) // scale, left : left + len(across) // scale]
            y = function(tile, top, left)
            if y.ndim != 4 or (len(y), *y.shape[2:]) != (1, len(down), len(across)):
                raise ValueError(f"a tile {tuple(tile.shape)} at scale {scale} became {tuple(y.shape)}")
            if band is None:
                band = torch.zeros(y.shape[1], len(down), width * scale)
            place = band[:, :, left * scale : left * scale + len(across)]
            place += y[0].to("cpu", torch.float32).mul_(down[:, None]).mul_(across)
            del y
        if band is None:
            raise ValueError(f"a picture of shape {tuple(x.shape)} has no pixels")
        if rest is not None:
            band[:, : rest.shape[1]] += rest
        final = tops[index + 1] - tops[index]
        for start in range(0, final, plan.step):
            yield band[:, start : min(start + plan.step, final)]
        rest = band[:, final:].clone()


def enlarged_rows(x: Float[Tensor, "c h w"], scale: int, start: int, stop: int) -> Float[Tensor, "c n l"]:
    """Return rows ``start`` to ``stop`` of ``x`` enlarged by bicubic interpolation (torch's), not clamped."""
    first = max(start // scale - TAPS, 0)
    last = min(-(-stop // scale) + TAPS, x.shape[1])
    rows = functional.interpolate(x[None, :, first:last], scale_factor=scale, mode="bicubic", align_corners=False)[0]
    return rows[:, start - first * scale : stop - first * scale]


def fixed_rows(
    rows: Iterator[Float[Tensor, "c n l"]], x: Float[Tensor, "c h w"], plan: Plan, name: str
) -> Iterator[Float[Tensor, "c n l"]]:
    """Yield rows with the colours of ``x`` enlarged, by a fix that looks no farther than ``REACH`` pixels.

    The result is that of the fix on the whole picture: rows wait until those that their colours depend on are there.
    """
    height = plan.size[0] * plan.scale
    held, first, done = next(rows).clone(), 0, 0  # rows waiting, the number of the first, how many have left
    while True:
        end = first + held.shape[1]
        ready = end if end == height else end - REACH
        while done < ready:
            stop = min(done + plan.step, ready)
            low, high = max(done - REACH, first), min(stop + REACH, end)
            reference = enlarged_rows(x, plan.scale, low, high)
            yield fix_colour(held[None, :, low - first : high - first], reference[None], name)[
                0, :, done - low : stop - low
            ]
            done = stop
        if end == height:
            return
        keep = max(done - REACH, first)
        held, first = torch.cat([held[:, keep - first :], next(rows)], dim=1), keep
