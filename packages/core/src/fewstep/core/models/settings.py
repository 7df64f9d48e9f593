"""How a pipeline teacher is opened; a part of the domains' settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewstep.core.errors import check
from fewstep.core.models.family import Size
from fewstep.core.models.loading import DtypeName, Teacher

Part = Literal["teacher", "vae"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A diffusers pipeline as the teacher; unused when the teacher is none.

    ``height``, ``width``, ``frames``: of what is made (0: the pipeline's own). ``dtype``: of weights that do not train;
    those that do are float32. ``guidance``: the scale a guidance-distilled model is told (Flux: 3.5), teacher and
    student alike. ``negative_prompt``: the unconditional prompt (null: the pipeline's own). ``revision``, ``variant``:
    of a hub repository and of its weight files. ``offload``: parts kept in the CPU's memory while they are not used:
    the ``vae``, a frozen ``teacher`` that shares no weights with trained roles.
    """

    height: int = 0
    width: int = 0
    frames: int = 0
    dtype: DtypeName = "fp32"
    guidance: float = 1.0
    negative_prompt: str | None = None
    revision: str = ""
    variant: str = ""
    offload: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        sides = (self.height, self.width, self.frames)
        check(min(sides) >= 0, "domain.model.height, width and frames must not be negative")
        check((self.height > 0) == (self.width > 0), "domain.model.height and domain.model.width belong together")


def open_teacher(name: str, model: ModelConfig, *, weights: bool = True, kind: type[Teacher] = Teacher) -> Teacher:
    """Return a teacher by name, opened as a config says; UserError for what is no readable pipeline.

    ``weights``: whether a hub's are downloaded, too; ``kind``: how its network is read.
    """
    found = kind.find(
        name,
        revision=model.revision,
        variant=model.variant,
        guidance=model.guidance,
        negative=model.negative_prompt,
        weights=weights,
    )
    own = found.size
    check(model.frames == 0 or found.family.media == "video", "domain.model.frames: this teacher makes images")
    found.size = Size(model.height or own.height, model.width or own.width, model.frames or own.frames)
    return found
