"""Restored pictures measured against their references, one by one, with the protocol of every number in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check, nearest
from fewstep.restoration.iqa import LEARNED, LearnedMeasure
from fewstep.restoration.metrics import protocol, psnr_y, ssim_y
from fewstep.restoration.perceptual import (
    gmsd,
    gmsd_protocol,
    spectral_distance,
    spectral_levels,
    spectrum_protocol,
)
from fewstep.restoration.pictures.picture import Picture

SHOWN = 5  # pictures named in a line


@dataclass(frozen=True)
class Measure:
    """A column of the table: its head, ``function(x, reference, crop=...)`` and how that measures, in words."""

    head: str
    function: Callable[..., Float[Tensor, "b"]]
    protocol: Callable[[int], str]


NATIVE = {
    "psnr": Measure("PSNR-Y", psnr_y, protocol),
    "ssim": Measure("SSIM-Y", ssim_y, protocol),
    "gmsd": Measure("GMSD", gmsd, gmsd_protocol),
    "spectrum": Measure("spectrum", spectral_distance, spectrum_protocol),
}


def measures(names: Sequence[str], device: str = "cpu") -> dict[str, Measure]:
    """Return measures by name; UserError for one that is unknown or, of the learned ones, not available here."""
    known = [*NATIVE, *LEARNED]
    check(len(names) > 0, f"no measure to take: give some of {', '.join(known)}")
    for name in names:
        check(name in known, f"measure '{name}': unknown; {nearest(name, known)}")
    found = {}
    for name in names:
        if name in NATIVE:
            found[name] = NATIVE[name]
        else:
            learned = LearnedMeasure(name, device)
            found[name] = Measure(name, learned, learned.protocol)
    return found


@dataclass
class Scores:
    """What was measured of pictures, by measure and picture."""

    measures: Mapping[str, Measure]
    crop: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def score(self, x: Float[Tensor, "c h w"], reference: Float[Tensor, "c h w"]) -> dict[str, Any]:
        """Return the numbers of one picture; UserError naming the measure that cannot take it."""
        values: dict[str, Any] = {}
        for name, measure in self.measures.items():
            value = float(measure.function(x[None], reference[None], crop=self.crop)[0])
            check(
                not math.isnan(value), f"{name} is not a number here: the restored picture holds values that are none"
            )
            values[name] = value
        if "spectrum" in values:
            levels = spectral_levels(x[None], reference[None], crop=self.crop)[0]
            values["octaves_db"] = [round(level, 4) for level in levels.tolist()]
        return values

    def add(self, picture: str, values: Mapping[str, Any]) -> None:
        """Keep the numbers of a picture."""
        self.rows.append({"picture": picture, **values})

    def means(self) -> dict[str, float]:
        """Return the mean of every measure over the pictures, infinite where one of them is."""
        return {name: math.fsum(row[name] for row in self.rows) / len(self.rows) for name in self.measures}

    def cells(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return numbers under the heads of their columns."""
        return {measure.head: values[name] for name, measure in self.measures.items()}

    def protocols(self) -> list[str]:
        """Return the sentences that say how the measures are taken, each once."""
        return list(dict.fromkeys(measure.protocol(self.crop) for measure in self.measures.values()))


def comparable(ours: Picture, theirs: Picture) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "c h w"]]:
    """Return the colours of two pictures of one size with the same number of channels; UserError for other sizes.

    Gray is compared as gray, and as RGB with a picture in colour.
    """
    sizes = " and ".join(f"{width}x{height}" for height, width in (ours.size, theirs.size))
    check(ours.size == theirs.size, f"restored and reference have {sizes} pixels: give equal sizes")
    channels = max(len(ours.colours), len(theirs.colours))
    x, reference = (picture.colours.expand(channels, -1, -1) for picture in (ours, theirs))
    return x, reference


def finite(values: Any) -> Any:
    """Return numbers for JSON, which has no infinity: it becomes the text "inf"."""
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return str(values) if isinstance(values, float) and not math.isfinite(values) else values


def listed(lines: Sequence[str]) -> str:
    """Return the first few of many lines in one."""
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def machine(device: str) -> str:
    """Return in words what a device is."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
