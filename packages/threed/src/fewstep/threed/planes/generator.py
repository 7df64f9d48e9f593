"""A U-Net that makes six planes of a prompt, with what turns its latents into fields."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser
from fewstep.core.errors import UserError, check
from fewstep.core.networks.backbone import entry
from fewstep.core.networks.timed import TimedBackbone
from fewstep.threed.planes.adapting import PLANES
from fewstep.threed.planes.field import FieldConfig, FieldHeads, PlaneField

PROMPT, TOKENS = "prompt_embeds", "tokens"
WEIGHTS_FILE = "planes.safetensors"


class PlaneGenerator(TimedBackbone):
    """A conditional U-Net over samples "b 6 c h w"; :meth:`field` decodes what it predicts.

    unet: a diffusers ``UNet2DConditionModel``, usually of :func:`fewstep.threed.planes.adapting.adapt`.  decoder: from
    latents to feature planes.  words: embeds cond["tokens"]; without it the U-Net reads cond["prompt_embeds"].
    place: "6 c h w", added to the input: a fresh U-Net cannot tell one plane, or one end of it, from the other.
    """

    def __init__(
        self,
        unet: nn.Module,
        decoder: nn.Module,
        features: int,
        config: FieldConfig,
        *,
        words: nn.Module | None = None,
        place: Float[Tensor, "6 c h w"] | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.decoder, self.words, self.config = unet, decoder, words, config
        self.heads = FieldHeads(features, config)
        self.place = None if place is None else nn.Parameter(place)
        self.extra_inputs = None

    @property
    def network(self) -> nn.Module:
        """The U-Net."""
        return self.unet

    @property
    def time_embedding(self) -> Any:
        """The U-Net's time embedding."""
        return cast(Any, self.unet).time_embedding

    @property
    def time_features(self) -> Callable[[Tensor], Tensor]:
        """The U-Net's sinusoids."""
        return cast(Callable[[Tensor], Tensor], cast(Any, self.unet).time_proj)

    def forward(self, x: Float[Tensor, "b 6 c h w"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the raw output, shaped like ``x``; UserError for a sample of other planes or a condition without text.

        Conditions are repeated plane by plane, so that the six of one object follow each other with its own prompt.
        """
        check(x.ndim == 5 and x.shape[1] == PLANES, f"a sample of planes is [b, 6, c, h, w], got {list(x.shape)}")
        if self.words is None:
            text = entry(cond, PROMPT, type(self).__name__).to(x.dtype)
        else:
            text = self.words(entry(cond, TOKENS, type(self).__name__)).to(x.dtype)
        extras = {name: cond[name].repeat_interleave(PLANES, 0) for name in self.extras if name in cond}
        placed = x if self.place is None else x + self.place
        with self.adding_extras(extras):
            out: Tensor = self.unet(
                placed.flatten(0, 1),
                time.repeat_interleave(PLANES, 0),
                encoder_hidden_states=text.repeat_interleave(PLANES, 0),
                return_dict=False,
            )[0]
        return out.reshape(x.shape)

    def planes(self, z: Float[Tensor, "b 6 c h w"]) -> Float[Tensor, "b 6 d hh ww"]:
        """Return the feature planes of clean latents."""
        return cast(Tensor, self.decoder(z))

    def field(self, z: Float[Tensor, "b 6 c h w"]) -> PlaneField:
        """Return the fields of clean latents."""
        return PlaneField(self.planes(z), self.heads, self.config)

    def save(self, folder: Path) -> None:
        """Write all weights as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.detach().contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS_FILE
        )


def generator_of(student: Denoiser) -> PlaneGenerator:
    """Return the network of a student that makes planes; UserError for another."""
    network = student.backbone if isinstance(student, NetworkDenoiser) else None
    if not isinstance(network, PlaneGenerator):
        raise UserError("recipe 'prd' trains a generator of planes, and this domain's student is none")
    return network
