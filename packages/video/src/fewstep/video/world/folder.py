"""The drawn world as files: a folder of videos and one of images, both with captions, and the truth about motion."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fewstep.core.data.writing import write_tensors, write_text
from fewstep.core.errors import UserError, check
from fewstep.core.models.student import replacing
from fewstep.video.world.config import HIGH, LOW, Quality
from fewstep.video.world.drawn import DrawnWorld
from fewstep.video.writing.clips import write_clip, write_or_refuse

VIDEOS, IMAGES = "videos", "images"
MOTION, CARD = "motion.safetensors", "world.json"
BATCH = 64
MOST = 10_000_000

Told = Callable[[str, int, int], None]
"""Is told what is written, how many of it, and of how many."""


def write_world(
    out: Path,
    world: DrawnWorld,
    *,
    clips: int,
    images: int,
    fps: float = 8.0,
    codec: str = "h264",
    video_quality: Quality = LOW,
    image_quality: Quality = HIGH,
    progress: Told = lambda what, done, total: None,
) -> None:
    """Write ``videos/00000.mp4`` and on, ``images/00000.png`` and on, a caption beside each as .txt.

    ``motion.safetensors`` holds position and velocity "b n f 2" and which are present "b n", of the videos in their
    order; ``world.json`` what it takes to draw them again. The folder appears whole or not at all. Raises UserError
    for counts out of range, odd sizes (which videos would pad), a folder in use, and a disk that refuses.
    """
    for name, value in (("clips", clips), ("images", images)):
        check(0 <= value <= MOST, f"world: {name}={value} must be from 0 to {MOST}")
    size = f"{world.config.width}x{world.config.height}"
    even = world.config.width % 2 == 0 and world.config.height % 2 == 0
    check(even or not clips, f"world: videos cannot be {size}; give an even width and height")
    check(not out.exists(), f"{out}: exists already; remove it, or choose another folder")
    with _new(out) as folder:
        motion = _write_videos(folder / VIDEOS, world, clips, fps, codec, video_quality, progress)
        if clips:
            write_tensors(folder / MOTION, motion)
        _write_images(folder / IMAGES, world, images, image_quality, progress)
        card = {"seed": world.seed, "clips": clips, "images": images, "fps": fps, "codec": codec}
        qualities = {"video_quality": asdict(video_quality), "image_quality": asdict(image_quality)}
        write_text(folder / CARD, json.dumps(card | asdict(world.config) | qualities, indent=2) + "\n")


@contextmanager
def _new(out: Path) -> Iterator[Path]:
    try:
        with replacing(out) as folder:
            yield folder
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            message = (
                f"{out}: cannot be written ({error.__cause__.strerror}); choose another folder, or free some space"
            )
            raise UserError(message) from error
        raise


def _write_videos(
    folder: Path, world: DrawnWorld, count: int, fps: float, codec: str, quality: Quality, progress: Told
) -> dict[str, Tensor]:
    parts = []
    for indices in _batches(count):
        made = world.clips(indices, quality)
        parts.append(made.motion)
        for index, frames, caption in zip(indices, to_bytes(made.frames), made.captions, strict=True):
            write_clip(folder / f"{index:05d}.mp4", frames, fps, codec=codec)
            write_text(folder / f"{index:05d}.txt", caption + "\n")
        progress("clips", indices.stop, count)
    names = ("position", "velocity", "present")
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in names if parts}


def _write_images(folder: Path, world: DrawnWorld, count: int, quality: Quality, progress: Told) -> None:
    for indices in _batches(count):
        images, captions = world.images(indices, quality)
        for index, image, caption in zip(indices, to_bytes(images), captions, strict=True):
            picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            write_or_refuse(folder / f"{index:05d}.png", partial(picture.save, format="PNG"))
            write_text(folder / f"{index:05d}.txt", caption + "\n")
        progress("images", indices.stop, count)


def to_bytes(frames: Tensor) -> Tensor:
    """Return frames in [0, 1] as 8 bits per channel."""
    return (frames.clamp(0, 1) * 255).round().byte()


def _batches(count: int) -> list[range]:
    return [range(at, min(at + BATCH, count)) for at in range(0, count, BATCH)]
