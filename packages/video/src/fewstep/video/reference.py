"""What students are measured against: clips and pictures, at the size of the student's clips."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.damage import Damaged
from fewstep.core.data.epochs import permutation
from fewstep.core.data.prepared import Prepared, is_prepared
from fewstep.core.data.reading import UNREADABLE, image_files, read_image
from fewstep.core.data.source import crop_to
from fewstep.core.errors import check
from fewstep.core.models.family import Size
from fewstep.core.models.loading import Teacher
from fewstep.video.reading.dataset import Clips
from fewstep.video.reading.layouts import list_clips
from fewstep.video.reading.sampling import ClipConfig
from fewstep.video.world.folder import VIDEOS
from fewstep.video.world.truth import world_folder

log = logging.getLogger("fewstep.data")

CHOICE_SEED = 20_260_711  # of which clips and pictures are taken: fixed, so that numbers compare across runs
BATCH = 8


def clip_batches(
    path: str, clip: ClipConfig, count: int, decode: Callable[[Tensor], Tensor], teacher: Teacher | None = None
) -> Iterator[Float[Tensor, "b c f h w"]]:
    """Return at most ``count`` clips in [-1, 1], some at a time: of files, or decoded from prepared latents.

    Which ones is the same at every call. Those that cannot be read are passed over. ``teacher``: whose latents they
    must be.
    """
    folder = Path(path).expanduser()
    if is_prepared(folder):
        yield from _decoded(Prepared(folder, teacher), path, clip, count, decode)
        return
    own_world = world_folder(folder) == folder
    clips = Clips(path, list_clips(folder / VIDEOS if own_world else path), clip, max_bad_share=1.0)
    for batch in _in_batches(_readable(clips), count):
        yield torch.stack(batch).transpose(1, 2).float() / 127.5 - 1


def picture_batches(path: str, size: Size, count: int) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """Return central crops in [-1, 1] of at most ``count`` images of a folder, some at a time, the same every time."""

    def pictures() -> Iterator[Tensor]:
        files = image_files(Path(path).expanduser())
        for row in permutation(CHOICE_SEED, 0, len(files)).tolist():
            try:
                yield crop_to(read_image(files[row], 3), size, (0.5, 0.5))
            except UNREADABLE as error:
                log.warning("%s: left out of the reference (%s)", files[row], str(error).splitlines()[0])

    for batch in _in_batches(pictures(), count):
        yield torch.stack(batch) * 2 - 1


def _readable(clips: Clips) -> Iterator[Tensor]:
    for row in permutation(CHOICE_SEED, 0, len(clips)).tolist():
        try:
            yield clips.clip(row, CHOICE_SEED, 0)
        except Damaged:  # the clips' own log names it
            continue


def _decoded(
    prepared: Prepared, path: str, clip: ClipConfig, count: int, decode: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    check(prepared.has_latents, f"domain.evaluation.clips: {path} holds prompts only: prepare clips, or name videos")
    rows = permutation(CHOICE_SEED, 0, len(prepared)).tolist()[:count]
    for at in range(0, len(rows), BATCH):
        clips = decode(prepared.latents(rows[at : at + BATCH])[1])
        found, wanted = list(clips.shape[2:]), [clip.frames, *clip.size]
        check(found == wanted, f"domain.evaluation.clips: {path} holds clips of {found}, and students make {wanted}")
        yield clips


def _in_batches(rows: Iterator[Tensor], count: int) -> Iterator[list[Tensor]]:
    batch: list[Tensor] = []
    for number, row in enumerate(rows, 1):
        batch.append(row)
        if len(batch) == BATCH or number == count:
            yield batch
            batch = []
        if number == count:
            return
    if batch:
        yield batch
