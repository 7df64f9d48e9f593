"""Pictures with captions: the protocol, and folders as they are found in the wild."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.damage import BadFiles, Damaged
from fewstep.core.data.prompts import MAX_BYTES, decode, parse_json, pick_column, read_prompts, table_rows
from fewstep.core.data.prompts import SUFFIXES as PROMPT_SUFFIXES
from fewstep.core.data.reading import SUFFIXES, UNREADABLE, image_files, read_image
from fewstep.core.errors import UserError, check

log = logging.getLogger("fewstep.data")

METADATA = ("metadata.jsonl", "metadata.csv")
FILE_NAME = "file_name"
MAX_CAPTION = 2**16  # bytes
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # of archives


@runtime_checkable
class Captioned(Protocol):
    """Pictures with captions, by index. ``identity``: a digest of which these are; ``bad``: those that are damaged."""

    identity: str
    bad: BadFiles

    def __len__(self) -> int:
        """Return the number of pictures, damaged ones included."""

    def caption(self, index: int) -> str:
        """Return a caption."""

    def picture(self, index: int) -> Float[Tensor, "c h w"]:
        """Return a picture in [0, 1], in colour and at its own size.

        :class:`.damage.Damaged` for one that cannot be read, TrainingError once there are too many of those.
        """


class CaptionedFolder:
    """Image files under a folder, with captions in ``metadata.jsonl``, ``metadata.csv`` or a ``.txt`` beside each.

    Metadata: one row per picture, ``file_name`` relative to the folder, and the caption in ``column`` (by default
    ``text``, ``caption`` or ``prompt``). Pictures without a caption are left out and counted. Raises UserError for a
    folder without pictures, for metadata that does not fit it, and when more than ``max_bad_share`` have no caption.
    """

    def __init__(self, root: Path, column: str = "", max_bad_share: float = 0.01) -> None:
        self.root = root
        files = image_files(root)
        table = next((root / name for name in METADATA if (root / name).is_file()), None)
        if table is not None:
            captions = _from_metadata(root, table, column)
            missing = f"has no row in {table.name}: add one"
        else:
            check(not column, f"{root}: no {' or '.join(METADATA)} there for the column '{column}' to be in")
            captions = _from_sidecars(files)
            missing = f"has no caption: write it next to it, as .txt, or all into {METADATA[0]}"
        self.files = [file for file in files if file in captions]
        self._captions = [captions[file] for file in self.files]
        without = [file for file in files if file not in captions]
        count_missing(str(root), [str(file) for file in without], len(files), max_bad_share, missing)
        self.bad = BadFiles(str(root), len(self.files), max_bad_share)
        self.identity = digest_of((file.relative_to(root).as_posix(), file.stat().st_size) for file in self.files)

    def __len__(self) -> int:
        """Return the number of pictures with a caption."""
        return len(self.files)

    def caption(self, index: int) -> str:
        """Return a caption."""
        return self._captions[index]

    def picture(self, index: int) -> Float[Tensor, "c h w"]:
        """Return a picture in [0, 1]; Damaged or TrainingError as in :class:`Captioned`."""
        if index in self.bad.indices:
            raise Damaged(str(self.files[index]))
        try:
            return read_image(self.files[index], 3)
        except UNREADABLE as error:
            self.bad.add(index, str(self.files[index]), error)
            raise Damaged(str(self.files[index])) from error


def open_captioned(path: str | Path, column: str = "", max_bad_share: float = 0.01) -> Captioned:
    """Return the captioned pictures a path means: a folder of images, or webdataset archives.

    Archives: a ``.tar``, a folder of them, a pattern with ``*``, or a brace range. UserError for anything else.
    """
    from fewstep.core.data.tars import TarShards

    if is_archives(path):
        return TarShards(path, column, max_bad_share)
    return CaptionedFolder(Path(path).expanduser(), column, max_bad_share)


def is_archives(path: str | Path) -> bool:
    """Return whether a path means tar archives: by its name, or as a folder with some and without pictures."""
    if str(path).endswith(".tar") or RANGE.search(str(path)) or "*" in Path(path).name:
        return True
    folder = Path(path).expanduser()
    if not folder.is_dir() or not any(folder.glob("*.tar")):
        return False
    return not any(file.suffix.lower() in SUFFIXES for file in folder.iterdir())


def open_data(path: str | Path, column: str = "", max_bad_share: float = 0.01) -> Captioned | list[str]:
    """Return captioned pictures, or the prompts of a file; UserError when a path is neither."""
    file = Path(path).expanduser()
    if file.suffix.lower() in PROMPT_SUFFIXES and not file.is_dir():
        return read_prompts(file, column)
    known = f"{path}: give prompts ({', '.join(PROMPT_SUFFIXES)}), a folder of captioned images, or .tar archives"
    check(file.is_dir() or is_archives(path), f"{known}; this is {'none of them' if file.exists() else 'not there'}")
    return open_captioned(path, column, max_bad_share)


def count_missing(where: str, missing: Sequence[str], total: int, max_bad_share: float, advice: str) -> None:
    """Log pictures that are left out for want of a caption; UserError for more than ``max_bad_share``."""
    if not missing:
        return
    message = f"{where}: {len(missing)} of {total} pictures are without a caption; the first, {missing[0]}, {advice}"
    if len(missing) == total or len(missing) / total > max_bad_share:
        raise UserError(f"{message}, or raise max_bad_share={max_bad_share:g}")
    log.warning("%s; they are left out", message)


def digest_of(parts: Iterable[Any]) -> str:
    """Return a digest of values as they are printed."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()


def read_caption(data: bytes, where: str, column: str = "", is_json: bool = False) -> str:
    """Return the caption in a file's content: the text, or the column of a JSON object; UserError when it is none."""
    check(len(data) <= MAX_CAPTION, f"{where}: {len(data)} bytes are more than a caption's {MAX_CAPTION}")
    text = decode(data, where)
    if is_json:
        found = parse_json(text, where)
        check(isinstance(found, dict), f"{where}: must hold a JSON object with the caption in it")
        text = found[pick_column(list(found), column, where)]
        check(isinstance(text, str), f"{where}: a caption must be text, found {type(text).__name__}")
    return text.strip()


def sidecar_caption(file: Path) -> str | None:
    """Return the caption in the ``.txt`` beside a file, None when there is none; UserError for what is no text."""
    text = file.with_suffix(".txt")
    if not text.is_file():
        return None
    with open(text, "rb") as opened:
        return read_caption(opened.read(MAX_CAPTION + 1), str(text))


def _from_sidecars(files: Sequence[Path]) -> dict[Path, str]:
    found = {file: sidecar_caption(file) for file in files}
    return {file: caption for file, caption in found.items() if caption is not None}


def _from_metadata(root: Path, table: Path, column: str) -> dict[Path, str]:
    size = table.stat().st_size
    check(size <= MAX_BYTES, f"{table}: {size / 2**20:.0f} MiB are more than {MAX_BYTES // 2**20}; split the folder")
    lines = decode(table.read_bytes(), str(table)).split("\n")
    rows: Iterable[tuple[str, Mapping[str, Any]]]
    if table.suffix == ".csv":
        rows = table_rows(table, lines, ",")
    else:
        rows = [
            (f"line {number}", _object(line, f"{table}, line {number}"))
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    return dict(_entry(root, f"{table}, {where}", row, column) for where, row in rows)


def _object(line: str, where: str) -> Mapping[str, Any]:
    found = parse_json(line, where)
    check(isinstance(found, dict), f"{where}: must be a JSON object with {FILE_NAME} and the caption")
    return dict(found)


def _entry(root: Path, where: str, row: Mapping[str, Any], column: str) -> tuple[Path, str]:
    name = row.get(FILE_NAME)
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: no {FILE_NAME}: name the picture, relative to {root}")
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts and "\\" not in name
    check(inside, f"{where}: {FILE_NAME} '{name}' leads out of {root}: pictures must lie in the folder")
    file = root / name
    check(file.is_file(), f"{where}: no file {file}: remove the row or add the picture")
    text = row[pick_column([key for key in row if key != FILE_NAME], column, where)]
    if not isinstance(text, str):
        raise UserError(f"{where}: a caption must be text, found {type(text).__name__}")
    return file, text.strip()
