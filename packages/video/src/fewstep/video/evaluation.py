"""How a student's clips are measured: motion first, then distances to clips and to pictures, each with its protocol."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.shown import Shown
from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.models.family import Size
from fewstep.core.models.loading import Teacher
from fewstep.video.metrics.comparison import MotionLimits, Verdict, judge, weigh
from fewstep.video.metrics.features import clip_space, frame_space
from fewstep.video.metrics.frechet import ClipSet, PictureSet
from fewstep.video.metrics.i3d import FRAMES as I3D_FRAMES
from fewstep.video.metrics.i3d import i3d_space
from fewstep.video.metrics.motion import PER_SECOND, Motion, motion
from fewstep.video.metrics.similarity import ClipSimilarity
from fewstep.video.reading.sampling import ClipConfig
from fewstep.video.reference import clip_batches, picture_batches
from fewstep.video.world.captions import read
from fewstep.video.world.statistics import agreement, compare, statistics
from fewstep.video.world.tracking import measure
from fewstep.video.world.truth import read_truth, world_folder

MOTION = (
    "contrast: standard deviation of the decoded pixels in [-1, 1]; motion_energy: mean square of the difference of "
    "neighbouring frames; speed: pixels a frame, from changes and gradients; dynamic_degree: share of clips that move, "
    "by pixels; flicker: share of the change that the next frame undoes, brightness_flicker: mean change of the colour"
)
WORLD = (
    "in the drawn world, things tracked by their colours, against the truth: speed_ratio of mean speeds, "
    "speed_distance (Wasserstein-1 over the mean), direction_distance (total variation), found: share of things seen, "
    "caption_direction and caption_pace: shares that move as captions say"
)

log = logging.getLogger("fewstep.video")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What students are measured against; everything may be left out.

    ``clips``: reference clips in any layout that training reads, a drawn world (its truth is then used, too), or
    prepared latents. ``images``: a folder of pictures that single frames are compared with. ``count``: clips, and
    pictures, at most. ``frames``: of each clip that are looked at alone. ``fps``: of students' clips; reference videos
    are read at it (0: every ``interval``-th frame, and motion is judged as at 8 a second). ``i3d``: a safetensors file
    of I3D's weights, which take the place of the shipped filters. ``clip``: a folder with a CLIPModel and its
    tokenizer. ``limits``: when motion counts as lost.
    """

    clips: str = ""
    images: str = ""
    count: int = 256
    frames: int = 4
    fps: float = 0.0
    interval: int = 1
    i3d: str = ""
    clip: str = ""
    limits: MotionLimits = MotionLimits()

    def __post_init__(self) -> None:
        check(self.count >= 2, f"domain.evaluation.count must be at least 2, got {self.count}")
        check(self.frames >= 1, f"domain.evaluation.frames must be at least 1, got {self.frames}")
        check(0 <= self.fps <= 1000, f"domain.evaluation.fps must be in [0, 1000], got {self.fps:g}")
        check(self.interval >= 1, f"domain.evaluation.interval must be at least 1, got {self.interval}")
        check(self.fps == 0 or self.interval == 1, "domain.evaluation: give fps or interval, not both")
        check(not self.i3d or bool(self.clips), "domain.evaluation.i3d needs clips to compare with: give clips, too")
        for name in ("clips", "images", "i3d", "clip"):
            value = getattr(self, name)
            there = not value or "*" in value or "{" in value or Path(value).expanduser().exists()
            check(there, f"domain.evaluation.{name}: {value} is not there; give another path, or leave it out")


class VideoMetrics:
    """Metrics of latents "n *d", which ``decode`` turns into clips in [-1, 1]; ``protocol`` says what they are.

    ``size``: of the clips. ``teacher_clips``: makes decoded clips of the teacher, which motion is then judged by
    instead of the reference clips. ``shown``: the prompts of samples, in order. ``teacher``: whose latents prepared
    reference clips must be. References are read once, when they are first needed. Raises UserError for weights that
    cannot be read and for clips too short for them.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        size: Size,
        decode: Callable[[Tensor], Tensor],
        teacher_clips: Callable[[], Tensor] | None = None,
        *,
        shown: Shown | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.config, self.size, self.decode, self.teacher = config, size, decode, teacher
        self.teacher_clips, self.shown = teacher_clips, shown
        self.clip = ClipConfig(
            frames=size.frames,
            fps=config.fps,
            interval=config.interval,
            start="centre",
            size=(size.height, size.width),
        )
        if config.i3d:
            check(
                size.frames >= I3D_FRAMES,
                f"domain.evaluation.i3d: clips of {size.frames} frames, and I3D needs {I3D_FRAMES} at least: leave it "
                "out, or set domain.model.frames",
            )
        self.space = i3d_space(config.i3d) if config.i3d else clip_space()
        self.similarity = ClipSimilarity(config.clip, frames=config.frames) if config.clip else None
        check(
            self.similarity is None or shown is not None,
            "domain.evaluation.clip compares with prompts, and there are none: leave it out",
        )
        self.world = self._world()
        self.protocol = "; ".join(self._protocol())

    def evaluate(self, latents: Float[Tensor, "n *d"], cond: Cond) -> dict[str, float]:
        """Return the metrics of latents made under the evaluation conditions, in their order."""
        return self.measure(self.decode(latents))

    def measure(self, clips: Float[Tensor, "n c f h w"]) -> dict[str, float]:
        """Return the metrics of decoded clips; their share alone where some are not finite: all numbers would be so."""
        broken = float((~clips.flatten(1).isfinite().all(1)).float().mean())
        if broken:
            log.warning("not measured: %.0f %% of the clips are not finite", 100 * broken)
            return {"refused": broken}
        own = motion(clips, fps=self.fps)
        found = {"contrast": float(clips.std()), **_named(own)}
        against = self._judged_by
        if against is not None:
            verdict = weigh(own, against, self.config.limits)
            found |= {"motion_ratio": verdict.energy_ratio, "motion_kept": float(not verdict.mark)}
        if self._clips is not None:
            found |= {one.name: one.value for one in self._clips[0].measure(clips)}
        if self._pictures is not None:
            found |= {one.name: one.value for one in self._pictures.measure(clips)}
        if self.similarity is not None:
            found["clip"] = self.similarity.score(clips, self._prompts(len(clips)))
        return found | (self._in_world(clips) if self.world is not None else {})

    def verdict(self, latents: Float[Tensor, "n *d"], teacher: Float[Tensor, "m *d"]) -> Verdict:
        """Return whether a student's latents keep the motion of a teacher's."""
        return judge(self.decode(latents), self.decode(teacher), self.config.limits, fps=self.fps)

    @property
    def fps(self) -> float:
        """Frames a second of students' clips, as far as is known."""
        return self.config.fps or PER_SECOND

    @cached_property
    def _clips(self) -> tuple[ClipSet, Motion] | None:
        """The reference clips' features, and their motion."""
        if not self.config.clips:
            return None
        seen: list[Motion] = []

        def batches() -> Iterator[Tensor]:
            for batch in clip_batches(self.config.clips, self.clip, self.config.count, self.decode, self.teacher):
                seen.append(motion(batch, fps=self.fps))
                yield batch

        reference = ClipSet(self.space, batches())
        names = ("energy", "speed", "flicker", "brightness", "moves")
        return reference, Motion(*(torch.cat([getattr(part, name) for part in seen]) for name in names))

    @cached_property
    def _pictures(self) -> PictureSet | None:
        config = self.config
        if not config.images:
            return None
        return PictureSet(frame_space(), picture_batches(config.images, self.size, config.count), frames=config.frames)

    @cached_property
    def _judged_by(self) -> Motion | None:
        """The motion that students must keep."""
        if self.teacher_clips is not None:
            return motion(self.teacher_clips(), fps=self.fps)
        return None if self._clips is None else self._clips[1]

    def _world(self) -> Path | None:
        """Return the world the reference is, where prompts are captions of it."""
        found = world_folder(Path(self.config.clips).expanduser()) if self.config.clips else None
        if found is None or self.shown is None:
            return None
        try:
            for prompt in self.shown.prompts:
                read(prompt)
        except UserError:  # one's own prompts: what should move is not known
            return None
        return found

    def _in_world(self, clips: Float[Tensor, "n c f h w"]) -> dict[str, float]:
        """Return how motion differs from the truth, and from captions; shares alone where nothing is seen to move."""
        assert self.world is not None
        truth, prompts = read_truth(self.world), self._prompts(len(clips))
        expected, world = truth.statistics(self.clip, prompts)
        measured = measure((clips.clamp(-1, 1).transpose(1, 2) + 1) / 2, prompts, world.edges == "wrap")
        agrees = agreement(world, measured, prompts)
        found = {"caption_direction": agrees["direction"], "caption_pace": agrees["pace"], "found": 0.0}
        if not measured.found.any():
            return found
        own = statistics(world, measured, prompts)
        apart = compare(own, expected)
        return found | {
            "found": own.found,
            "speed_ratio": own.mean_speed / max(expected.mean_speed, 1e-12),
            "speed_distance": apart["speed_distribution"],
            "direction_distance": apart["direction_distribution"],
        }

    def _prompts(self, n: int) -> list[str]:
        assert self.shown is not None
        return [self.shown.prompt_at(index) for index in range(n)]

    def _protocol(self) -> Sequence[str]:
        config, parts = self.config, [MOTION]
        if config.clips or self.teacher_clips is not None:
            who = "the teacher's clips" if self.teacher_clips is not None else "the reference clips"
            parts.append(f"motion_ratio: motion energy over that of {who}; motion_kept: 1 unless motion is lost by it")
        if config.clips:
            parts.append(f"video: {self.space.protocol}, against at most {config.count} clips of {config.clips}")
        if config.images:
            parts.append(
                f"frame: {frame_space().protocol}, at most {config.frames} frames of a clip against at most "
                f"{config.count} pictures of {config.images}"
            )
        if self.similarity is not None:
            parts.append(f"clip: {self.similarity.protocol}")
        return parts if self.world is None else [*parts, WORLD]


def _named(own: Motion) -> dict[str, float]:
    means = own.means()
    return {
        "motion_energy": means["energy"],
        "speed": means["speed"],
        "dynamic_degree": means["dynamic_degree"],
        "flicker": means["flicker"],
        "brightness_flicker": means["brightness"],
    }
