"""Tables of videos and captions as other tools write them: WebVid, Hugging Face folders, FastVideo, plain ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fewstep.core.data.captioned import MAX_CAPTION
from fewstep.core.data.prompts import COLUMNS, MAX_BYTES, decode, parse_json, pick_column, table_rows
from fewstep.core.errors import UserError, check

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
# a folder with one of these is listed by it
NAMES = ("metadata.jsonl", "metadata.csv", "videos2caption.json")
WEBVID = ("videoid", "page_dir", "name")  # the caption is the name, the file page_dir/videoid.mp4
FILES = ("file_name", "path", "video", "video_path", "file")

VIDEO_LIST, CAPTION_LISTS = "videos.txt", ("prompt.txt", "prompts.txt")

Row = tuple[str, Mapping[str, Any]]


def read_table(table: Path, column: str = "") -> list[tuple[Path, str]]:
    """Return the files a table names, whether they are there or not, with their captions, in its order.

    A row is a video: WebVid's ``videoid``, ``page_dir`` and ``name``, or a path in one of :data:`FILES` and a caption
    in ``column``, by default ``text``, ``caption``, ``prompt`` or ``cap``. Paths are relative to the table's folder,
    or to ``videos`` in it, and stay inside. UserError names line and column.
    """
    rows = list(_rows(table))
    check(bool(rows), f"{table}: no row in it; write one per video")
    return [_entry(table, f"{table}, {where}", row, column) for where, row in rows]


def caption_list(folder: Path) -> Path | None:
    """Return the list of captions beside a folder's list of videos; None unless it has both."""
    if not (folder / VIDEO_LIST).is_file():
        return None
    return next((folder / name for name in CAPTION_LISTS if (folder / name).is_file()), None)


def read_lists(videos: Path, column: str = "") -> list[tuple[Path, str]]:
    """Return the files that a list names, one a line, with the captions on the same lines of the list beside it.

    UserError for lists that do not fit each other, and as for :func:`read_table`.
    """
    check(not column, f"{videos}: lists have no column '{column}'; leave the column out")
    captions = caption_list(videos.parent)
    if captions is None:
        raise UserError(f"{videos}: no {' or '.join(CAPTION_LISTS)} beside it; write one caption a line")
    files, texts = (_content(each).rstrip("\r\n").split("\n") for each in (videos, captions))
    check(
        len(files) == len(texts),
        f"{videos}: {len(files)} lines, and {captions.name} has {len(texts)}: line N of one belongs to line N of the "
        "other",
    )
    rows = [
        ({"file": file.strip(), "text": text}, number)
        for number, (file, text) in enumerate(zip(files, texts, strict=True), 1)
    ]
    return [_entry(videos, f"{videos}, line {number}", row, "text") for row, number in rows]


def first_row(table: Path) -> Mapping[str, Any] | None:
    """Return the first row of a table; None where it has none, or holds texts alone."""
    text = _content(table)
    if table.suffix in (".csv", ".tsv"):
        return next((row for _, row in _comma_rows(table, text)), None)
    if table.suffix == ".jsonl":
        number, line = next(((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()), (1, "null"))
        found = parse_json(line, f"{table}, line {number}")
    else:
        whole = parse_json(text, str(table))
        found = whole[0] if isinstance(whole, list) and whole else None
    return found if isinstance(found, dict) else None


def names_videos(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a column that is known to name a video."""
    return set(WEBVID) <= set(row) or _path_column(row) is not None


def _content(table: Path) -> str:
    try:
        size = table.stat().st_size
        check(size <= MAX_BYTES, f"{table}: {size / 2**20:.0f} MiB are more than {MAX_BYTES // 2**20}; split the table")
        return decode(table.read_bytes(), str(table))
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror or error}); give a table of videos") from error


def _comma_rows(table: Path, text: str) -> Iterable[Row]:
    return table_rows(table, text.split("\n"), "\t" if table.suffix == ".tsv" else ",")


def _rows(table: Path) -> Iterable[Row]:
    text = _content(table)
    if table.suffix in (".csv", ".tsv"):
        return _comma_rows(table, text)
    if table.suffix == ".jsonl":
        found = [
            (f"line {number}", parse_json(line, f"{table}, line {number}"))
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip()
        ]
    else:
        entries = parse_json(text, str(table))
        check(isinstance(entries, list), f"{table}: must hold a list of objects; one object per line is .jsonl")
        found = [(f"entry {number}", entry) for number, entry in enumerate(entries, 1)]
    for where, row in found:
        check(isinstance(row, dict), f"{table}, {where}: must be a JSON object with the video's path and its caption")
    return found


def _path_column(row: Mapping[str, Any]) -> str | None:
    return next((name for wanted in FILES for name in row if name.strip().lower() == wanted), None)


def _entry(table: Path, where: str, row: Mapping[str, Any], column: str) -> tuple[Path, str]:
    names = list(row)
    path = None
    if set(WEBVID) <= set(names):
        file, caption = f"{_text(row, 'page_dir', where)}/{_text(row, 'videoid', where)}.mp4", column or "name"
    else:
        path = _path_column(row)
        if path is None:
            there = ", ".join(names) or "nothing"
            raise UserError(f"{where}: no column {', '.join(FILES)}, nor WebVid's {', '.join(WEBVID)}; only {there}")
        file, caption = _text(row, path, where), column
        if not caption and "cap" in names and not set(COLUMNS) & set(names):
            caption = "cap"
    text = _text(row, pick_column([name for name in names if name != path], caption, where), where)
    check(
        len(text.encode()) <= MAX_CAPTION, f"{where}: a caption of {len(text)} characters; at most {MAX_CAPTION} bytes"
    )
    return _inside(table.parent, file, where), text.strip()


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row[name]
    # a JSON table may hold WebVid's ids as numbers
    if name in WEBVID and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    # FastVideo writes a list of captions
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) and isinstance(value[0], str):
        return str(value[0])
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} must be text, found {type(value).__name__}")
    return value


def _inside(root: Path, name: str, where: str) -> Path:
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set("\\\0") & set(name)
    check(inside, f"{where}: '{name}' leads out of {root}: videos must lie in the table's folder")
    within = root / "videos" / name
    return within if not (root / name).exists() and within.exists() else root / name
