"""Files written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

ASIDE = ".writing-"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, wait until it is on the disk, and give it its name."""
    aside = path.with_name(f"{ASIDE}{path.name}")
    try:
        write(aside)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, the same bytes on every system."""
    write_whole(path, lambda aside: aside.write_bytes(text.encode("utf-8")))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    owned: dict[str, Tensor] = {}
    for name, value in tensors.items():
        own = value.detach().cpu().contiguous()
        storages = {other.untyped_storage().data_ptr() for other in owned.values()}
        # the format refuses tensors that share memory
        owned[name] = own.clone() if own.untyped_storage().data_ptr() in storages else own

    def write(aside: Path) -> None:
        aside.touch()
        mode = aside.stat().st_mode
        save_file(owned, aside)
        aside.chmod(mode)  # safetensors may give a file to its owner only

    write_whole(path, write)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
