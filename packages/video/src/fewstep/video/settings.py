"""Settings of the video domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewstep.core.errors import check
from fewstep.core.models.settings import ModelConfig
from fewstep.core.networks.roles import RolesConfig
from fewstep.video.evaluation import EvaluationConfig
from fewstep.video.reading.sampling import ClipConfig, Short
from fewstep.video.watching.watch import WatchConfig


@dataclass(frozen=True, kw_only=True)
class VideoDataConfig:
    """Where samples come from: a file of ``prompts``, captioned ``clips``, or a folder that was ``prepared``.

    Prompts are for methods that need no clips. Clips are read, cut and encoded while training, each epoch anew; what
    `fewstep video prepare` wrote has that behind it. ``path``: the file or folder; ``column``: of captions in a table;
    ``prompts``: some in the config itself, instead. Of clips: ``fps`` a second or every ``interval``-th frame,
    ``start``, ``short`` (videos with too few frames), ``crop``, ``flip``, ``reader`` and ``max_bad_share`` (of damaged
    files, above which a run stops) are those of `prepare`.
    """

    source: Literal["prompts", "clips", "prepared"] = "prompts"
    path: str = ""
    column: str = ""
    prompts: tuple[str, ...] = ()
    fps: float = 0.0
    interval: int = 1
    start: Literal["random", "first", "centre"] = "random"
    short: Short = "skip"
    crop: Literal["random", "centre"] = "centre"
    flip: bool = False
    reader: Literal["auto", "av", "decord"] = "auto"
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        given = bool(self.path), bool(self.prompts)
        check(any(given), f"domain.data.path is missing: source={self.source} needs it")
        check(not all(given), "domain.data.path and domain.data.prompts: give one of the two")
        check(not self.prompts or self.source == "prompts", "domain.data.prompts belongs to source=prompts")
        check(0 <= self.max_bad_share <= 1, f"domain.data.max_bad_share must be in [0, 1], got {self.max_bad_share:g}")
        self.clips((1, 1), 1)  # refuses what is out of range

    def clips(self, size: tuple[int, int], frames: int) -> ClipConfig:
        """Return how clips of ``size`` (height, width) and so many frames are cut."""
        cut = {name: getattr(self, name) for name in ("fps", "interval", "start", "short", "crop", "flip")}
        return ClipConfig(frames=frames, size=size, **cut)


@dataclass(frozen=True, kw_only=True)
class ImageSetConfig:
    """Pictures that frames are to look like, for recipes that judge single frames.

    ``path``: a folder of images (empty: none); they are resized until a frame just fits, and cropped at random.
    ``each``: pictures per clip of a batch. ``max_bad_share``: share of unreadable files that stops a run.
    """

    path: str = ""
    each: int = 2
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        check(self.each >= 1, f"domain.images.each must be at least 1, got {self.each}")
        check(
            0 <= self.max_bad_share <= 1, f"domain.images.max_bad_share must be in [0, 1], got {self.max_bad_share:g}"
        )


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """The video domain.

    ``teacher``: a text-to-video pipeline: the shipped ``world``, a folder with ``model_index.json``, a hub id, or
    ``tiny:wan`` and the like for random weights. ``images``: how frames are to look, where that is not how the clips
    look. ``captions``: what tells the frame discriminator the captions of clips and pictures: a CLIP text model, a
    folder or a hub id, or ``teacher``, whose own text encoder does (empty: it is told none;
    ``recipe.appearance.discriminator.caption`` is the width). ``given_frames``: latent frames, at most, that a network
    is told of a clip's beginning (0: text to video); ``given_none``: the share of clips that begin from text alone.
    ``evaluation``: what students are measured against. ``watch``: what is done about a collapse. ``fps``: of previews.
    ``eval_prompts``: a file of prompts to look at students under (empty: those of the data).
    """

    teacher: str = ""
    model: ModelConfig = ModelConfig()
    data: VideoDataConfig
    images: ImageSetConfig = ImageSetConfig()
    captions: str = ""
    given_frames: int = 0
    given_none: float = 0.0
    evaluation: EvaluationConfig = EvaluationConfig()
    watch: WatchConfig = WatchConfig()
    fps: float = 8.0
    roles: RolesConfig = RolesConfig()
    eval_prompts: str = ""

    def __post_init__(self) -> None:
        check(0 < self.fps <= 240, f"domain.fps must be in (0, 240], got {self.fps:g}")
        check(self.given_frames >= 0, f"domain.given_frames must not be negative, got {self.given_frames}")
        check(0 <= self.given_none < 1, f"domain.given_none must lie in [0, 1), got {self.given_none:g}")
        check(
            self.given_frames > 0 or self.given_none == 0, "domain.given_none is a share of clips that are given frames"
        )
        check(bool(self.teacher), "domain.teacher is missing: name a folder, a hub id, or tiny:wan")
