"""What every test runs under: no network, no clock, the same random examples on every run."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A deadline would make a law fail on a busy machine; random examples would make it fail on some runs only.
settings.register_profile("fewstep", deadline=None, derandomize=True)
settings.load_profile("fewstep")
