"""What every test runs under: no network, no clock, the same random examples on every run."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "FEWSTEP_CACHE" not in os.environ:  # one for all workers, which inherit it
    os.environ["FEWSTEP_CACHE"] = tempfile.mkdtemp(prefix="fewstep-tests-")
    atexit.register(shutil.rmtree, os.environ["FEWSTEP_CACHE"], ignore_errors=True)

# A deadline would make a law fail on a busy machine; random examples would make it fail on some runs only.
settings.register_profile("fewstep", deadline=None, derandomize=True)
settings.load_profile("fewstep")
