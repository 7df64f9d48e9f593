"""The sound of one video put beside the pictures of another, both as they are: nothing is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge
from pathlib import Path
from typing import Any

import av

from fewstep.video.reading.info import ClipSource, Unreadable
from fewstep.video.reading.pyav import Video, reason_of


def join(pictures: Path, source: ClipSource, target: Path) -> int:
    """Write the pictures of a file and the sound of another into a third, and return how many tracks of sound it has.

    The sound keeps its time against the source's first picture. Unreadable, with the reason, where there is none, it is
    damaged, or the target's format does not hold it; what was written by then is to be thrown away.
    """
    with Video(source) as video, av.open(str(pictures)) as drawn, av.open(str(target), "w") as out:
        tracks = [track for track in video.container.streams.audio if track.codec_context is not None]
        if not tracks:
            raise Unreadable(source.name, "there is none in it")
        picture = drawn.streams.video[0]
        seen = _dated(_packets(drawn, {picture.index: out.add_stream_from_template(picture)}), picture)
        places = _places(out, tracks, source, target)
        heard = _moved(_packets(video.container, places), _start(picture) - _start(video.stream))
        try:
            for packet, stream in merge(seen, heard, key=_time):
                if packet.is_corrupt:
                    raise Unreadable(source.name, "it is damaged")
                packet.stream = stream
                out.mux(packet)
        except (av.error.FFmpegError, ValueError) as error:
            raise Unreadable(source.name, f"it cannot be copied ({reason_of(error)})") from error
    return len(tracks)


def _places(out: Any, tracks: Sequence[Any], source: ClipSource, target: Path) -> dict[int, Any]:
    """Return the streams that tracks of sound go to, by their index, the file's head written."""
    try:
        places = {track.index: out.add_stream_from_template(track) for track in tracks}
        out.start_encoding()  # some formats refuse only here
    except (av.error.FFmpegError, ValueError) as error:
        codecs = " and ".join(sorted({track.codec_context.name for track in tracks}))
        raise Unreadable(source.name, f"{target.suffix} does not hold {codecs}, .mkv may") from error
    return places


def _packets(container: Any, places: dict[int, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the packets of the streams with these indices, each with the stream it goes to."""
    for packet in container.demux([container.streams[index] for index in places]):
        if packet.size:
            yield packet, places[packet.stream_index]


def _dated(packets: Iterator[tuple[Any, Any]], stream: Any) -> Iterator[tuple[Any, Any]]:
    """Yield packets with the times they are decoded at, which Matroska does not keep and its reader finds late.

    Pictures written here come at a constant rate: each that lacks a time is one picture before the next. Where none has
    one, there are too few for another order than that they are shown in.
    """
    early = []
    for packet, place in packets:
        if packet.dts is None:
            early.append((packet, place))
            continue
        for back, (before, _) in enumerate(reversed(early), 1):
            before.dts = packet.dts - round(back / (stream.average_rate * stream.time_base))
        yield from early
        early = []
        yield packet, place
    for packet, _ in early:
        packet.dts = packet.pts
    yield from early


def _moved(packets: Iterator[tuple[Any, Any]], seconds: float) -> Iterator[tuple[Any, Any]]:
    """Yield the packets so much later."""
    for packet, stream in packets:
        if packet.pts is not None:  # what has no time cannot be put anywhere
            packet.pts += round(seconds / packet.time_base)
            packet.dts = packet.pts
            yield packet, stream


def _start(stream: Any) -> float:
    return float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0


def _time(item: tuple[Any, Any]) -> float:
    return float(item[0].dts * item[0].time_base)
