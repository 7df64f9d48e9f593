"""Image networks: diffusers' ``UNet2DModel``, unconditional or class-conditional, with extra inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.networks.backbone import entry, join_channels, null_label
from fewstep.core.networks.timed import UNetBackbone
from fewstep.core.rng import Rng

if TYPE_CHECKING:
    from diffusers import UNet2DModel

INPUTS_FILE = "fewstep_inputs.json"
EXTRAS_FILE = "fewstep_extras.safetensors"


class UNet2DBackbone(UNetBackbone):
    """A diffusers ``UNet2DModel`` behind a denoiser; images are "b c h w".

    A UNet with class embeddings needs cond["label"]; with ``null_class`` its last embedding is the unconditional class.
    ``concat``: condition entries of image shape that are appended to the input's channels (``anchor``, ``image``).
    Extra inputs are added to the output of the UNet's public ``time_embedding`` module, so the UNet itself stays one
    that stock diffusers loads. Raises UserError when the UNet's configuration and these settings disagree.
    """

    lora_targets: tuple[str, ...] = (
        "to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj", "conv_shortcut", "linear_1", "linear_2",
    )  # fmt: skip

    def __init__(self, unet: UNet2DModel, *, null_class: bool = False, concat: Sequence[str] = ()) -> None:
        super().__init__()
        check(unet.config.time_embedding_type != "learned", "UNet2D: learned time embeddings know no times in between")
        check(unet.config.class_embed_type is None, "UNet2D: class_embed_type must be null (label embeddings)")
        embeddings = unet.config.num_class_embeds or 0
        check(embeddings > 0 or not null_class, "UNet2D: null_class needs a UNet with num_class_embeds")
        self.unet, self.num_labels = unet, embeddings
        self.num_classes = embeddings - (1 if null_class else 0)
        self.null_class = self.num_classes if null_class else None
        self.concat = tuple(concat)
        self.extra_inputs = None

    @classmethod
    def make(
        cls,
        channels: int,
        size: int,
        *,
        widths: Sequence[int] = (32, 64),
        layers: int = 1,
        attention: Sequence[bool] = (),
        num_classes: int = 0,
        null_class: bool = True,
        concat: Sequence[str] = (),
        concat_channels: int = 0,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> UNet2DBackbone:
        """Return an untrained network for images "channels size size"; ``attention`` says which levels attend.

        ``num_classes`` 0 is unconditional. Raises UserError for sizes that cannot be halved so often.
        """
        from diffusers import UNet2DModel

        levels = len(widths)
        check(size % 2 ** (levels - 1) == 0, f"image size {size} cannot be halved {levels - 1} times: use fewer widths")
        attends = list(attention) or [False] * levels
        check(len(attends) == levels, f"attention has {len(attends)} entries for {levels} widths")
        null_class = null_class and num_classes > 0
        with Rng(seed, 0, ()).network_noise("init"):
            unet = UNet2DModel(
                sample_size=size,
                in_channels=channels + concat_channels,
                out_channels=channels,
                block_out_channels=tuple(widths),
                layers_per_block=layers,
                down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
                up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
                norm_num_groups=math.gcd(8, *widths),
                attention_head_dim=math.gcd(16, *widths),
                num_class_embeds=num_classes + null_class if num_classes else None,
                dropout=dropout,
            )
        return cls(unet, null_class=null_class, concat=concat)

    @property
    def multiple(self) -> int:
        """What the sides of samples must be multiples of, so that halving them never rounds."""
        return int(2 ** (len(self.unet.down_blocks) - 1))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return the raw output "b c h w"; UserError when the condition lacks an entry."""
        who = type(self).__name__
        x = join_channels(x, cond, self.concat, who)
        label = entry(cond, "label", who) if self.num_classes else None
        with self.adding_extras(cond):
            out: Tensor = self.unet(x, time, class_labels=label, return_dict=False)[0]
        return out

    def null(self, cond: Cond) -> Cond:
        """Return the condition with the null class in place of the labels; UserError without one."""
        return null_label(cond, self.null_class, type(self).__name__)

    def save(self, folder: Path) -> None:
        """Write the UNet as stock diffusers does, and beside it what this class adds."""
        self.unet.save_pretrained(folder, safe_serialization=True)
        inputs = {"null_class": self.null_class is not None, "concat": list(self.concat), "extras": list(self.extras)}
        (folder / INPUTS_FILE).write_text(json.dumps(inputs, indent=2) + "\n", encoding="utf-8")
        if self.extra_inputs is not None:
            tensors = {k: v.detach().contiguous() for k, v in self.extra_inputs.state_dict().items()}
            save_file(tensors, folder / EXTRAS_FILE)

    @classmethod
    def load(cls, folder: Path, *, shapes: bool = False) -> UNet2DBackbone:
        """Return the backbone of a diffusers UNet folder; UserError when there is none or its files disagree.

        ``shapes``: on the meta device, without reading weights.
        """
        from diffusers import UNet2DModel

        try:
            if shapes:
                with torch.device("meta"):
                    unet = UNet2DModel.from_config(UNet2DModel.load_config(folder))
            else:
                unet = UNet2DModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder}: no UNet2DModel in safetensors can be read there ({line})") from error
        made = cls(unet, **_inputs(folder))
        extras = tuple(_read(folder / INPUTS_FILE).get("extras", ()))
        if not extras:
            return made
        made = made.with_extras(extras, seed=0)
        assert made.extra_inputs is not None
        try:
            made.extra_inputs.load_state_dict(load_file(folder / EXTRAS_FILE))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{folder / EXTRAS_FILE}: not the embeddings of {', '.join(extras)}") from error
        return made


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    check(isinstance(found, dict), f"{path}: must hold a JSON object")
    return dict(found)


def _inputs(folder: Path) -> dict[str, Any]:
    found = _read(folder / INPUTS_FILE)
    return {"null_class": bool(found.get("null_class", False)), "concat": tuple(found.get("concat", ()))}
