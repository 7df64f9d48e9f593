"""Orbits of the world of solids: exact renders of single things, made once and kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.writing import write_tensors
from fewstep.core.errors import check
from fewstep.core.recipe import Batch
from fewstep.core.rng import Rng
from fewstep.threed.cameras import orbit
from fewstep.threed.orbit.convention import orbit_condition
from fewstep.threed.orbit.pixels import to_latents
from fewstep.threed.orbit.supervision import OrbitGeometry
from fewstep.threed.shapes import Prompt, build, primitives, render, rendering, solids

STEPS = 24  # azimuths of an orbit that are photographed
ELEVATIONS = (0.0, 15.0, 30.0)
FREE = 24  # views from anywhere
LOWEST, HIGHEST = -10.0, 40.0  # their elevations, in degrees


@dataclass(frozen=True)
class Photos:
    """Pictures "p n ..." of p things from n sides, as bytes, and the sides' angles in degrees, "p n"."""

    rgb: Tensor
    alpha: Tensor
    depth: Float[Tensor, "p n 1 h w"]
    azimuth: Float[Tensor, "p n"]
    elevation: Float[Tensor, "p n"]


class OrbitData:
    """Orbits of ``views`` pictures of things, from any side, and ``seen`` more pictures of each from anywhere.

    Samples are latents; a condition has what :mod:`fewstep.threed.orbit` says and the pictures that supervise. Raises
    UserError for views that do not divide the photographed azimuths.
    """

    def __init__(self, prompts: Sequence[Prompt], geometry: OrbitGeometry, *, views: int = 8, seen: int = 2) -> None:
        check(bool(prompts), "no prompts to make orbits of")
        check(STEPS % views == 0, f"{views} views: must divide {STEPS}")
        check(seen >= 1, f"a sample is supervised by one picture or more, got {seen}")
        self.prompts, self.geometry, self.views, self.seen = tuple(prompts), geometry, views, seen

    def __len__(self) -> int:
        return len(self.prompts) * STEPS * len(ELEVATIONS)

    @cached_property
    def photos(self) -> Photos:
        """The pictures, of the cache where they are there."""
        return photographs(self.prompts, self.geometry)

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return orbits drawn for the samples of ``rng``: a thing, a side and an elevation each."""
        thing, side = rng.integers("thing", len(self.prompts)), rng.integers("side", STEPS)
        level = rng.integers("elevation", len(ELEVATIONS))
        pool = STEPS * len(ELEVATIONS) + FREE
        seen = (rng.uniform("seen", (self.seen,)) * pool).long().clamp_max(pool - 1)
        return self.orbits(thing, side, level, seen, device)

    def orbits(self, thing: Tensor, side: Tensor, level: Tensor, seen: Tensor, device: torch.device | str) -> Batch:
        """Return the orbits of things "b" that end at their ``side`` at their ``level``, with pictures ``seen``."""
        photos, thing, side = self.photos, thing.cpu(), side.cpu()
        level, seen = level.cpu(), seen.cpu()
        turns = torch.arange(1, self.views + 1) * (STEPS // self.views)
        index = level[:, None] * STEPS + (side[:, None] + turns) % STEPS
        z = to_latents(photos.rgb[thing[:, None], index].float() / 255).to(device)
        cond = orbit_condition(torch.tensor(ELEVATIONS)[level], self.views)
        cond["image"] = z[:, -1].cpu()
        which = thing[:, None], seen
        # the world is turned so that the last view looks from the front
        azimuth = photos.azimuth[which] - side[:, None] * (360 / STEPS)
        cond |= {
            "seen_rgb": photos.rgb[which].float() / 255,
            "seen_alpha": photos.alpha[which].float() / 255,
            "seen_depth": photos.depth[which].float(),
            "seen_azimuth": torch.deg2rad(azimuth),
            "seen_polar": torch.deg2rad(90 - photos.elevation[which]),
        }
        return Batch(len(thing), {name: value.to(device) for name, value in cond.items()}, z, device)


def photographs(prompts: Sequence[Prompt], geometry: OrbitGeometry) -> Photos:
    """Return the pictures of things: every azimuth at every elevation, then views from anywhere; each is kept."""
    found = [_photos(prompt, geometry) for prompt in prompts]
    return Photos(*(torch.stack([each[name] for each in found]) for name in Photos.__dataclass_fields__))


def _photos(prompt: Prompt, geometry: OrbitGeometry) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    azimuth = torch.arange(STEPS, dtype=torch.float64) * (360 / STEPS)
    free = Rng(0, 0, (0,), str(prompt)).uniform("views", (FREE, 2))[0]
    azimuth = torch.cat([azimuth.repeat(len(ELEVATIONS)), 360 * free[:, 0]]).float()
    level = torch.tensor(ELEVATIONS, dtype=torch.float64).repeat_interleave(STEPS)
    elevation = torch.cat([level, LOWEST + (HIGHEST - LOWEST) * free[:, 1]]).float()
    file = _cache_file(prompt, geometry)
    if not file.is_file():
        full = torch.ones_like(azimuth)
        cameras = orbit(
            azimuth, elevation, full * geometry.distance, full * geometry.fov_y_deg, geometry.size, geometry.size
        )
        made = render(build(prompt), cameras.world_to_camera, cameras.intrinsics, geometry.size, geometry.size)
        bytes_of = {"rgb": made.rgb, "alpha": made.alpha}
        kept = {name: (255 * value).round().to(torch.uint8) for name, value in bytes_of.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, kept | {"depth": made.depth.half()})
    return load_file(file) | {"azimuth": azimuth, "elevation": elevation}


def _cache_file(prompt: Prompt, geometry: OrbitGeometry) -> Path:
    cache = Path(os.environ.get("FEWSTEP_CACHE") or Path.home() / ".cache" / "fewstep")
    sources = [Path(str(module.__file__)) for module in (primitives, rendering, solids)]
    made_by = hashlib.sha256(b"".join(file.read_bytes() for file in sources))
    made_by.update(f"{prompt} {geometry} {STEPS} {ELEVATIONS} {FREE} {LOWEST} {HIGHEST}".encode())
    return cache / "orbits" / f"{made_by.hexdigest()[:16]}.safetensors"
