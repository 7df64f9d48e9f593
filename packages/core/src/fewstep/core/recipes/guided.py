"""A guided teacher as trajectory methods use one: at a fixed scale, or at drawn scales that the student is told."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import check
from fewstep.core.guidance import Guided
from fewstep.core.prediction import check_kind
from fewstep.core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class TeacherGuidance:
    """``uncond + guidance_scale (cond - uncond)``; papers that write ``cond + w (cond - uncond)`` have scale w + 1.

    ``guidance_max``: with it, each sample is taught at a scale drawn from [guidance_scale, guidance_max], which the
    student gets as an extra input (arXiv 2210.03142; LCM, 2310.04378). ``sample_guidance``: the scale a student of a
    range samples at (default: the middle).
    """

    guidance_scale: float = 1.0
    guidance_max: float | None = None
    sample_guidance: float | None = None

    def __post_init__(self) -> None:
        high = self.guidance_max
        check(
            high is None or high > self.guidance_scale,
            f"guidance_max must exceed guidance_scale ({self.guidance_scale:g}), got {high}",
        )
        check(high is not None or self.sample_guidance is None, "sample_guidance needs a range: set guidance_max")

    def extras(self) -> tuple[str, ...]:
        """Return the extra inputs of the student."""
        return () if self.guidance_max is None else ("guidance",)

    def teacher(self, teacher: Denoiser) -> Denoiser:
        """Return the teacher under guidance; it reads the scale from the condition when there is a range."""
        return Guided(teacher, self.guidance_scale if self.guidance_max is None else "guidance")

    def condition(self, cond: Cond, rng: Rng) -> Cond:
        """Return the condition with a drawn scale per sample (unchanged when the scale is fixed)."""
        if self.guidance_max is None:
            return cond
        scale = self.guidance_scale + rng.uniform("guidance") * (self.guidance_max - self.guidance_scale)
        return dict(cond) | {"guidance": scale}

    def plan_extras(self) -> dict[str, float]:
        """Return what a plan tells the student at every step."""
        if self.guidance_max is None:
            return {}
        middle = (self.guidance_scale + self.guidance_max) / 2
        return {"guidance": middle if self.sample_guidance is None else self.sample_guidance}


def check_sees_data(denoiser: Denoiser, t: float | None = None) -> None:
    """Raise UserError when a network says nothing of x0 at ``t`` (None: the greatest noise): eps where alpha is 0."""
    if isinstance(denoiser, NetworkDenoiser) and isinstance(denoiser.scaling, Plain):
        check_kind(denoiser.process, denoiser.scaling.kind, denoiser.process.t_max if t is None else t)
