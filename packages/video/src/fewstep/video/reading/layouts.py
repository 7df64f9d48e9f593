"""Which videos lie where, with which captions: folders, tables, archives, each as one list."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fewstep.core.data.captioned import MAX_CAPTION, RANGE, read_caption
from fewstep.core.data.prompts import SUFFIXES as PROMPTS
from fewstep.core.data.reading import SUFFIXES as IMAGES
from fewstep.core.data.tars import Corrupt, find_archives, samples
from fewstep.core.errors import UserError, check
from fewstep.video.reading import tables
from fewstep.video.reading.info import ClipSource

log = logging.getLogger("fewstep.data")

VIDEOS = frozenset(
    (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".3gp")
)


@dataclass(frozen=True)
class Captioned:
    """A clip and its caption."""

    source: ClipSource
    caption: str


def list_clips(path: str | Path, column: str = "", max_bad_share: float = 0.01) -> list[Captioned]:
    """Return the clips that a path means, in an order of their own; none is opened.

    A table (:mod:`.tables`), or ``videos.txt`` with ``prompt.txt`` beside it; a folder that holds one, or videos and
    folders of images with a ``.txt`` or ``.json`` of the same name beside each; webdataset archives (a ``.tar``, a
    folder of them, a pattern with ``*``, a brace range).
    Videos without a caption, or named and not there, are left out and counted: UserError above ``max_bad_share``, and
    for anything else that does not fit.
    """
    given = Path(path).expanduser()
    if str(path).endswith(".tar") or RANGE.search(str(path)) or "*" in given.name:
        return _archives(path, column, max_bad_share)
    check(given.exists(), f"{given}: not there; give a folder of videos, a table of them, or .tar archives")
    if given.name == tables.VIDEO_LIST and given.is_file():
        return _found(given, tables.read_lists(given, column), max_bad_share)
    if given.is_file():
        known = ", ".join(tables.SUFFIXES)
        check(given.suffix in tables.SUFFIXES, f"{given}: videos are listed in {known}; or give their folder")
        return _found(given, tables.read_table(given, column), max_bad_share)
    table = next((given / name for name in tables.NAMES if (given / name).is_file()), None)
    if table is not None:
        return _found(table, tables.read_table(table, column), max_bad_share)
    if tables.caption_list(given) is not None:
        lists = given / tables.VIDEO_LIST
        return _found(lists, tables.read_lists(lists, column), max_bad_share)
    clips = _clips_under(given)
    if not clips and any(given.glob("*.tar")):
        return _archives(path, column, max_bad_share)
    check(bool(clips), f"{given}: no video in it; read are {', '.join(sorted(VIDEOS))}, folders of images, and .tar")
    return _beside(given, clips, column, max_bad_share)


def means_videos(path: str | Path) -> bool:
    """Return whether a path means videos, and not a file of prompts.

    UserError for a table that seems to name videos, in a column that is not known for it.
    """
    given = Path(path).expanduser()
    if str(path).endswith(".tar") or RANGE.search(str(path)) or "*" in given.name or given.is_dir():
        return True
    if given.name == tables.VIDEO_LIST and given.is_file():
        return True
    if given.suffix not in tables.SUFFIXES or not given.is_file():
        return given.suffix.lower() not in PROMPTS
    row = tables.first_row(given)
    if row is None or tables.names_videos(row):
        return row is not None
    odd = next((key for key, value in row.items() if str(value).strip().lower().endswith(tuple(VIDEOS))), None)
    check(
        odd is None,
        f"{given}: its column '{odd}' seems to name videos: call it {tables.FILES[0]}, or give --prompts to take its "
        "texts alone",
    )
    return False


def _clips_under(root: Path) -> list[Path]:
    """Return the videos anywhere under a folder, and the folders in it that hold images and no video, sorted."""
    files = [file for file in root.rglob("*") if file.is_file()]
    videos = {file for file in files if file.suffix.lower() in VIDEOS}
    folders = {file.parent for file in files if file.suffix.lower() in IMAGES - VIDEOS}
    return sorted(videos | (folders - {video.parent for video in videos} - {root}))


def _beside(root: Path, clips: Iterable[Path], column: str, max_bad_share: float) -> list[Captioned]:
    found, missing = [], []
    for clip in clips:
        stem = clip.parent / (clip.name if clip.is_dir() else clip.stem)
        order = (".json",) if column else (".txt", ".json")
        file = next((path for suffix in order if (path := Path(f"{stem}{suffix}")).is_file()), None)
        if file is None:
            missing.append(str(clip))
            continue
        with open(file, "rb") as opened:
            text = read_caption(opened.read(MAX_CAPTION + 1), str(file), column, file.suffix == ".json")
        found.append(Captioned(ClipSource(clip), text))
    advice = "has no caption: write it next to it, as .txt or .json"
    return _checked(str(root), found, missing, max_bad_share, advice)


def _found(table: Path, rows: Iterable[tuple[Path, str]], max_bad_share: float) -> list[Captioned]:
    found, missing = [], []
    for file, caption in rows:
        if file.exists():
            found.append(Captioned(ClipSource(file), caption))
        else:
            missing.append(str(file))
    return _checked(str(table), found, missing, max_bad_share, "is not there: remove its row or add it")


def _archives(path: str | Path, column: str, max_bad_share: float) -> list[Captioned]:
    archives = find_archives(path)
    found: list[Captioned] = []
    missing: list[str] = []
    damaged: list[str] = []
    for archive in archives:
        try:
            some, without = _scan(archive, column)
        except (Corrupt, OSError) as error:
            damaged.append(f"{archive} ({getattr(error, 'strerror', None) or error})")
            log.warning("%s: skipped, a damaged archive", damaged[-1])
            continue
        found += some
        missing += without
    if len(damaged) / len(archives) > max_bad_share:
        many = f"{len(damaged)} of {len(archives)} archives are damaged, more than max_bad_share={max_bad_share:g}"
        raise UserError(f"{path}: {many}; the first is {damaged[0]}: copy it again")
    check(bool(found or missing), f"{path}: no video in its archives; read are {', '.join(sorted(VIDEOS))}")
    advice = "has no usable .txt or .json of the same name beside it"
    return _checked(str(path), found, missing, max_bad_share, advice)


def _scan(archive: Path, column: str) -> tuple[list[Captioned], list[str]]:
    """Return an archive's clips and the names of those without a caption; Corrupt when it is damaged."""
    found, missing = [], []
    with open(archive, "rb") as file:
        for parts in samples(file):
            video = next((member for suffix, member in parts.items() if suffix in VIDEOS), None)
            if video is None:
                continue
            text = parts.get(".json") if column or ".txt" not in parts else parts[".txt"]
            where = f"{archive}:{video.name}"
            if text is None or text.size > MAX_CAPTION:
                missing.append(where)
                continue
            file.seek(text.offset)
            try:
                is_json = text.name.lower().endswith(".json")
                caption = read_caption(file.read(text.size), f"{archive}:{text.name}", column, is_json)
            except UserError as error:
                log.debug("%s: %s", where, error)
                missing.append(where)
                continue
            found.append(Captioned(ClipSource(archive, video.offset, video.size, video.name), caption))
    return found, missing


def _checked(
    where: str, found: list[Captioned], missing: list[str], max_bad_share: float, advice: str
) -> list[Captioned]:
    """Return what was found; UserError when more than a share of it is missing, a warning when some is."""
    if missing:
        total = len(found) + len(missing)
        message = f"{where}: {len(missing)} of {total} videos are left out; the first, {missing[0]}, {advice}"
        if not found or len(missing) / total > max_bad_share:
            raise UserError(f"{message}, or raise max_bad_share={max_bad_share:g}")
        log.warning("%s", message)
    return found
