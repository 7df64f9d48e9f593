"""Videos through PyAV: frame ``i`` is the i-th that decoding the file from its start returns.

Seeking is an optimisation that has to prove itself: frames found after a seek are told by their time stamps, and where
those do not say which frame it is, the file is decoded from its start. Damage is an error, never a concealed frame.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from fewstep.video.reading.arrays import Allocate, Frames
from fewstep.video.reading.info import MAX_PIXELS, ClipInfo, ClipSource, Unreadable

# demuxers that may be used: no playlists, no image sequences, nothing that opens a second file
FORMATS = (
    "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,ivf,h264,hevc,obu,m4v,yuv4mpegpipe,"
    "mp3,wav,flac,aac"
)
OPEN = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "err_detect": "explode"}
STRICT = {"err_detect": "crccheck+explode"}
# whose packets are one frame each; others (VP8) also have packets that are never shown
ONE_PACKET = frozenset(
    (
        "h264",
        "hevc",
        "av1",
        "libdav1d",
        "vp9",
        "mpeg4",
        "mpeg2video",
        "mpeg1video",
        "h263",
        "mjpeg",
        "ffv1",
        "gif",
        "rawvideo",
        "prores",
    )
)
SEEK_FROM = 12  # frames a seek must save


@dataclass(frozen=True)
class Index:
    """The time stamps a file's frames will have, in the order they are shown, and which of them are key frames.

    Without stamps (None) frames are only found by counting from the start. ``frames``: their number.
    """

    frames: int
    stamps: npt.NDArray[np.int64] | None
    keys: npt.NDArray[np.int64]


class Part(io.RawIOBase):
    """A range of a file, read as if it were a file."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place in the range."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place in the range, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, none beyond the range."""
        left = max(0, self._size - self._at)
        self._file.seek(self._offset + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


class Video:
    """An opened video file; a context manager. Unreadable for what holds no video, or frames that are too large."""

    def __init__(self, source: ClipSource) -> None:
        self.source = source
        self._file: BinaryIO | None = None
        if source.size >= 0:
            self._file = open(source.path, "rb")  # noqa: SIM115 - closed with the container
        whole = str(source.path.absolute())
        target: Any = whole if self._file is None else Part(self._file, source.offset, source.size)
        try:
            self.container = av.open(target, options=OPEN)
        except (av.error.FFmpegError, ValueError) as error:
            self._close_file()
            raise Unreadable(source.name, f"not a video ({reason_of(error)})") from error
        try:
            self.stream: Any = self._pick()
        except BaseException:
            self.close()
            raise

    def _pick(self) -> Any:
        streams = [s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            sound = bool(self.container.streams.audio)
            raise Unreadable(self.source.name, f"no video in it{', only sound' if sound else ''}")
        context = streams[0].codec_context
        if context is None:
            raise Unreadable(self.source.name, "a codec that is not known here")
        width, height = context.width, context.height
        if min(width, height) < 1 or width * height > MAX_PIXELS:
            raise Unreadable(self.source.name, f"frames of {width}x{height} pixels, read are up to {MAX_PIXELS}")
        context.thread_count = 1
        context.options = {**context.options, **STRICT}
        return streams[0]

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()

    def decode(self) -> Iterator[Any]:
        """Yield the frames from where the file stands; Unreadable at damage."""
        frames = iter(self.container.decode(self.stream))
        while True:
            try:
                with _reported() as errors:
                    frame = next(frames, None)
            except (av.error.FFmpegError, ValueError) as error:
                raise Unreadable(self.source.name, f"damaged ({reason_of(error)})") from error
            # some decoders (FFV1) report damage, conceal it, and go on
            if errors:
                raise Unreadable(self.source.name, f"damaged ({errors[0][2].strip()})")
            if frame is None:
                return
            if frame.is_corrupt:
                raise Unreadable(self.source.name, "damaged: a frame cannot be decoded whole")
            yield frame

    def index(self) -> Index:
        """Return the index, from a walk through the file without decoding; Unreadable for a truncated file."""
        stamps, keys, packets, known = [], [], 0, True
        try:
            for packet in self.container.demux(self.stream):
                if packet.size == 0:
                    continue
                packets += 1
                if packet.is_corrupt:
                    raise Unreadable(self.source.name, f"damaged: packet {packets} is cut short")
                if packet.is_discard:
                    continue
                known = known and packet.pts is not None
                stamps.append(packet.pts or 0)
                if packet.is_keyframe:
                    keys.append(packet.pts or 0)
        except (av.error.FFmpegError, ValueError) as error:
            raise Unreadable(self.source.name, f"damaged ({reason_of(error)})") from error
        if packets < self.stream.frames:
            raise Unreadable(self.source.name, f"truncated: {packets} of its {self.stream.frames} frames are there")
        order = np.unique(np.array(stamps, np.int64))
        known = known and self.stream.codec_context.name in ONE_PACKET
        if not known or len(order) != len(stamps):
            with Video(self.source) as again:
                return Index(sum(1 for _ in again.decode()), None, np.array([], np.int64))
        return Index(len(order), order, np.unique(np.array(keys, np.int64)))


def probe(source: ClipSource) -> ClipInfo:
    """Return what a video holds; Unreadable where no frame can be decoded, or the file is cut short.

    It is kept for as long as the file does not change.
    """
    stat = source.path.stat()
    return _probed(source, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _probed(source: ClipSource, modified: int, size: int) -> ClipInfo:
    with Video(source) as video:
        rate, codec = video.stream.average_rate or video.stream.guessed_rate, video.stream.codec_context.name
        first = next(video.decode(), None)
        if first is None:
            raise Unreadable(source.name, "no frame in it")
        turned = rotation(first)
        width, height = (first.height, first.width) if turned % 180 else (first.width, first.height)
    frames, fps = _indexed(source, modified, size).frames, float(rate or 0)
    return ClipInfo(width, height, frames, fps, frames / fps if fps else 0.0, turned, True, codec)


def rotation(frame: Any) -> int:
    """Return by how many degrees, 0, 90, 180 or 270, a frame is to be turned counterclockwise to be upright."""
    return round(int(frame.rotation) / 90) % 4 * 90


def indexed(source: ClipSource) -> Index:
    """Return a file's index; it is kept for as long as the file does not change."""
    stat = source.path.stat()
    return _indexed(source, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _indexed(source: ClipSource, modified: int, size: int) -> Index:
    with Video(source) as video:
        return video.index()


def read(source: ClipSource, indices: Sequence[int], size: tuple[int, int] | None, out: Allocate) -> Frames:
    """Return frames "f h w 3", in the order asked for and repeated where asked, in memory that ``out`` gives.

    ``size``: (height, width) they are resized to, without aliasing. Unreadable for damage and for frames not there.
    """
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        places.setdefault(index, []).append(place)
    filled: Frames | None = None
    for index, frame in _wanted(source, sorted(places)):
        made = _upright(frame, size)
        if filled is None:
            filled = out((len(indices), *made.shape))
        if made.shape != filled.shape[1:]:
            raise Unreadable(source.name, f"frames change their size, to {made.shape[1]}x{made.shape[0]} at {index}")
        for place in places[index]:
            filled[place] = made
        del made  # before the next is made, so that the allocator gives it the same memory and no page is new
    if filled is None:
        raise Unreadable(source.name, "no frame was asked for")
    return filled


def _upright(frame: Any, size: tuple[int, int] | None) -> Frames:
    """Return a frame "h w 3" turned upright and resized, without a copy where FFmpeg's own memory will do."""
    turned = rotation(frame)
    if size is None:
        height, width = frame.height, frame.width
    else:
        height, width = size[::-1] if turned % 180 else size
    resized = (height, width) != (frame.height, frame.width)
    picture = frame.reformat(width, height, "rgb24", interpolation="BICUBIC" if resized else None)
    plane = picture.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, : 3 * width]
    return np.rot90(rows.reshape(height, width, 3), turned // 90)


def _wanted(source: ClipSource, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yield the frames at ascending indices, each with its index."""
    if wanted[0] < 0:
        raise Unreadable(source.name, f"frame {wanted[0]} was asked for; the first is 0")
    done = 0
    if wanted[-1] >= SEEK_FROM:
        index = indexed(source)
        if wanted[-1] >= index.frames:
            raise Unreadable(source.name, f"frame {wanted[-1]} was asked for, it has {index.frames}")
        if index.stamps is not None:
            with Video(source) as video:
                for found in _seeking(video, index, wanted):
                    yield found
                    done += 1
    if done == len(wanted):
        return
    count = 0
    with Video(source) as video:
        for count, frame in enumerate(video.decode(), 1):
            if count - 1 == wanted[done]:
                yield wanted[done], frame
                done += 1
                if done == len(wanted):
                    return
    raise Unreadable(source.name, f"frame {wanted[done]} was asked for, it has {count}")


def _seeking(video: Video, index: Index, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yield frames found by their stamps, up to the first that the stamps do not lead to."""
    stamps = index.stamps
    if stamps is None:
        return
    at = 0  # the frame the decoder gives next
    frames = video.decode()
    for index_wanted in wanted:
        before = index.keys[index.keys <= stamps[index_wanted]]
        key = int(np.searchsorted(stamps, before[-1])) if len(before) else 0
        if key >= at + SEEK_FROM:
            frames = _from_key(video, int(stamps[key]))
            at = key
        for frame in frames:
            if frame.pts != stamps[at]:
                return
            at += 1
            if at > index_wanted:
                yield index_wanted, frame
                break
        else:
            return


def _from_key(video: Video, stamp: int) -> Iterator[Any]:
    """Yield the frames from a key frame on; none where seeking does not find it, or it needs frames before it."""
    video.container.seek(stamp, stream=video.stream)
    found = False
    for frame in video.decode():
        if not found and frame.pts is not None and frame.pts >= stamp:
            # a recovery point that is no intra frame is not shown: the first that is whole comes later
            if frame.pts != stamp:
                return
            found = True
        if found:
            yield frame


@contextmanager
def _reported() -> Iterator[list[tuple[int, str, str]]]:
    """Collect the errors (level, origin, text) that FFmpeg logs meanwhile."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as errors:
            yield errors
    finally:
        av.logging.set_level(level)


def reason_of(error: Exception) -> str:
    """Return FFmpeg's words without the number and the path around them."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
