"""Pictures, or pairs of them, listed in a text file.

One path a line. More may follow it, as in ``meta_info.txt`` files ("name (480,480,3) 1"), and paths may hold spaces and
commas: a line means the longest beginning of it that is a file. "good, bad" is a pair; a path in quotes ends where they
do. Blank lines are skipped, and those that start with ``#``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fewstep.core.data.prompts import MAX_BYTES, decode
from fewstep.core.errors import UserError, check
from fewstep.restoration.data.examples import Entry
from fewstep.restoration.data.missing import left_out

MAX_LINE = 2**14  # characters
ENDS = re.compile(r"[\s,]+")  # what a path may end before
QUOTED = re.compile(r'"([^"]+)"\s*,?\s*')


def list_entries(path: Path, root: Path | None = None, max_bad_share: float = 0.01) -> list[Entry]:
    """Return the pictures or pairs of a list; relative ones start at ``root``, by default the list's own folder.

    UserError for a list that cannot be read or mixes pairs with single pictures, and when more than ``max_bad_share``
    of its files are missing.
    """
    root = path.parent if root is None else root
    try:
        size = path.stat().st_size
        check(path.is_file(), f"{path} is a folder: give a list of pictures, or domain.data.source=folder")
        check(size <= MAX_BYTES, f"{path}: {size / 2**20:.0f} MiB are more than {MAX_BYTES // 2**20}; split the list")
        text = decode(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); give a list of pictures") from error
    check(root.is_dir(), f"no folder {root}: give domain.data.root, where the paths of {path} start")
    found: list[Entry] = []
    missing: list[str] = []
    for number, line in _lines(text):
        check(len(line) <= MAX_LINE, f"{path}, line {number}: {len(line)} characters are no path; give one a line")
        files = _files(root, line)
        if files:
            found.append(Entry(files[0], files[1] if len(files) == 2 else None, _name(files[0], root)))
        else:
            missing.append(f"line {number}: no file '{line}' under {root}")
    total = len(found) + len(missing)
    check(total > 0, f"{path}: no picture in it; write one path a line")
    left_out(str(path), missing, total, max_bad_share, "mend the line, or give domain.data.root")
    pairs = sum(entry.lq is not None for entry in found)
    odd = next((entry for entry in found if (entry.lq is None) == (pairs > 0)), None)
    if odd is not None:
        raise UserError(f"{path}: {pairs} lines are pairs, but {odd.name} is alone; write 'good, bad' in every line")
    return found


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()


def _files(root: Path, line: str) -> list[Path]:
    """Return the file or the two files a line means; nothing when its first is not there, or the second of a pair."""
    first, rest = _longest(root, line)
    if first is None:
        return []
    second, _ = _longest(root, rest.removeprefix(",").strip())
    if second is None:
        return [] if rest.startswith(",") else [first]
    return [first, second]


def _longest(root: Path, text: str) -> tuple[Path | None, str]:
    """Return the file that the longest beginning of a text names, and what follows it."""
    quoted = QUOTED.match(text)
    if quoted:
        ends = [quoted.end(1) + 1]
    else:
        ends = [len(text), *(match.start() for match in reversed(list(ENDS.finditer(text))))]
    for end in ends:
        name = text[:end].strip('"')
        if name and _is_file(root / Path(name).expanduser()):
            return root / Path(name).expanduser(), text[end:].strip()
    return None, ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or a null character
        return False
