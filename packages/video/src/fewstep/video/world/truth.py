"""A written world read back: its config, and the truth about the motion in its clips."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fewstep.core.errors import UserError, check
from fewstep.core.models.files import read_json
from fewstep.video.reading.layouts import list_clips
from fewstep.video.reading.sampling import ClipConfig, clip_indices, interval_of
from fewstep.video.world.captions import read
from fewstep.video.world.config import WorldConfig
from fewstep.video.world.folder import CARD, MOTION, VIDEOS
from fewstep.video.world.scenes import Motion
from fewstep.video.world.statistics import MotionStatistics, statistics
from fewstep.video.world.tracking import displacements


def world_folder(clips: Path) -> Path | None:
    """Return the world that clips belong to: the folder itself, or the one its videos lie in; None where none is."""
    return next((folder for folder in (clips, clips.parent) if (folder / CARD).is_file()), None)


@dataclass(frozen=True)
class Truth:
    """What is known of a world's clips, in the order of ``captions``; ``fps``: of its videos."""

    config: WorldConfig
    fps: float
    captions: Sequence[str]
    motion: Motion

    def statistics(self, clip: ClipConfig, captions: Collection[str] = ()) -> tuple[MotionStatistics, WorldConfig]:
        """Return the statistics of the motion as ``clip`` shows it, centred, and the config of a world of that size.

        Of the clips under ``captions`` where each of those has one, of all clips otherwise: then the same scenes are
        compared. Displacements are in pixels of ``clip.size``.
        """
        world = replace(self.config, frames=clip.frames, height=clip.size[0], width=clip.size[1])
        wanted = set(captions)
        there = wanted and wanted <= set(self.captions)
        rows = [row for row, caption in enumerate(self.captions) if not there or caption in wanted]
        kept = [self.captions[row] for row in rows]
        shown = clip_indices(self.config.frames, clip.frames, interval_of(clip, self.fps), 0.5, clip.short)
        still = replace(
            self.motion, position=self.motion.position[rows][:, :, shown], present=self.motion.present[rows]
        )
        textures = torch.tensor([read(caption).things[0].texture for caption in kept])
        wrap = self.config.edges == "wrap"
        found = displacements(still, textures, self.config.width, self.config.height, wrap)
        scale = torch.tensor([world.width / self.config.width, world.height / self.config.height])
        return statistics(world, replace(found, displacement=found.displacement * scale), kept), world


def read_truth(folder: Path) -> Truth:
    """Return the truth about a world's clips; UserError for files that are missing, damaged or at odds."""
    again = "write the world again"
    card = read_json(folder / CARD)
    known = {field.name for field in fields(WorldConfig)}
    try:
        config = WorldConfig(**{name: _tuples(value) for name, value in card.items() if name in known})
        fps, wanted = float(card["fps"]), int(card["clips"])
        found = load_file(folder / MOTION)
        position, velocity, present = (found[name].double() for name in ("position", "velocity", "present"))
    except (TypeError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise UserError(f"{folder}: {CARD} or {MOTION} is damaged ({str(error).splitlines()[0]}): {again}") from error
    shape = (wanted, config.objects, config.frames, 2)
    fits = position.shape == velocity.shape == shape and present.shape == shape[:2]
    check(fits, f"{folder / MOTION}: positions of {list(position.shape)}, and {CARD} says {list(shape)}: {again}")
    captions = [clip.caption for clip in list_clips(folder / VIDEOS)]
    check(len(captions) == wanted, f"{folder / VIDEOS}: {len(captions)} clips, and {CARD} says {wanted}: {again}")
    return Truth(config, fps, captions, Motion(position, velocity, present > 0))


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
