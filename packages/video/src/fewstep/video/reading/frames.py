"""Folders of images as clips: the files in the order of the numbers in their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from fewstep.core.data.reading import SUFFIXES, UNREADABLE, read_image
from fewstep.video.reading.info import ClipInfo, ClipSource, Unreadable


def frame_files(folder: Path) -> list[Path]:
    """Return the images directly in a folder, ``2.png`` before ``10.png``."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file()]
    return sorted(files, key=lambda file: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", file.name)])


def probe(source: ClipSource) -> ClipInfo:
    """Return what a folder of images holds; Unreadable for one without, or whose first one is damaged."""
    files = frame_files(source.path)
    if not files:
        raise Unreadable(source.name, f"no images in it; read are {', '.join(sorted(SUFFIXES))}")
    first = _read(files[0])
    return ClipInfo(first.shape[2], first.shape[1], len(files), 0.0, 0.0, 0, True, files[0].suffix.lower()[1:])


def read(source: ClipSource, indices: Sequence[int], size: tuple[int, int] | None) -> UInt8[Tensor, "f 3 h w"]:
    """Return images as frames, resized to ``size`` (height, width); Unreadable for damage, and where sizes differ."""
    from kornia.geometry.transform import resize

    files = frame_files(source.path)
    wanted = [index for index in indices if not 0 <= index < len(files)]
    if wanted or not indices:
        raise Unreadable(source.name, f"frame {wanted[0] if wanted else 'none'} was asked for, it has {len(files)}")
    made: dict[int, Tensor] = {}
    for index in sorted(set(indices)):
        picture = _read(files[index])
        if size is not None and tuple(picture.shape[1:]) != size:
            picture = resize(picture[None], size, interpolation="bilinear", antialias=True)[0]
        made[index] = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
    first = made[min(made)].shape
    odd = next((files[index].name for index, frame in made.items() if frame.shape != first), None)
    if odd is not None:
        raise Unreadable(source.name, f"{odd} differs in size from the image before: give a size")
    return torch.stack([made[index] for index in indices])


def _read(file: Path) -> Tensor:
    try:
        return read_image(file, 3)
    except UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Unreadable(str(file), reason.replace(str(file), "it")) from error
