"""Clips out of files: what is in them, and the frames asked for, without trusting the files.

Videos are decoded in a process of their own with limits on time and memory: :mod:`.process` and :mod:`.worker`, through
PyAV (:mod:`.pyav`) or decord (:mod:`.with_decord`); folders of images are clips as well (:mod:`.frames`). Which frames
and which crop of a clip: :mod:`.sampling`. Which clips and captions lie where: :mod:`.layouts`, :mod:`.tables`.
"""

from fewstep.video.reading.clips import probe, read_clip
from fewstep.video.reading.info import ClipInfo, ClipSource, Limits, Unreadable

__all__ = ["ClipInfo", "ClipSource", "Limits", "Unreadable", "probe", "read_clip"]
