"""Checkpoint files of torch (``torch.save``'s zip format, as Lightning writes it), read without unpickling anything."""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fewstep.core.errors import UserError, check
from fewstep.lidar.models.pickled import SavedTensor, read_pickle

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
}
HELD = ("state_dict", "model_state_dict", "model")  # where trainers put it; otherwise it is the whole file
INDEX_LIMIT = 1 << 26  # bytes of the description of all tensors; that of a network of a thousand has 200 kB
NAME_LIMIT = 256
DIMENSIONS = 8
AGAIN = "download or copy it again"
UNREADABLE = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError, OverflowError)


def shown(name: str) -> str:
    """Return a name out of a file as it can stand in a message: on one line, quoted, not too long."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint's state dict, in the order of the file, each read when it is asked for.

    A context manager. Raises UserError for what is no such file or is damaged, when it is opened or a tensor read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._zip = _open(file)
        try:
            self._entries, self._folder = _entries(self._zip, file)
            self._saved = _state_dict(self._index(), file)
            check(
                sum(map(_bytes, self._saved.values())) <= file.stat().st_size,
                f"{file}: its tensors are more than the file can hold: {AGAIN}",
            )
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Checkpoint:
        """Return the checkpoint."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._zip.close()

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._saved)

    def __iter__(self) -> Iterator[str]:
        """Return the names of the tensors, in order."""
        return iter(self._saved)

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor, contiguous; UserError where it does not lie within the file."""
        saved = self._saved[name]
        storage = saved.storage
        where = f"{self.file}: tensor {shown(name)}"
        dtype = DTYPES.get(storage.kind)
        if dtype is None:
            raise UserError(f"{where} is made of {shown(storage.kind)}, and only numbers are read")
        check(_sane(saved), f"{where} does not lie within its storage: {AGAIN}")
        entry = self._entries.get(f"{self._folder}data/{storage.key}")
        if entry is None or entry.file_size != storage.numel * dtype.itemsize:
            raise UserError(f"{where} has no storage of the right size: {AGAIN}")
        whole = torch.frombuffer(bytearray(self._read(entry)), dtype=dtype)
        return whole.as_strided(saved.shape, saved.strides, saved.offset).clone(memory_format=torch.contiguous_format)

    def _index(self) -> Any:
        order = self._entries.get(f"{self._folder}byteorder")
        big = sys.byteorder == "big" if order is None else order.file_size != 6 or self._read(order) != b"little"
        check(not big, f"{self.file}: its numbers are big-endian, which is not read; save it on another machine")
        entry = self._entries[f"{self._folder}data.pkl"]
        check(
            entry.file_size <= INDEX_LIMIT, f"{self.file}: describes more tensors than any network of this package has"
        )
        try:
            return read_pickle(self._read(entry))
        except ValueError as error:
            raise UserError(f"{self.file}: damaged ({_line(error)}): {AGAIN}") from error

    def _read(self, entry: zipfile.ZipInfo) -> bytes:
        try:
            data = self._zip.read(entry)
        except UNREADABLE as error:
            raise UserError(f"{self.file}: damaged ({_line(error)}): {AGAIN}") from error
        check(len(data) == entry.file_size, f"{self.file}: damaged: {AGAIN}")
        return data


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _open(file: Path) -> zipfile.ZipFile:
    check(file.is_file(), f"{file}: no such file; give a checkpoint (.ckpt, .pt)")
    with file.open("rb") as stream:
        start = stream.read(4)
    check(
        not start.startswith(b"\x80"),
        f"{file}: saved in torch's old format, which is not read; save it once more with torch 1.6 or later",
    )
    check(start == b"PK\x03\x04", f"{file}: not a checkpoint of torch.save; give a .ckpt or .pt file")
    try:
        return zipfile.ZipFile(file)
    except UNREADABLE as error:
        raise UserError(f"{file}: incomplete or damaged ({_line(error)}): {AGAIN}") from error


def _entries(archive: zipfile.ZipFile, file: Path) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """Return the archive's entries and the folder they lie in; UserError unless all together fit into the file."""
    listed = archive.infolist()
    found = {entry.filename: entry for entry in listed}
    check(len(found) == len(listed), f"{file}: damaged (an entry is there twice): {AGAIN}")
    plain = all(
        entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size for entry in listed
    )
    check(plain, f"{file}: compressed or damaged; torch.save does not compress, give the file as it was saved")
    total = sum(entry.file_size for entry in listed)
    check(total <= file.stat().st_size, f"{file}: damaged (says it holds {total:,} bytes): {AGAIN}")
    folders = [name.removesuffix("data.pkl") for name in found if name.count("/") == 1 and name.endswith("/data.pkl")]
    check(len(folders) == 1, f"{file}: a zip archive, but not one of torch.save (no data.pkl)")
    return found, folders[0]


def _state_dict(root: Any, file: Path) -> dict[str, SavedTensor]:
    candidates = [root.get(name) for name in HELD] + [root] if isinstance(root, dict) else []
    for candidate in candidates:
        if isinstance(candidate, dict):
            tensors = {name: value for name, value in candidate.items() if isinstance(value, SavedTensor)}
            if tensors:
                longest = max(tensors, key=len)
                check(len(longest) <= NAME_LIMIT, f"{file}: {shown(longest)} is no name of a tensor: {AGAIN}")
                return tensors
    raise UserError(f"{file}: holds no state dict (tensors by name, or under 'state_dict')")


def _bytes(saved: SavedTensor) -> int:
    dtype = DTYPES.get(saved.storage.kind)
    return math.prod(saved.shape) * dtype.itemsize if dtype is not None and _sane(saved) else 0


def _sane(saved: SavedTensor) -> bool:
    """Return whether a tensor has elements, all within its storage, and no more of them than that has."""
    shape, strides, limit = saved.shape, saved.strides, saved.storage.numel
    if len(shape) != len(strides) or len(shape) > DIMENSIONS or min(shape, default=1) < 1:
        return False
    if saved.offset < 0 or min(strides, default=0) < 0 or max(0, saved.offset, *shape, *strides, limit) >= 1 << 62:
        return False
    last = saved.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    return last < limit and math.prod(shape) <= limit
