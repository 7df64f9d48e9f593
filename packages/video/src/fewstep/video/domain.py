"""The plug-in of the video domain: it is listed by the command line and has no recipes yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fewstep.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from fewstep.core.recipe import RoleSpec

NO_RECIPES = "fewstep-video: installed, no recipes yet; `fewstep list` shows the domains that have some"


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Settings of the video domain: none so far."""


class VideoDomain:
    """Few-step distillation for video diffusion models: the name is there, the recipes are not."""

    name = "video"
    summary = "video diffusion models: installed, no recipes yet"
    config_type = VideoConfig
    configs = Path(__file__).parent / "configs"

    def build(self, config: Any, specs: Sequence[RoleSpec], seed: int, device: torch.device | str) -> NoReturn:
        """Raise UserError: this domain builds nothing yet."""
        raise UserError(NO_RECIPES)

    def process(self, config: Any) -> NoReturn:
        """Raise UserError: this domain has no teacher yet."""
        raise UserError(NO_RECIPES)


DOMAIN = VideoDomain()
