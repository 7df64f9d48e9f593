"""Decoded frames as arrays "f h w 3", and who makes room for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Allocate = Callable[[tuple[int, ...]], Frames]
