"""Captioned pictures on disk, as folders and as archives."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def pixels(index: int) -> np.ndarray:
    """A picture of its own size."""
    return np.random.default_rng(index).integers(0, 255, (20 + index, 30 - index, 3), dtype=np.uint8)


def truth(index: int) -> torch.Tensor:
    """The same, as it should be read."""
    return torch.from_numpy(pixels(index)).permute(2, 0, 1).float() / 255


def caption(index: int) -> str:
    """Captions repeat."""
    return f"picture {index % 3}"


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(index)).save(buffer, "PNG")
    return buffer.getvalue()


def make_folder(root: Path, count: int = 6, captions: str = ".txt") -> Path:
    """A folder with captions beside each picture, or in metadata of that name."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (root / f"{i}.png").write_bytes(png(i))
        if captions == ".txt":
            (root / f"{i}.txt").write_text(f"{caption(i)}\n")
    rows = [{"file_name": f"{i}.png", "text": caption(i)} for i in range(count)]
    if captions == "metadata.jsonl":
        (root / captions).write_text("\n".join(map(json.dumps, rows)))
    if captions == "metadata.csv":
        lines = ["file_name,text", *(f'{row["file_name"]},"{row["text"]}"' for row in rows)]
        (root / captions).write_text("\n".join(lines))
    return root


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def make_archive(path: Path, numbers: range, captions: str = ".txt", tar_format: int = tarfile.PAX_FORMAT) -> Path:
    """A webdataset archive of some of the pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for i in numbers:
            add(tar, f"part/{i:04d}.png", png(i))
            add(tar, f"part/{i:04d}.cls", b"0")
            text = caption(i) if captions == ".txt" else json.dumps({"id": i, "caption": caption(i)})
            add(tar, f"part/{i:04d}{captions}", text.encode())
    return path
