"""Image to video: any video family's network, told the first frames of the clip beside the noisy latents."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fewstep.core.denoiser import Cond, NetworkDenoiser, Plain
from fewstep.core.errors import check
from fewstep.core.models.backbone import PipelineBackbone
from fewstep.core.models.family import Family
from fewstep.core.models.loading import Teacher
from fewstep.core.networks.given import GIVEN, MASK, join_given, told_channels
from fewstep.core.networks.widening import widen_input


class GivenFramesBackbone(PipelineBackbone):
    """A video network that reads ``cond["given"]``: latents of leading frames, "b c g h w", g from 0 to all.

    With ``cond["given_mask"]`` "b f" the number differs between samples (:mod:`fewstep.core.networks.given`).
    The network's first layer is widened unless it is so already, and predicts what it did before until it is trained.
    Without a prompt, the given frames stay: guidance is between texts.
    """

    def __init__(self, network: nn.Module, family: Family, null_cond: Cond | None, guidance: float = 1.0) -> None:
        check(bool(family.input_layer), f"a {family.name} model cannot be told the first frames of a clip")
        base = family.channels(network.config)  # type: ignore[arg-type]
        widen_input(network, family.input_layer, told_channels(base), base)
        super().__init__(network, family, null_cond, guidance)
        # without factors there, nothing of the frames would reach a network widened a moment ago
        self.lora_targets = (family.input_layer, *family.lora_targets)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return the prediction, shaped like ``x``; UserError when the condition lacks an entry."""
        text = {name: value for name, value in cond.items() if name not in (GIVEN, MASK)}
        return super().forward(join_given(x, cond, type(self).__name__), time, text)


@dataclass
class ImageToVideoTeacher(Teacher):
    """A text-to-video pipeline, or one written from a run of this kind, as a teacher told its first frames."""

    def reads(self, network: nn.Module, null: Cond | None) -> NetworkDenoiser:
        """Return any network of this family, widened, read through the pipeline's process."""
        process, kind = self.reading()
        return NetworkDenoiser(GivenFramesBackbone(network, self.family, null, self.guidance), process, Plain(kind))
