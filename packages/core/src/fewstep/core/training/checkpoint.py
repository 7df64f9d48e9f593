"""Checkpoints on disk: written aside, hashed, named last; read only when every byte is as it was written.

``checkpoints/step-N/`` holds safetensors files, ``state.json`` and ``manifest.json`` (sizes and SHA-256 of the others,
written last). The folder has another name until all of that is on the disk, so a kill at any instant leaves the older
ones.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.data.writing import sha256
from fewstep.core.errors import TrainingError

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
_STEP = re.compile(r"step-(\d+)")
_ASIDE = (".writing-", ".deleting-")


class Refused(Exception):
    """A checkpoint that must not be read; the message is the reason."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds: tensors by file and name, and the rest as JSON knows it."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Return ``(step, path)`` of the published checkpoints in a folder, newest first, verified or not."""
    found = [(int(m[1]), path) for path in folder.glob("step-*") if (m := _STEP.fullmatch(path.name))]
    return sorted(found, reverse=True)


def write_checkpoint(folder: Path, step: int, snapshot: Snapshot) -> Path:
    """Publish a snapshot as ``folder/step-N``; TrainingError when the disk refuses, with nothing half-written left."""
    final, aside = folder / f"step-{step}", folder / f"{_ASIDE[0]}step-{step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean_up(folder)
        aside.mkdir()
        for name, tensors in snapshot.tensors.items():
            _write_tensors(aside / f"{name}.safetensors", tensors)
        _write_json(aside / STATE, {"format": FORMAT, "step": step, **snapshot.state})
        files = {path.name: _fingerprint(path) for path in sorted(aside.iterdir())}
        _write_json(aside / MANIFEST, {"format": FORMAT, "files": files})
        _sync(aside)
        if final.exists():  # one that did not verify, or this step again
            _discard(final)
        _publish(aside, final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise TrainingError(_disk_message(final, error, folder)) from error
    return final


def _disk_message(final: Path, error: Exception, folder: Path) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error) or "os error 28" in str(error)
    reason = "the disk is full" if full else str(getattr(error, "strerror", None) or error)
    older = checkpoints_in(folder)
    kept = f"{older[0][1].name} is intact, resume from it" if older else "there is no older one"
    return f"{final}: checkpoint not written, {reason}; {kept}"


def prune(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest checkpoints."""
    for _, path in checkpoints_in(folder)[keep:]:
        _discard(path)


def clean_up(folder: Path) -> None:
    """Delete what a killed process left half-written or half-deleted."""
    for path in folder.glob(".*"):
        if path.name.startswith(_ASIDE):
            shutil.rmtree(path, ignore_errors=True)


def verify(path: Path) -> None:
    """Return when a checkpoint is as it was written; otherwise raise :class:`Refused` with the reason."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise Refused(f"no {MANIFEST}: it was never finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Refused(f"{MANIFEST} cannot be read") from None
    if manifest.get("format") != FORMAT:
        raise Refused(f"format {manifest.get('format')} is not one this version reads ({FORMAT})")
    if STATE not in files:
        raise Refused(f"{MANIFEST} lists no {STATE}")
    for name, (size, digest) in files.items():
        if Path(name).name != name:
            raise Refused(f"{MANIFEST} names a file outside the checkpoint")
        _verify_file(path / name, size, digest)


def _verify_file(path: Path, size: int, digest: str) -> None:
    try:
        found = path.stat().st_size
        if found != size:
            raise Refused(f"{path.name} is truncated or changed: {found} bytes instead of {size}")
        if sha256(path) != digest:
            raise Refused(f"{path.name} is damaged: its SHA-256 differs")
    except OSError as error:
        raise Refused(f"{path.name} cannot be read ({error.strerror})") from None


def read_checkpoint(path: Path, device: str = "cpu") -> Snapshot:
    """Return the content of a verified checkpoint; :class:`Refused` when it cannot be parsed."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError
        tensors = {file.stem: load_file(file, device=device) for file in sorted(path.glob("*.safetensors"))}
    except (OSError, ValueError, SafetensorError) as error:
        raise Refused(f"cannot be parsed ({str(error).splitlines()[0] if str(error) else STATE})") from None
    return Snapshot(tensors, state)


def candidates(folder: Path, step: int | None = None) -> Iterator[tuple[Path, str]]:
    """Yield the checkpoints of a folder, newest first, each with the reason it is refused or an empty string.

    ``step``: only that one.
    """
    for number, path in checkpoints_in(folder):
        if step not in (None, number):
            continue
        try:
            verify(path)
        except Refused as reason:
            yield path, str(reason)
        else:
            yield path, ""


def is_verified(path: Path) -> bool:
    """Return whether there is a checkpoint at ``path`` that verifies."""
    try:
        verify(path)
    except Refused:
        return False
    return True


def refusals(refused: Sequence[tuple[Path, str]]) -> str:
    """Return refused checkpoints and their reasons as one line."""
    return "; ".join(f"{path.name} refused: {reason}" for path, reason in refused)


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # a clone each: tied weights share memory, which the format refuses
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, path)
    _sync(path)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def _publish(aside: Path, final: Path) -> None:
    os.rename(aside, final)


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be synchronised there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(path: Path) -> None:
    # renamed first: a kill in the middle must not leave half a checkpoint under its name
    doomed = path.with_name(f"{_ASIDE[1]}{path.name}")
    os.rename(path, doomed)
    shutil.rmtree(doomed)
