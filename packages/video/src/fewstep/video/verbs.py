"""The verbs the video domain adds to the command line; loads no library until one runs."""

from __future__ import annotations

from fewstep.core.image.verbs import PREPARE

VERBS = {"prepare": PREPARE}
