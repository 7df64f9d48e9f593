"""Videos through decord, where it is installed: for a worker process only, since it can spin for ever in its own code.

decord replaces frames it cannot decode by others and knows neither AV1 nor GIF. What the file holds is therefore found
through PyAV first, and indices are held against that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fewstep.video.reading.arrays import Allocate, Frames
from fewstep.video.reading.info import ClipSource, Unreadable
from fewstep.video.reading.pyav import probe

CODECS = frozenset({"h264", "hevc", "vp9", "mpeg4", "vp8", "mpeg2video", "ffv1", "mjpeg"})
AT_ONCE = 16  # frames


def read(source: ClipSource, indices: Sequence[int], size: tuple[int, int] | None, out: Allocate) -> Frames:
    """Return frames "f h w 3" in the order asked for, as :func:`.pyav.read` does; Unreadable likewise."""
    info = probe(source)
    if info.codec not in CODECS:
        raise Unreadable(source.name, f"decord does not read {info.codec}: use reader=av")
    if not indices or min(indices) < 0 or max(indices) >= info.frames:
        raise Unreadable(source.name, f"frames {list(indices)[:4]}... were asked for, it has {info.frames}")
    import decord

    given = {} if size is None else {"height": size[0], "width": size[1]}
    try:
        video: Any = decord.VideoReader(_opened(source), ctx=decord.cpu(0), num_threads=1, fault_tol=0, **given)
        if len(video) != info.frames:
            raise Unreadable(source.name, f"decord finds {len(video)} frames instead of {info.frames}: use reader=av")
        filled = _read(video, list(indices), out)
    except decord.DECORDError as error:
        raise Unreadable(
            source.name, f"decord fails ({str(error).splitlines()[-1].strip()[:200]}): use reader=av"
        ) from error
    return filled


def _read(video: Any, indices: list[int], out: Allocate) -> Frames:
    """Return frames, a few at a time, so that decord's own memory stays small and is used again."""
    filled: Frames | None = None
    for start in range(0, len(indices), AT_ONCE):
        batch: Frames = video.get_batch(indices[start : start + AT_ONCE]).asnumpy()
        if filled is None:
            filled = out((len(indices), *batch.shape[1:]))
        np.copyto(filled[start : start + AT_ONCE], batch)
        del batch
    assert filled is not None, "an empty list is refused before"
    return filled


def _opened(source: ClipSource) -> Any:
    if source.size < 0:
        return str(source.path)
    import io

    with open(source.path, "rb") as file:
        file.seek(source.offset)
        return io.BytesIO(file.read(source.size))
