"""The one way to a clip, whatever it lies in: what it holds, and frames of it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.core.errors import check
from fewstep.video.reading.info import MAX_PIXELS, ClipInfo, ClipSource, Limits, Unreadable
from fewstep.video.reading.process import shared_decoder

if TYPE_CHECKING:  # the worker process imports this package, and must start fast
    from jaxtyping import UInt8
    from torch import Tensor

READERS = ("auto", "av", "decord")
MAX_FRAMES = 2**16  # of one request
LIMITS = Limits()


def probe(path: str | Path | ClipSource, *, limits: Limits = LIMITS) -> ClipInfo:
    """Return what a video file, a folder of images or an archive's member holds; Unreadable when that cannot be told.

    The file is walked through once, without decoding it: ``frames`` is what there is and not what a header says.
    """
    source = _source(path)
    if source.path.is_dir():
        from fewstep.video.reading import frames

        return frames.probe(source)
    return shared_decoder(limits).probe(source)


def read_clip(
    path: str | Path | ClipSource,
    indices: Sequence[int] | tuple[int, int, int],
    *,
    size: tuple[int, int] | None = None,
    reader: str = "auto",
    limits: Limits = LIMITS,
) -> UInt8[Tensor, "f 3 h w"]:
    """Return frames in RGB, upright, in the order asked for; frame ``i`` is the i-th of decoding from the start.

    ``indices``: a list, or a tuple (start, count, step). ``size``: (height, width) to resize to, without aliasing.
    ``reader``: ``av``, ``decord``, or ``auto``, which is PyAV: it refuses damage that decord hides. The memory is not
    contiguous. Unreadable for what is damaged, takes more than the limits, or has fewer frames.
    """
    import torch

    check(reader in READERS, f"reader={reader}: must be one of {', '.join(READERS)}")
    check(reader != "decord" or find_spec("decord") is not None, "reader=decord: it is not installed; use reader=av")
    if size is not None:
        check(min(size) >= 1 and size[0] * size[1] <= MAX_PIXELS, f"size={size}: must be 1 to {MAX_PIXELS} pixels")
    wanted = frame_list(indices)
    source = _source(path)
    if source.path.is_dir():
        from fewstep.video.reading import frames

        return frames.read(source, wanted, size)
    return torch.from_numpy(shared_decoder(limits).read(source, wanted, size, reader)).permute(0, 3, 1, 2)


def frame_list(indices: Sequence[int] | tuple[int, int, int]) -> list[int]:
    """Return the indices that a list, or a tuple (start, count, step), means; UserError for none or too many."""
    if isinstance(indices, tuple):
        check(len(indices) == 3, f"indices={indices}: a tuple is (start, count, step); give other frames as a list")
        start, count, step = indices
        check(0 < count <= MAX_FRAMES and step > 0, f"indices={indices}: count and step must be positive")
        return list(range(start, start + count * step, step))
    check(0 < len(indices) <= MAX_FRAMES, f"{len(indices)} frames asked for; must be 1 to {MAX_FRAMES}")
    return [int(index) for index in indices]


def _source(path: str | Path | ClipSource) -> ClipSource:
    source = path if isinstance(path, ClipSource) else ClipSource(Path(path).expanduser())
    if not source.path.exists():
        raise Unreadable(source.name, "no such file")
    if not (source.path.is_dir() or source.path.is_file()):
        raise Unreadable(source.name, "not a regular file")
    return source
