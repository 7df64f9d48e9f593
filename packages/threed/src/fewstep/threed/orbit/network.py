"""A small network of orbits: diffusers' ``UNet2DConditionModel`` on every view, its self-attention over all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.models.files import check_weights, quiet, read_json, readable
from fewstep.core.networks.backbone import entry
from fewstep.core.networks.timed import UNetBackbone
from fewstep.core.rng import Rng

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

ANGLES = 8  # numbers a view's angles are told in
VIEWS_FILE = "fewstep_views.json"


class JointAttention:
    """Attention over the tokens of all views of a sample, which follow each other in the batch."""

    def __init__(self, views: int, inner: Any) -> None:
        self.views, self.inner = views, inner

    def __call__(self, attn: nn.Module, hidden_states: Float[Tensor, "bv n c"], **given: Any) -> Tensor:
        """Return attention's output, shaped like its input."""
        joint = hidden_states.reshape(len(hidden_states) // self.views, -1, hidden_states.shape[-1])
        out: Tensor = self.inner(attn, joint, **given)
        return out.reshape(hidden_states.shape)


class OrbitUNet(UNetBackbone):
    """Views "b v c h w" denoised together; the picture's latent is appended to each, and its pixels are attended to.

    Reads ``image``, ``azimuth`` and ``polar``. Unconditional is a picture of zeros, as in SVD.
    """

    lora_targets: tuple[str, ...] = (
        "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "time_emb_proj",
    )  # fmt: skip

    def __init__(self, unet: UNet2DConditionModel, views: int) -> None:
        super().__init__()
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.unet, self.views, self.extra_inputs = unet, views, None
        plain = AttnProcessor2_0()
        unet.set_attn_processor(
            {name: JointAttention(views, plain) if ".attn1." in name else plain for name in unet.attn_processors}
        )

    @classmethod
    def make(
        cls, channels: int, size: int, views: int, *, widths: Sequence[int] = (64, 96), heads: int = 4, seed: int = 0
    ) -> OrbitUNet:
        """Return an untrained network for ``views`` latents "channels size size"."""
        from diffusers import UNet2DConditionModel

        with Rng(seed, 0, ()).network_noise("init"):
            unet = UNet2DConditionModel(
                sample_size=size,
                in_channels=2 * channels,
                out_channels=channels,
                down_block_types=("CrossAttnDownBlock2D",) * len(widths),
                up_block_types=("CrossAttnUpBlock2D",) * len(widths),
                block_out_channels=tuple(widths),
                layers_per_block=1,
                cross_attention_dim=channels,
                attention_head_dim=heads,
                norm_num_groups=8,
                class_embed_type="projection",
                projection_class_embeddings_input_dim=ANGLES,
            )
        return cls(unet, views)

    def forward(self, x: Float[Tensor, "b v c h w"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the raw output, shaped like ``x``; UserError for another number of views or a missing entry."""
        who = type(self).__name__
        views = x.shape[1]
        check(views == self.views, f"{who}: {views} views, and this network was made for {self.views}")
        image = entry(cond, "image", who).to(x.dtype)
        joined = torch.cat([x, image[:, None].expand_as(x)], 2).flatten(0, 1)
        tokens = image.flatten(2).mT.repeat_interleave(views, 0)
        angles = view_angles(entry(cond, "azimuth", who), entry(cond, "polar", who)).flatten(0, 1).to(x.dtype)
        # ln(sigma) / 4 lies within a few units: the sinusoids are made for hundreds
        times = (1000 * time).repeat_interleave(views)
        with self.adding_extras({k: v.repeat_interleave(views, 0) for k, v in cond.items() if k in self.extras}):
            out: Tensor = self.unet(
                joined, times, encoder_hidden_states=tokens, class_labels=angles, return_dict=False
            )[0]
        return out.reshape(x.shape)

    def null(self, cond: Cond) -> Cond:
        """Return the condition with a picture of zeros."""
        return dict(cond) | {"image": torch.zeros_like(entry(cond, "image", type(self).__name__))}

    def save(self, folder: Path) -> None:
        """Write the UNet as diffusers does, and beside it the number of views; UserError with extra inputs."""
        check(not self.extras, f"extra inputs {', '.join(self.extras)} are not saved with a network of orbits")
        self.unet.save_pretrained(folder, safe_serialization=True)
        (folder / VIEWS_FILE).write_text(json.dumps({"views": self.views}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> OrbitUNet:
        """Return the network saved in a folder, in float32; UserError when there is none."""
        from diffusers import UNet2DConditionModel

        check((folder / VIEWS_FILE).is_file(), f"{folder}: no {VIEWS_FILE} there; give a folder an orbit's net is in")
        views = read_json(folder / VIEWS_FILE).get("views")
        if not isinstance(views, int) or views < 2:
            raise UserError(f"{folder / VIEWS_FILE}: 'views' must be a number of views, got {views!r}")
        check_weights(folder)
        with quiet(), readable(folder, "UNet2DConditionModel"):
            unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        return cls(unet.float().eval(), views)


def view_angles(azimuth: Float[Tensor, "b v"], polar: Float[Tensor, "b v"]) -> Float[Tensor, "b v 8"]:
    """Return smooth features of a view's angles, the same a full turn later."""
    turns = [f(k * azimuth) for k in (1, 2, 3) for f in (torch.sin, torch.cos)]
    return torch.stack([*turns, polar.sin(), polar.cos()], -1)
