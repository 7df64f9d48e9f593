"""Clips as files that others open: videos, and strips of frames."""

from fewstep.video.writing.clips import CODECS, write_clip, write_pieces
from fewstep.video.writing.strips import draw_strip

__all__ = ["CODECS", "draw_strip", "write_clip", "write_pieces"]
