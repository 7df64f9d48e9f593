"""How samples of a text-to-image student are measured: in pixels, against the data's pictures where there are some."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.image.clip import ClipScore
from fewstep.core.image.data import DataConfig, load_data
from fewstep.core.image.settings import ImageConfig
from fewstep.core.image.spaces import feature_space, pixel_space
from fewstep.core.image.text_data import TextData
from fewstep.core.metrics.measure import Reference
from fewstep.core.models.loading import Teacher

REFERENCES = 1000
DIGITS = (
    "decoded pictures shrunk to 8x8 and gray, in the 64 penultimate activations of a small classifier shipped with "
    "fewstep-core, against scikit-learn's digits"
)
PICTURES = f"in principal components of the decoded pixels, against central crops of at most {REFERENCES} pictures"


class TextMetrics:
    """Metrics of latents, each with its protocol in ``protocol``; they are decoded first."""

    def __init__(
        self, config: ImageConfig, data: TextData, teacher: Teacher, decode: Callable[[Tensor], Tensor]
    ) -> None:
        self.config, self.data, self.teacher, self.decode = config, data, teacher, decode
        self.clip = ClipScore(config.clip) if config.clip else None
        self._reference: Reference | None = None
        parts = ["contrast: standard deviation of the decoded pixels in [-1, 1]"]
        if data.pictures is not None:
            parts.append(f"others: {DIGITS if config.data.source == 'digits' else PICTURES}")
        if self.clip is not None:
            parts.append(self.clip.protocol)
        self.protocol = "; ".join(parts)

    def evaluate(self, latents: Tensor, cond: Cond) -> dict[str, float]:
        """Return the metrics of latents "n *d" made under the data's evaluation conditions, in their order."""
        pixels = self.decode(latents)
        found: dict[str, float] = {}
        reference = self._measured_against()
        if reference is not None:
            fitting = self._like_reference(pixels)
            labels = cond["label"].cpu() if "label" in cond else None
            measured = reference.measure(fitting, labels, neighbours=self.config.neighbours)
            found |= {one.name: one.value for one in measured}
        if self.clip is not None:
            found["clip"] = self.clip.score(pixels, [self.data.shown.prompt_at(i) for i in range(len(pixels))])
        return found | {"contrast": float(pixels.std())}

    def _like_reference(self, pixels: Float[Tensor, "n c h w"]) -> Tensor:
        if self.config.data.source != "digits":
            return pixels
        gray = pixels.clamp(-1, 1).mean(1, keepdim=True)
        return torch.nn.functional.interpolate(gray, (8, 8), mode="area")

    def _measured_against(self) -> Reference | None:
        if self._reference is None and self.data.pictures is not None:
            if self.config.data.source == "digits":
                digits = load_data(DataConfig(source="digits", holdout=self.config.data.holdout))
                self._reference = Reference(feature_space("digits", digits), digits.reference, digits.labels)
            else:
                pixels = self.data.reference(self.teacher, REFERENCES)
                self._reference = Reference(pixel_space(pixels, self.data.about), pixels)
        return self._reference
