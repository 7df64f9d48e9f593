"""The motion of a clip by configuration, and the consistency loss taken on it (MCM, arXiv 2406.06890)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.losses.trajectory import DistanceName, consistency_loss
from fewstep.video.motion.bands import BandConfig, high_band, low_band
from fewstep.video.motion.correlation import global_correlation, local_correlation
from fewstep.video.motion.differences import frame_difference, lagged_difference
from fewstep.video.motion.head import MotionHeadConfig

MotionKind = Literal[
    "raw",
    "difference",
    "lagged",
    "low",
    "high",
    "global_correlation",
    "scaled_correlation",
    "local_correlation",
]

Represent = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """What of a clip counts as its motion.

    ``kind``: the clip itself (``raw``), differences of neighbouring frames or of frames ``lag`` apart, a band of
    frequencies (``bands``), or correlations of neighbouring frames: with all places, the same times the square root of
    the height, or with those at most ``radius`` away. ``head``: a learned network after it, on kinds that are clips.
    """

    kind: MotionKind = "raw"
    lag: int = 2
    radius: int = 7
    bands: BandConfig = BandConfig()
    head: MotionHeadConfig = MotionHeadConfig()

    def __post_init__(self) -> None:
        check(self.lag >= 1, f"motion.lag must be at least 1, got {self.lag}")
        check(self.radius >= 0, f"motion.radius must not be negative, got {self.radius}")
        check(
            self.head.layers == 0 or not self.kind.endswith("correlation"),
            f"motion.head works on clips and motion.kind '{self.kind}' gives none: set head.layers to 0",
        )


def represent(clip: Float[Tensor, "b c f h w"], config: MotionConfig) -> Float[Tensor, "b *d"]:
    """Return the motion of a clip, without the learned head; UserError for a clip too short to have any."""
    kind = config.kind
    if kind == "difference":
        return frame_difference(clip)
    if kind == "lagged":
        return lagged_difference(clip, config.lag)
    if kind in ("low", "high"):
        return (low_band if kind == "low" else high_band)(clip, config.bands)
    if kind == "local_correlation":
        return local_correlation(clip, config.radius)
    if kind == "raw":
        return clip
    found = global_correlation(clip)
    return found * clip.shape[3] ** 0.5 if kind == "scaled_correlation" else found


def motion_consistency_loss(
    prediction: Float[Tensor, "b c f h w"],
    target: Float[Tensor, "b c f h w"],
    config: MotionConfig,
    *,
    head: Represent | None = None,
    target_head: Represent | None = None,
    weight: Float[Tensor, " b"] | None = None,
    distance: DistanceName = "huber_element",
    c: float | None = None,
) -> Float[Tensor, " b"]:
    """Return ``d(h(phi(prediction)), stopgrad h'(phi(target)))`` per sample (arXiv 2406.06890).

    ``phi`` is the representation of ``config``, ``h`` and ``h'`` the learned heads, the identity where there is none.
    ``distance``, ``c``: see :func:`~fewstep.core.losses.trajectory.consistency_loss`; MCM has ``huber_element`` with
    0.001, a mean over all elements.
    """
    ours, theirs = represent(prediction, config), represent(target.detach(), config)
    ours = ours if head is None else head(ours)
    theirs = theirs if target_head is None else target_head(theirs)
    return consistency_loss(ours, theirs, weight=weight, distance=distance, c=c)
