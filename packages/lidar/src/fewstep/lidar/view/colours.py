"""One colour scale for heights: as even as the eye sees it, and lighter with height, which a gray print keeps."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

COLOURS = 256
LIGHTNESS = (0.52, 0.95)  # of the lowest and the highest: both stand out from the dark ground of the pictures
HUE_DEGREES = (292.0, 98.0)  # from violet over blue and green to yellow
CHROMA = 0.16  # at most: less where sRGB has no such colour

# Oklab (B. Ottosson, 2020): from the perceptual axes to cone responses, and from there to linear sRGB.
OKLAB_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
LMS_TO_SRGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def oklab_to_linear(lab: Array) -> Array:
    """Return the linear sRGB of Oklab colours "... 3"; components beyond [0, 1] are colours a screen lacks."""
    return np.asarray(((lab @ OKLAB_TO_LMS.T) ** 3) @ LMS_TO_SRGB.T)


def encode(linear: Array) -> Array:
    """Return linear sRGB as bytes by the curve of IEC 61966-2-1, values outside [0, 1] cut off."""
    values = np.clip(linear, 0, 1)
    curve = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    return np.asarray((curve * 255).round(), dtype=np.uint8)


def decode(colour: tuple[int, int, int]) -> Array:
    """Return the linear sRGB of a colour in bytes, the inverse of :func:`encode`."""
    values = np.array(colour, dtype=np.float64) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


@cache
def scale_oklab() -> Array:
    """Return the scale "256 3" in Oklab: a path through lightness and hue, walked in steps of equal length."""
    place = np.linspace(0, 1, 8 * COLOURS)
    lightness = LIGHTNESS[0] + (LIGHTNESS[1] - LIGHTNESS[0]) * place
    hue = np.radians(HUE_DEGREES[0] + (HUE_DEGREES[1] - HUE_DEGREES[0]) * place)
    low, high = np.zeros_like(place), np.full_like(place, CHROMA)
    for _ in range(20):  # the largest chroma a screen can show
        chroma = (low + high) / 2
        rgb = oklab_to_linear(np.stack((lightness, chroma * np.cos(hue), chroma * np.sin(hue)), -1))
        shown = ((rgb >= 0) & (rgb <= 1)).all(-1)
        low, high = np.where(shown, chroma, low), np.where(shown, high, chroma)
    chroma = _smooth(low)  # no bands where the limits of the screen have corners
    chroma *= (low / chroma).min()
    path = np.stack((lightness, chroma * np.cos(hue), chroma * np.sin(hue)), -1)
    walked = np.concatenate(([0.0], np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()))
    even = np.linspace(0, walked[-1], COLOURS)
    return np.stack([np.interp(even, walked, axis) for axis in path.T], -1)


def _smooth(values: Array, half: int = COLOURS) -> Array:
    """A running mean under a triangle, the ends held."""
    triangle = 1 - np.abs(np.arange(-half + 1, half)) / half
    return np.convolve(np.pad(values, half - 1, mode="edge"), triangle / triangle.sum(), mode="valid")


@cache
def scale_linear() -> Array:
    """Return the scale "256 3" as linear sRGB, float32."""
    return np.clip(oklab_to_linear(scale_oklab()), 0, 1).astype(np.float32)


def scale_bytes() -> Array:
    """Return the scale "256 3" as sRGB bytes."""
    return encode(scale_linear())


def places(values: Array, low: float, high: float) -> Array:
    """Return the rows of the scale that ``values`` have when it spans [low, high], uint8; beyond it, the ends'."""
    return np.asarray(np.clip((values - low) / (high - low) * COLOURS, 0, COLOURS - 1), dtype=np.uint8)
