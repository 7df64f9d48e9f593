"""Frozen image networks under the discriminator of frames: DINOv2 and CLIP, from a folder or a hub id.

Frames are made squares of the network's input size by area, normalised as it was trained, and the features are the
tokens of the patches after some of its blocks (MCM, arXiv 2406.06890, has DINOv2 ViT-S/14 after blocks 2, 5, 8, 11).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fewstep.core.errors import UserError, check
from fewstep.core.image.clip import MEAN, STD
from fewstep.core.models.files import check_weights, download, quiet, read_json
from fewstep.core.networks.freezing import freeze
from fewstep.core.networks.taps import tapped
from fewstep.video.appearance.discriminator import FrameBackbone

FrozenName = Literal["dinov2", "clip"]
FIELD = "recipe.appearance.backbone_path"
TYPES: Mapping[str, tuple[str, ...]] = {"dinov2": ("dinov2",), "clip": ("clip", "clip_vision_model")}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST = 224  # pixels a side for networks that take any
TAPS = 4  # blocks, where none are named
BLOCK = re.compile(r"(?:.*\.)?encoder\.layers?\.(\d+)")


class FrozenBackbone(FrameBackbone):
    """Patch tokens of a vision transformer of ``transformers`` after some blocks, "n k p" each.

    ``side``: of its input; ``mean``, ``std``: of the values in [0, 1] it was trained on. The network follows the frames
    to their device. Raises UserError for blocks it does not have.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[int], side: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        names = {int(found[1]): name for name, _ in model.named_modules() if (found := BLOCK.fullmatch(name))}
        chosen = sorted(set(blocks or ((i + 1) * len(names) // TAPS - 1 for i in range(TAPS)))) if names else []
        if not blocks:
            chosen = [block for block in chosen if block >= 0]
        wrong = [block for block in chosen if block not in names]
        check(bool(chosen) and not wrong, f"appearance.backbone_blocks: {wrong} of {len(names)} blocks, from 0")
        self.model, self.side = freeze(model), side
        self.names = [names[block] for block in chosen]
        self.channels = (int(model.config.hidden_size),) * len(chosen)  # type: ignore[union-attr,arg-type]
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).reshape(1, 3, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def forward(self, frames: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Return the features of frames in [-1, 1]; UserError for frames that are not in colour."""
        check(frames.shape[1] == 3, f"a frozen image network sees colour, these frames have {frames.shape[1]} channels")
        if self.mean.device != frames.device:
            self.to(frames.device)
        with tapped(self.model, self.names, stop=True) as caught:
            self.model(pixel_values=self.prepared(frames))
        return [caught[name][:, 1:].transpose(1, 2) for name in self.names]  # the first token is the class's

    def prepared(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
        """Return frames as the network wants them."""
        x = frames.to(self.mean.dtype)
        if x.shape[-2:] != (self.side, self.side):
            x = interpolate(x, (self.side, self.side), mode="area")
        return ((x + 1) / 2 - self.mean) / self.std


def frozen_backbone(name: FrozenName, path: str, blocks: Sequence[int] = ()) -> FrozenBackbone:
    """Return the network in a folder, or of a hub id, which is then downloaded.

    DINOv2 sees at most 224 pixels a side, CLIP its own size. Raises UserError for another model, and for a folder
    without all of its weights in safetensors.
    """
    import transformers

    folder = find_model(path, TYPES[name], FIELD)
    kind = transformers.Dinov2Model if name == "dinov2" else transformers.CLIPVisionModel
    model = load_whole(kind, folder, FIELD)
    patch, own = int(model.config.patch_size), int(model.config.image_size)
    side = own if name == "clip" else max(patch, min(own, MOST) // patch * patch)
    return FrozenBackbone(model, blocks, side, *(IMAGENET if name == "dinov2" else (MEAN, STD)))


def find_model(path: str, types: Sequence[str], field: str, *, weights: bool = True) -> Path:
    """Return the folder of a model of ``transformers`` of one of ``types``; UserError, which names ``field``.

    ``weights``: whether they are needed, too, or the configuration is enough.
    """
    given = Path(path).expanduser()
    folder = given if given.exists() else download(path, weights=weights, what=field)
    check((folder / "config.json").is_file(), f"{field}: {folder} holds no config.json: give the folder of a model")
    config = read_json(folder / "config.json")
    found = config.get("model_type")
    check(found in types, f"{field}: {folder} holds a {found}, and {' or '.join(types)} is asked for")
    check("auto_map" not in config, f"{field}: {folder} asks for code of its own, which is never run")
    if not weights:
        return folder
    try:
        check_weights(folder)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    return folder


def load_whole(kind: Any, folder: Path, field: str) -> Any:
    """Return a model with every weight from its folder; UserError where one is missing or of another shape."""
    try:
        with quiet():
            model, report = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{field}: {folder} cannot be read ({line}): download it again") from error
    missing = sorted(report["missing_keys"])
    some = f"{len(missing)} weights of a {kind.__name__} ({''.join(missing[:1])})"
    check(not missing, f"{field}: {folder} lacks {some}: download it again")
    return model.eval()
