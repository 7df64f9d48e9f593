"""Batches of pairs in pixels: a good crop and what a degradation makes of it.

A sample is a function of (seed, step, its place in the global batch): neither how a batch is cut, nor what ran before
or what is in a cache changes a bit of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import lcm

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.data.damage import Damaged
from fewstep.core.data.epochs import epoch_indices
from fewstep.core.errors import TrainingError, check
from fewstep.core.rng import Rng
from fewstep.restoration.data.crops import CENTRE, crop_example, random_crop
from fewstep.restoration.data.examples import Example, Examples
from fewstep.restoration.data.settings import DataConfig
from fewstep.restoration.degradations.config import preset
from fewstep.restoration.degradations.nested import nested_pair
from fewstep.restoration.degradations.pipeline import degrade
from fewstep.restoration.degradations.resize import resize
from fewstep.restoration.degradations.sharpening import sharpen

MAX_SCALE = 32


@dataclass(frozen=True)
class Pairs:
    """Good pictures and bad ones, in [0, 1].

    ``lq``: each at its own size, 1/scale of the good one's, or the same for degradations that keep the size. ``up``:
    they at the good one's size, by plain bicubic interpolation, which may overshoot. ``milder``: the same of a lower
    scale. ``captions``: of the pictures, empty ones where there are none.
    """

    hr: Float[Tensor, "b 3 h w"]
    lq: list[Float[Tensor, "3 k l"]]
    up: Float[Tensor, "b 3 h w"]
    scale: Int[Tensor, " b"]
    milder: Float[Tensor, "b 3 h w"] | None = None
    captions: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.lq)

    def lq_batch(self) -> Float[Tensor, "b 3 k l"] | None:
        """Return the bad pictures as one tensor, None when their sizes differ."""
        return torch.stack(self.lq) if len({x.shape for x in self.lq}) == 1 else None

    def to(self, device: torch.device | str) -> Pairs:
        """Return the pairs on a device."""
        return Pairs(
            self.hr.to(device),
            [x.to(device) for x in self.lq],
            self.up.to(device),
            self.scale.to(device),
            None if self.milder is None else self.milder.to(device),
            self.captions,
        )


class RestorationSource:
    """Pairs for training and to evaluate on, made of examples.

    ``scales``: magnifications, of which each sample gets one. ``space_factor``: what crops must be multiples of as
    well. ``milder_scale``: with it, each sample is also degraded at that lower scale, and its own degradation is that
    one reduced further. UserError for settings that contradict each other.
    """

    def __init__(
        self,
        examples: Examples,
        config: DataConfig,
        scales: Sequence[int],
        space_factor: int = 1,
        milder_scale: int = 0,
    ) -> None:
        self.examples, self.config, self.scales = examples, config, tuple(scales)
        self.space_factor, self.milder_scale = space_factor, milder_scale
        self.degradation = preset(config.degradation)
        check_scales(self.scales, examples.scale, milder_scale)
        self._check_size(config.crop, "domain.data.crop")

    def _check_size(self, size: int, name: str) -> None:
        step = lcm(self.space_factor, *self.scales)
        what = f"the scales {', '.join(map(str, self.scales))} and the space's factor {self.space_factor}"
        check(size > 0 and size % step == 0, f"{name}={size} must be a multiple of {step}, for {what}")

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.examples)

    def pairs(self, rng: Rng) -> Pairs:
        """Return the pairs of a step, on the CPU; raises what reading them raises, see :class:`.examples.Files`."""
        own = replace(rng, device="cpu").fork("pairs")
        samples = zip(epoch_indices(own, len(self)), _each(own), strict=True)
        return self._collect(self._random(index, one) for index, one in samples)

    def held_pairs(self, n: int, size: int = 0) -> Pairs:
        """Return ``n`` fixed pairs of ``size`` (by default the crop's): the middle of each picture, then other places.

        The first of them are the same whatever ``n`` is; scales take turns.
        """
        size = size or self.config.crop
        self._check_size(size, "the size of held-out pictures")
        check(n >= 1, f"at least one held-out pair must be asked for, got {n}")
        return self._collect(
            self._held(i, size, one) for i, one in enumerate(_each(Rng(0, 0, tuple(range(n)), "held")))
        )

    def _random(self, index: int, rng: Rng) -> tuple[Example, int, Rng]:
        scale = self.scales[int(rng.integers("scale", len(self.scales))[0])]
        crop = random_crop(readable(self.examples, index), self.config, rng, self.examples.scale or 1)
        if self.config.sharpen:
            crop = crop._replace(hr=sharpen(crop.hr[None])[0])
        return crop, scale, rng

    def _held(self, number: int, size: int, rng: Rng) -> tuple[Example, int, Rng]:
        turn, index = divmod(number, len(self))
        corner = rng.uniform("corner", (2,))[0].tolist() if turn else CENTRE
        crop = crop_example(readable(self.examples, index), size, corner, self.examples.scale or 1)
        return crop, self.scales[(index + turn) % len(self.scales)], rng

    def _collect(self, samples: Iterable[tuple[Example, int, Rng]]) -> Pairs:
        hr, lq, up, scales, milder, captions = [], [], [], [], [], []
        for crop, scale, rng in samples:
            size = (int(crop.hr.shape[1]), int(crop.hr.shape[2]))
            good = crop.hr[None]
            if crop.lq is not None:
                bad = crop.lq[None]
            elif self.milder_scale:
                bad, less = nested_pair(good, self.degradation, rng, scale, self.milder_scale)
                milder.append(resize(less, size, "bicubic"))
            else:
                bad = degrade(good, self.degradation, rng, scale)
            hr.append(good)
            lq.append(bad[0])
            up.append(resize(bad, size, "bicubic"))
            scales.append(scale)
            captions.append(crop.caption)
        nested = torch.cat(milder) if self.milder_scale else None
        return Pairs(torch.cat(hr), lq, torch.cat(up), torch.tensor(scales), nested, tuple(captions))


def _each(rng: Rng) -> list[Rng]:
    return [rng.select(i, i + 1) for i in range(len(rng.ids))]


def check_scales(scales: tuple[int, ...], of_pairs: int, milder_scale: int) -> None:
    """Raise UserError for no scales, scales of other pairs, and a milder scale that does not divide them."""
    check(
        bool(scales) and all(1 <= scale <= MAX_SCALE for scale in scales),
        f"domain.scales must be whole numbers in 1..{MAX_SCALE}, got {list(scales)}",
    )
    check(of_pairs in (0, *scales[:1]) and (not of_pairs or len(scales) == 1), _one_scale(scales, of_pairs))
    if milder_scale:
        check(not of_pairs, "domain.milder_scale: pairs are of one scale; give good pictures alone")
        check(
            milder_scale >= 1 and all(s > milder_scale and s % milder_scale == 0 for s in scales),
            f"domain.milder_scale={milder_scale} must be smaller than every scale of {list(scales)} and divide it",
        )


def _one_scale(scales: tuple[int, ...], of_pairs: int) -> str:
    return f"domain.scales: the pairs are of scale {of_pairs} alone, got {list(scales)}"


def readable(examples: Examples, index: int) -> Example:
    """Return an example: a damaged one's place is taken by the next that can be read; TrainingError when none can."""
    for step in range(len(examples)):
        try:
            return examples.example((index + step) % len(examples))
        except Damaged:
            continue
    raise TrainingError(f"none of the {len(examples)} pictures can be read")
