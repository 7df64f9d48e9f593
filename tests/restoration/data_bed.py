"""Pictures and pairs for tests of data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewstep.restoration.data.examples import Photos
from fewstep.restoration.data.settings import DataConfig

# photos that are not part of the repository lie beside it, where they are
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Pixels "h w 3" of which no two places look alike."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def shrunk(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Every ``scale``-th pixel: a bad picture that tells where it lies in the good one."""
    return pixels[::scale, ::scale]


def make_folder(root: Path, count: int = 4, size: tuple[int, int] = (40, 48)) -> Path:
    for i in range(count):
        write(root / f"{i % 2}" / f"{i:02d}.png", noise(*size, i))
    return root


def make_pairs(root: Path, hr: str = "HR", lr: str = "LR", name: str = "{}", count: int = 4, scale: int = 4) -> Path:
    for i in range(count):
        pixels = noise(40, 48, i)
        write(root / hr / f"{i:02d}.png", pixels)
        write(root / lr / f"{name.format(f'{i:02d}')}.png", shrunk(pixels, scale))
    return root


def photos(count: int = 5, height: int = 40, width: int = 52) -> Photos:
    generator = torch.Generator().manual_seed(5)
    return Photos([(f"p{i}", torch.rand(3, height, width, generator=generator)) for i in range(count)])


def config(**settings) -> DataConfig:
    return DataConfig(**{"crop": 16, **settings})
