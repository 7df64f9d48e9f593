"""Settings of score distillation without a fake score, and which of them belong to which variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewstep.core.annealed import Scalar, check_annealed, ends_of
from fewstep.core.errors import check
from fewstep.core.losses.integral import Normalizer, SDSWeight
from fewstep.core.recipes.rollout import StudentConfig
from fewstep.core.times import TimeConfig

Variant = Literal["sds", "x0", "sjc", "csd", "asd", "ism", "nfsd", "sdi"]


@dataclass(frozen=True, kw_only=True)
class IntervalConfig:
    """How ISM (arXiv 2311.11284) makes its two states; lengths are fractions of the noise levels.

    The less noisy one lies ``delta`` below the time drawn, ``delta_start`` at first and less over ``warmup`` steps. It
    is reached by DDIM inversion without the prompt, in strides of ``stride`` from where the sample is noised,
    ``inversions`` strides below (0: it is the noised sample itself). ``offset_noise``: of one number per channel, added
    to that noise. ``factor``: on the gradient.
    """

    delta: float = 0.05
    delta_start: float = 0.1
    warmup: int = 1500
    stride: float = 0.2
    inversions: int = 5
    offset_noise: float = 0.1
    factor: float = 0.1

    def __post_init__(self) -> None:
        for name in ("delta", "delta_start", "stride"):
            value = getattr(self, name)
            check(0 < value < 1, f"ism.{name} is a fraction of the noise levels in (0, 1), got {value:g}")
        for name in ("warmup", "inversions", "offset_noise", "factor"):
            value = getattr(self, name)
            check(value >= 0, f"ism.{name} must not be negative, got {value:g}")

    def delta_at(self, step: int) -> float:
        """Return the distance between the two states at ``step``."""
        left = max(1 - step / self.warmup, 0.0) if self.warmup > 0 else 0.0
        return self.delta + left * (self.delta_start - self.delta)


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """How SDI (arXiv 2405.15891) finds its noise: by inverting the sample in ``steps`` DDIM steps.

    ``guidance_scale``: of the inversion; the paper's -7.5 is of ``cond + w (cond - uncond)``. ``eta``: share of fresh
    noise. ``overshoot``: the inversion goes on for up to this fraction of the noise levels beyond the time drawn.
    """

    steps: int = 10
    guidance_scale: float = -6.5
    eta: float = 0.3
    overshoot: float = 0.1

    def __post_init__(self) -> None:
        check(self.steps >= 1, f"sdi.steps must be at least 1, got {self.steps}")
        check(0 <= self.eta <= 1, f"sdi.eta must lie in [0, 1], got {self.eta:g}")
        check(0 <= self.overshoot < 1, f"sdi.overshoot must lie in [0, 1), got {self.overshoot:g}")


@dataclass(frozen=True, kw_only=True)
class SDSConfig(StudentConfig):
    """Settings of SDS and its relatives.

    ``variant``: along what samples move.
    ``sds``: ``eps_guided - noise``. ``x0``: ``x - x0_guided`` (arXiv 2308.16512; there with ``rescale`` 0.5, which
    pulls the guided prediction's spread back to the unguided one's, taken over the ``views`` of one object, neighbours
    in the batch). ``sjc``: ``eps_guided - noise`` in variance-exploding form (arXiv 2212.00774), ``eps_guided`` itself
    when not ``variance_reduced``. ``csd``: ``eps_cond - eps_uncond`` (arXiv 2310.19415); with ``negative_share`` s a
    share s of the reference is the negative prompt's and 1 - s the empty one's (there ``[0, 0, 1, 5000]``). ``asd``:
    ``eps_guided - eps_cond`` at a noisier time (arXiv 2407.02040; ``asd_ratio`` is how much noisier). ``ism``: between
    two states of one inversion, ``ism``; there ``time`` is ``{high_end: 0.5, anneal_steps: 1500, shared: true}``.
    ``nfsd``: ``eps_guided - eps_negative`` (arXiv 2310.17590), ``eps_guided`` below the fraction ``nfsd_split`` of the
    noise levels. ``sdi``: as ``x0`` at a state whose noise is the sample's own, found by inversion, ``sdi``; there
    ``guidance_scale`` 8.5 and ``time`` from 0.98 down to 0.25.

    ``guidance_scale``: in the convention ``uncond + s (cond - uncond)``: DreamFusion's 100 in threestudio means 101.
    Numbers that are annealed are written ``[start, from, to, end]``. Negative prompts and Perp-Neg come with the
    condition (:mod:`fewstep.core.guidance`). ``weight``: on the difference, per noise level; by default ``sigma2`` on
    differences of noises (``sds``, ``csd``, ``asd``, ``nfsd``) and ``uniform`` on the others. ``normalizer``: divides
    by how far the guided teacher's clean sample is, plus 0.1 (arXiv 2503.21694, there of ``asd`` with weight ``tau``):
    ``noisy`` its sample at ``x_t``, ``clean`` what the released code takes for it. ``time``: its range may be annealed,
    which sharpens results. ``reduction``: ``sum`` gives the gradient of the papers per element, ``mean`` that divided
    by their number.
    """

    variant: Variant = "sds"
    guidance_scale: Scalar = 7.5
    weight: SDSWeight | None = None
    time: TimeConfig = TimeConfig()
    asd_ratio: float = 0.1
    rescale: float = 0.0
    views: int = 1
    variance_reduced: bool = True
    negative_share: Scalar | None = None
    ism: IntervalConfig = IntervalConfig()
    nfsd_split: float = 0.2
    sdi: InversionConfig = InversionConfig()
    normalizer: Normalizer = "none"
    reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.asd_ratio >= 0, f"asd_ratio must not be negative, got {self.asd_ratio:g}")
        check(0 <= self.rescale <= 1, f"rescale must lie in [0, 1], got {self.rescale:g}")
        check(self.views >= 1, f"views must be at least 1, got {self.views}")
        check(0 <= self.nfsd_split <= 1, f"nfsd_split must lie in [0, 1], got {self.nfsd_split:g}")
        check_annealed("guidance_scale", self.guidance_scale)
        if self.negative_share is not None:
            check_annealed("negative_share", self.negative_share)
            inside = all(0 <= share <= 1 for share in ends_of(self.negative_share))
            check(inside, f"negative_share must lie in [0, 1], got {self.negative_share}")
        for name, variant in _OWN.items():
            given = getattr(self, name) != getattr(SDSConfig, name)
            check(not given or self.variant == variant, f"{name} belongs to variant '{variant}', not '{self.variant}'")
        check(
            self.views == 1 or self.rescale > 0, "views groups samples for rescale: give rescale too, or leave it out"
        )

    def weight_name(self) -> SDSWeight:
        """Return the weight in force."""
        own: SDSWeight = "sigma2" if self.variant in ("sds", "csd", "asd", "nfsd") else "uniform"
        return own if self.weight is None else self.weight


_OWN: dict[str, Variant] = {
    "asd_ratio": "asd",
    "rescale": "x0",
    "variance_reduced": "sjc",
    "negative_share": "csd",
    "ism": "ism",
    "nfsd_split": "nfsd",
    "sdi": "sdi",
}
"""Settings that one variant alone reads."""
