"""Webdataset archives: one scan notes where every picture lies, afterwards any of them is read from its place.

Nothing is ever extracted. Members are grouped by their name up to the first dot; links, devices and names that lead
elsewhere are ignored.
"""

from __future__ import annotations

import glob
import io
import logging
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.captioned import MAX_CAPTION, RANGE, count_missing, digest_of, read_caption
from fewstep.core.data.damage import BadFiles, Damaged
from fewstep.core.data.reading import SUFFIXES, UNREADABLE, read_image
from fewstep.core.errors import UserError, check

log = logging.getLogger("fewstep.data")

BLOCK = tarfile.BLOCKSIZE
MAX_NAME = 2**16  # bytes of an extended header
MAX_ARCHIVES = 100_000
_SIZED = (*tarfile.REGULAR_TYPES, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)


class Corrupt(Exception):
    """An archive that cannot be walked through; the message is the reason."""


@dataclass(frozen=True)
class Member:
    """A file inside an archive."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Entry:
    """A picture and its caption."""

    archive: int
    image: Member
    caption: str


class TarShards:
    """Pictures of webdataset archives, each with a caption in a ``.txt`` or ``.json`` member of the same key.

    ``path``: a ``.tar``, a folder of them, a pattern with ``*``, or a range ``{00000..00012}``. ``column``: of
    ``.json`` members. Archives that are damaged, and pictures without a usable caption, are left out and counted;
    UserError when they are more than ``max_bad_share`` of all, or nothing is left.
    """

    def __init__(self, path: str | Path, column: str = "", max_bad_share: float = 0.01) -> None:
        self.archives = find_archives(path)
        self._entries: list[Entry] = []
        missing: list[str] = []
        corrupt: list[str] = []
        for number, archive in enumerate(self.archives):
            try:
                found, without = _scan(archive, number, column)
            except (Corrupt, OSError) as error:
                corrupt.append(f"{archive} ({getattr(error, 'strerror', None) or error})")
                log.warning("%s: skipped, a damaged archive", corrupt[-1])
                continue
            self._entries += found
            missing += without
        if len(corrupt) / len(self.archives) > max_bad_share:
            raise UserError(
                f"{path}: {len(corrupt)} of {len(self.archives)} archives are damaged, more than "
                f"max_bad_share={max_bad_share:g}; the first is {corrupt[0]}: copy it again"
            )
        total = len(self._entries) + len(missing)
        check(total > 0, f"{path}: no picture in its {len(self.archives)} archives; read are {', '.join(SUFFIXES)}")
        count_missing(
            str(path), missing, total, max_bad_share, "has no usable .txt or .json of the same name beside it"
        )
        self.bad = BadFiles(str(path), len(self._entries), max_bad_share)
        self.identity = digest_of((self.archives[e.archive].name, e.image.name, e.image.size) for e in self._entries)

    def __len__(self) -> int:
        """Return the number of pictures with a caption."""
        return len(self._entries)

    def caption(self, index: int) -> str:
        """Return a caption."""
        return self._entries[index].caption

    def picture(self, index: int) -> Float[Tensor, "c h w"]:
        """Return a picture in [0, 1]; Damaged or TrainingError as in :class:`.captioned.Captioned`."""
        entry = self._entries[index]
        name = f"{self.archives[entry.archive]}:{entry.image.name}"
        if index in self.bad.indices:
            raise Damaged(name)
        try:
            with open(self.archives[entry.archive], "rb") as file:
                return read_image(io.BytesIO(_read(file, entry.image)), 3)
        except (*UNREADABLE, Corrupt) as error:
            self.bad.add(index, name, error)
            raise Damaged(name) from error


def find_archives(path: str | Path) -> list[Path]:
    """Return the archives a path, a pattern, a folder or a brace range means; UserError when one is missing."""
    given = str(Path(path).expanduser())
    found = [Path(each) for text in _expand(given) for each in (sorted(glob.glob(text)) if "*" in text else [text])]
    if len(found) == 1 and found[0].is_dir():
        found = sorted(found[0].glob("*.tar"))
    check(bool(found), f"{path}: no archive there; give a .tar, a folder of them, a pattern or {{00000..00012}}")
    for archive in found:
        check(archive.is_file(), f"{path}: no archive {archive}; mend the path or the range")
        check(archive.suffix == ".tar", f"{archive}: archives must be uncompressed .tar files; decompress it")
    return found


def _expand(text: str) -> Iterator[str]:
    braces = RANGE.search(text)
    if braces is None:
        yield text
        return
    first, last = int(braces[1]), int(braces[2])
    check(first <= last, f"{text}: the range {braces[0]} is empty; write the smaller number first")
    check(last - first < MAX_ARCHIVES, f"{text}: the range {braces[0]} is more than {MAX_ARCHIVES} archives")
    for number in range(first, last + 1):
        name = f"{number:0{len(braces[1])}d}"
        yield from _expand(text[: braces.start()] + name + text[braces.end() :])


def _scan(archive: Path, number: int, column: str) -> tuple[list[Entry], list[str]]:
    """Return the captioned pictures of an archive and the names of those without; Corrupt when it is damaged."""
    found, missing = [], []
    with open(archive, "rb") as file:
        for parts in samples(file):
            image = next((member for suffix, member in parts.items() if suffix in SUFFIXES), None)
            if image is None:
                continue
            try:
                found.append(Entry(number, image, _caption(file, archive, parts, column)))
            except UserError as error:
                log.debug("%s: %s", image.name, error)
                missing.append(f"{archive}:{image.name}")
    return found, missing


def _caption(file: BinaryIO, archive: Path, parts: Mapping[str, Member], column: str) -> str:
    text = parts.get(".json") if column or ".txt" not in parts else parts[".txt"]
    if text is None:
        raise UserError("no .txt or .json beside it")
    where = f"{archive}:{text.name}"
    check(text.size <= MAX_CAPTION, f"{where}: {text.size} bytes are more than a caption's {MAX_CAPTION}")
    return read_caption(_read(file, text), where, column, text.name.lower().endswith(".json"))


def samples(file: BinaryIO) -> Iterable[dict[str, Member]]:
    """Return the files of an archive that share a name up to its first dot, by what follows; Corrupt as `members`."""
    groups: dict[str, dict[str, Member]] = {}
    for member in members(file):
        path = PurePosixPath(member.name)
        stem, _, suffix = path.name.partition(".")
        if stem and not path.is_absolute() and ".." not in path.parts:
            groups.setdefault(str(path.parent / stem), {}).setdefault(f".{suffix.lower()}", member)
    return groups.values()


def members(file: BinaryIO) -> Iterator[Member]:
    """Yield the regular files of an archive; Corrupt where a header, or what it says, does not fit the archive."""
    end = file.seek(0, io.SEEK_END)
    at, long_name, long_size = 0, "", -1
    while at < end:
        file.seek(at)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Corrupt(f"{error} at byte {at}") from error
        special = info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        size = info.size if special or long_size < 0 else long_size
        if info.type not in _SIZED and info.type in tarfile.SUPPORTED_TYPES:
            size = 0  # links, folders and devices carry no data
        start = at + BLOCK
        if not 0 <= size <= end - start:
            raise Corrupt(f"'{info.name}' at byte {at} is longer than the archive: truncated")
        if info.type == tarfile.GNUTYPE_LONGNAME:
            long_name = _extended(file, size, at).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.XHDTYPE:
            pax = _pax(_extended(file, size, at), at)
            long_name, long_size = pax.get("path", ""), _size(pax, at)
        elif not special:
            if info.isreg() and not info.issparse():
                yield Member(long_name or info.name, start, size)
            long_name, long_size = "", -1
        at = start + -(-size // BLOCK) * BLOCK


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) != member.size:
        raise Corrupt("the archive has changed since it was opened")
    return data


def _extended(file: BinaryIO, size: int, at: int) -> bytes:
    if size > MAX_NAME:
        raise Corrupt(f"an extended header of {size} bytes at byte {at}")
    return file.read(size)


def _size(pax: dict[str, str], at: int) -> int:
    text = pax.get("size")
    if text is None:
        return -1
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise Corrupt(f"a member of size '{text[:30]}' at byte {at}")
    return int(text)


def _pax(data: bytes, at: int) -> dict[str, str]:
    """Return the records ``length key=value`` of a pax header (POSIX.1-2001)."""
    found, start = {}, 0
    while start < len(data) and data[start] != 0:
        digits, space, _ = data[start : start + 10].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[start : start + length]
        if not space or length <= len(digits) + 1 or len(record) != length or not record.endswith(b"\n"):
            raise Corrupt(f"a damaged extended header at byte {at}")
        key, _, value = record[len(digits) + 1 : -1].partition(b"=")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        start += length
    return found
