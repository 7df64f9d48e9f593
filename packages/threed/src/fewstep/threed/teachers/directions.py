"""What a prompt says of the view, for teachers that know no camera: words by direction, and Perp-Neg's negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import check

FRONT, SIDE, BACK, OVERHEAD = range(4)


@dataclass(frozen=True, kw_only=True)
class DirectionConfig:
    """Words for a camera that the teacher is not told of.

    ``words``: of front, side, back and overhead views, put behind the prompt; empty: none. A view is overhead from
    ``overhead`` degrees of elevation up, else of the front within ``front`` degrees of azimuth 0, of the back within
    ``back`` of 180, else of the side (DreamFusion, arXiv 2209.14988; ProlificDreamer has ``front`` 30). ``perp_neg``:
    prompts of neighbouring directions are blended, and the others are negative (arXiv 2304.04968).
    """

    words: tuple[str, ...] = ("front view", "side view", "back view", "overhead view")
    front: float = 45.0
    back: float = 45.0
    overhead: float = 60.0
    perp_neg: bool = False

    def __post_init__(self) -> None:
        where = "domain.judge.directions"
        check(
            not self.words or (len(self.words) == 4 and all(word.strip() for word in self.words)),
            f"{where}.words are four, of front, side, back and overhead views, or none: got {list(self.words)}",
        )
        check(0 <= self.front <= 180 - self.back <= 180, f"{where}.front and .back overlap: {self.front}, {self.back}")
        check(bool(self.words) or not self.perp_neg, f"{where}.perp_neg needs words for the directions")

    def texts(self, prompt: str) -> list[str]:
        """Return the prompt by direction, and last as it is."""
        return [*(f"{prompt}, {word}" for word in self.words), prompt]


def direction_of(
    azimuth_deg: Float[Tensor, " b"], elevation_deg: Float[Tensor, " b"], config: DirectionConfig
) -> Int[Tensor, " b"]:
    """Return which direction cameras look from; azimuths in any turn."""
    away = _from_front(azimuth_deg)
    found = torch.full_like(away, SIDE, dtype=torch.long)
    found[away < config.front] = FRONT
    found[away > 180 - config.back] = BACK
    found[elevation_deg > config.overhead] = OVERHEAD
    return found


class Blend(NamedTuple):
    """Perp-Neg's terms per view: two directions and the share of the first, two negative ones, and their weights."""

    pair: Int[Tensor, "b 2"]
    share: Float[Tensor, " b"]
    negative: Int[Tensor, "b 2"]
    weights: Float[Tensor, "b 2"]


def perp_neg_blend(
    azimuth_deg: Float[Tensor, " b"], elevation_deg: Float[Tensor, " b"], config: DirectionConfig
) -> Blend:
    """Return what Perp-Neg makes of views (arXiv 2304.04968, with the curves of threestudio's settings).

    From the front to the side front and side are blended, and both are negative; from the side to the back side and
    back are blended, and side and front are negative. Seen from overhead nothing is.
    """
    away = _from_front(azimuth_deg)
    ahead, above = away < 90, elevation_deg > config.overhead
    share = torch.where(ahead, 1 - away / 90, 2 - away / 90)
    weights = torch.where(
        ahead[:, None],
        torch.stack([-_curve(share, 4.0, -2.426), -_curve(1 - share, 4.0, -2.426)], 1),
        torch.stack([-_curve(share, 1.0, -0.606), -_curve(share, 1.0, 0.967)], 1),
    )
    pair = torch.where(ahead[:, None], _row(away, FRONT, SIDE), _row(away, SIDE, BACK))
    negative = torch.where(ahead[:, None], _row(away, FRONT, SIDE), _row(away, SIDE, FRONT))
    return Blend(
        torch.where(above[:, None], _row(away, OVERHEAD, OVERHEAD), pair),
        share,
        negative,
        torch.where(above[:, None], torch.zeros_like(weights), weights),
    )


def _from_front(azimuth_deg: Tensor) -> Tensor:
    """Return how far azimuths are from 0, in [0, 180]."""
    return (torch.remainder(azimuth_deg + 180, 360) - 180).abs()


def _curve(share: Tensor, height: float, offset: float) -> Tensor:
    return height * torch.exp(-0.5 * share) + offset


def _row(like: Tensor, *numbers: int) -> Int[Tensor, "1 n"]:
    return torch.tensor([numbers], device=like.device)
