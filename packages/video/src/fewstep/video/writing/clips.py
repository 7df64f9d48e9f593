"""Clips written as video files, whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import UserError, check, nearest
from fewstep.video.reading.clips import LIMITS
from fewstep.video.reading.info import ClipSource, Unreadable
from fewstep.video.reading.process import shared_decoder

# a codec's encoder and its settings: near what the eye can tell, quick rather than small; no HEVC, whose encoder x265
# corrupts memory at pictures smaller than its blocks of 64 pixels
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "17", "preset": "veryfast"}),
    "mpeg4": ("mpeg4", {"qmin": "2", "qmax": "2"}),
}
CONTAINERS = (".mp4", ".mov", ".mkv")
SMPTE170M, LIMITED = (
    6,
    1,
)  # colours as converters make them of RGB when nothing is said, and players guess at small sizes
MAX_SIDE = 16384
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
MAX_FPS = 1000
GIF_MAX_FPS = 50  # browsers slow down what is faster


def write_clip(path: Path, frames: UInt8[Tensor, "f 3 h w"], fps: float | Fraction, *, codec: str = "h264") -> None:
    """Write frames as a video: .mp4, .mov or .mkv by a codec of CODECS, or .gif.

    Videos hold colours at half the resolution (4:2:0), which every player shows, and therefore only even sizes: the
    last row or column of an odd size is repeated once. A .gif has 256 colours a frame, keeps any size, and shows equal
    frames in a row as one that lasts longer. Raises UserError for what cannot be written, and leaves an earlier file of
    that name in place then.
    """
    _check_frames(path, frames)
    check(min(frames.shape) > 0, f"{path}: a clip of shape {tuple(frames.shape)} has nothing to write; give frames")
    if path.suffix.lower() == ".gif":
        _check_rate(path, fps)
        check(fps <= GIF_MAX_FPS, f"{path}: a .gif shows at most {GIF_MAX_FPS} frames a second, not {fps}; write .mp4")
        pixels = _pixels(frames)
        check(max(pixels.shape[1:3]) <= MAX_SIDE, _too_large(path))
        write_or_refuse(path, lambda aside: _gif(aside, pixels, float(fps)))
        return
    write_pieces(path, [frames], (frames.shape[2], frames.shape[3]), fps, codec=codec)


def write_pieces(
    path: Path,
    pieces: Iterable[UInt8[Tensor, "f 3 h w"]],
    size: tuple[int, int],
    fps: float | Fraction,
    *,
    codec: str = "h264",
    sound: Path | None = None,
) -> str:
    """Write a video, .mp4, .mov or .mkv, piece by piece as frames come; ``size``: their height and width.

    ``sound``: a video whose sound goes into it as it is. Returns why there is none in it, empty where there is. Raises
    UserError for what cannot be written; what raises while frames are made leaves no file either.
    """
    suffix, known = path.suffix.lower(), ", ".join((*CONTAINERS, ".gif"))
    check(suffix in CONTAINERS, f"{path}: no video file is called '{suffix or path.name}'; name it {known}")
    check(codec in CODECS, f"{path}: codec '{codec}' is unknown; {nearest(codec, CODECS)}")
    check(min(size) > 0 and max(size) <= MAX_SIDE, _too_large(path))
    _check_rate(path, fps)
    rate = Fraction(fps).limit_denominator(1001)

    def images() -> Iterator[Pixels]:
        for piece in pieces:
            _check_frames(path, piece)
            check(tuple(piece.shape[2:]) == size, f"{path}: frames of {tuple(piece.shape[2:])} in a video of {size}")
            yield from _pixels(piece)

    silent = "none was asked for"

    def write(aside: Path) -> None:
        nonlocal silent
        _encode(aside, images(), size, rate, codec)
        silent = _add_sound(aside, sound) if sound else silent

    write_or_refuse(path, write)
    return silent


def _add_sound(path: Path, sound: Path) -> str:
    """Put another video's sound into a written one, and return why not; what was written stays as it is then."""
    try:
        write_whole(path, lambda both: shared_decoder(LIMITS).join_sound(path, ClipSource(sound), both))
    except Unreadable as refused:  # hours of work on its pictures are not lost for that
        return refused.reason
    return ""


def _too_large(path: Path) -> str:
    return f"{path}: frames must have 1 to {MAX_SIDE} pixels a side; make them smaller"


def _check_rate(path: Path, fps: float | Fraction) -> None:
    good = math.isfinite(fps) and 0 < fps <= MAX_FPS
    check(good, f"{path}: fps={fps} must be above 0 and at most {MAX_FPS}")


def _check_frames(path: Path, frames: Tensor) -> None:
    check(
        frames.ndim == 4 and frames.shape[1] == 3 and frames.dtype == torch.uint8,
        f"{path}: a clip must be 8-bit colour frames 'f 3 h w', found {frames.dtype} of shape {tuple(frames.shape)}",
    )


def _pixels(frames: UInt8[Tensor, "f 3 h w"]) -> Pixels:
    return np.ascontiguousarray(frames.detach().cpu().permute(0, 2, 3, 1).numpy())


def write_or_refuse(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file whole or not at all, its folder made; UserError where disk or encoder refuses."""
    from av.error import FFmpegError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except (OSError, FFmpegError) as error:  # most of FFmpeg's errors are no OSError
        reason = error.strerror or type(error).__name__
        raise UserError(f"{path}: cannot be written ({reason}); choose another place, or free some space") from error


def _encode(path: Path, images: Iterator[Pixels], size: tuple[int, int], rate: Fraction, codec: str) -> None:
    import av

    encoder, options = CODECS[codec]
    odd = [(0, side % 2) for side in size]
    if encoder not in av.codecs_available:
        raise UserError(f"{path}: this build of PyAV has no {encoder}; give one of {', '.join(CODECS)}, or install av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=rate, options=options)
        stream.height, stream.width = (side + more for side, (_, more) in zip(size, odd, strict=True))
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace, context.color_range = SMPTE170M, LIMITED
        for index, image in enumerate(images):
            even = np.pad(image, (*odd, (0, 0)), mode="edge") if any(more for _, more in odd) else image
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _gif(path: Path, pixels: Pixels, fps: float) -> None:
    from PIL import Image

    ends = np.round(np.arange(len(pixels) + 1) * (100 / fps)).astype(int)  # delays are hundredths of a second
    images = [Image.fromarray(image) for image in pixels]
    delays = [int(delay) for delay in np.diff(ends) * 10]
    first, rest = images[0], images[1:]
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=delays, loop=0)
