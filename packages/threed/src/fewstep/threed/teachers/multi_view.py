"""Networks that see several views of an object at once, each told its camera (MVDream's kind, arXiv 2308.16512)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.models.sd import StableDiffusion
from fewstep.core.networks.backbone import entry
from fewstep.core.networks.timed import TimedBackbone
from fewstep.threed.orbit.network import JointAttention
from fewstep.threed.teachers.backbone import CAMERA, CAMERA_NUMBERS


class CameraDiffusion(StableDiffusion):
    """Stable Diffusion whose U-Net is told a camera's 16 numbers as its class embedding of type ``projection``.

    MVDream's networks are of this form: a linear layer, SiLU and a linear layer, added to the embedded time.
    """

    name: ClassVar[str] = "sd-camera"

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the U-Net's prediction."""
        out: Tensor = network(
            x,
            time,
            encoder_hidden_states=entry(cond, "prompt_embeds", "the U-Net"),
            class_labels=entry(cond, CAMERA, "the U-Net"),
            return_dict=False,
        )[0]
        return out


def told_cameras(unet_config: dict[str, Any]) -> bool:
    """Return whether a U-Net of this configuration is told cameras."""
    numbers = unet_config.get("projection_class_embeddings_input_dim")
    return unet_config.get("class_embed_type") == "projection" and numbers == CAMERA_NUMBERS


class JointBackbone(TimedBackbone):
    """A network of single views that sees ``views`` of them "b v c h w" at once.

    Every self-attention of the transformer blocks of its network, a diffusers ``UNet2DConditionModel``, gets the tokens
    of a sample's views as one sequence; all else runs view by view. cond["camera"] is "b v 16", other entries have one
    row per sample. The network itself is changed; with one view nothing is.
    """

    def __init__(self, inner: TimedBackbone, views: int) -> None:
        super().__init__()
        check(views >= 1, f"a joint network sees one view or more, got {views}")
        self.inner, self.views, self.extra_inputs = inner, views, None
        self.lora_targets = inner.lora_targets
        unet: Any = inner.network
        processors = unet.attn_processors
        unet.set_attn_processor(
            {name: JointAttention(views, each) if ".attn1." in name else each for name, each in processors.items()}
        )

    @property
    def network(self) -> nn.Module:
        """The diffusers UNet."""
        network: nn.Module = self.inner.network
        return network

    @property
    def time_embedding(self) -> Any:
        """The UNet's time embedding."""
        return self.inner.time_embedding

    @property
    def time_features(self) -> Callable[[Tensor], Tensor]:
        """The UNet's sinusoids."""
        features: Callable[[Tensor], Tensor] = self.inner.time_features
        return features

    def forward(self, x: Float[Tensor, "b v *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the raw output, shaped like ``x``; UserError for another number of views or a missing entry."""
        who, views = type(self).__name__, x.shape[1]
        check(views == self.views, f"{who}: {views} views, and this network was made for {self.views}")
        camera = entry(cond, CAMERA, who)
        told = {name: value.repeat_interleave(views, 0) for name, value in cond.items()}
        told[CAMERA] = camera.flatten(0, 1)
        with self.adding_extras({name: told[name] for name in self.extras if name in told}):
            out: Tensor = self.inner(x.flatten(0, 1), time.repeat_interleave(views), told)
        return out.reshape(x.shape)

    def null(self, cond: Cond) -> Cond:
        """Return the condition of the empty prompt; cameras stay."""
        return self.inner.null(cond)

    def taps(self, where: str = "bottleneck") -> tuple[str, ...]:
        """Return the taps of the network of single views; a sample's views are rows of their own there."""
        return tuple(f"inner.{path}" for path in self.inner.taps(where))

    def blocks(self) -> tuple[str, ...]:
        """Return the network's blocks."""
        return self.inner.blocks()

    def kept(self) -> tuple[str, ...]:
        """Return the parts whose activations diffusers' checkpointing would keep."""
        return self.inner.kept()

    def save(self, folder: Path) -> None:
        """Write the network of single views; how many it sees is not in it."""
        self.inner.save(folder)
