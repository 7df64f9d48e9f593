"""Pairs in two folders: good pictures in one, bad ones of the same names in the other."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fewstep.core.data.reading import image_files
from fewstep.core.errors import UserError, check
from fewstep.restoration.data.examples import Entry
from fewstep.restoration.data.missing import left_out

log = logging.getLogger("fewstep.data")

GOOD = re.compile(r"(?P<before>(.*[_-])?)(hr|gt)", re.IGNORECASE)  # HR, gt, test_HR, DIV2K_train_HR
# beside such a folder, the bad pictures lie in one of these; those that name the scale come first
BAD = (
    "{before}lr/x{scale}", "{before}lr_bicubic/x{scale}", "{before}lr_unknown/x{scale}", "{before}lrx{scale}",
    "{before}lr{scale}x", "{before}lr_x{scale}", "{before}x{scale}", "{before}lr", "{before}lq",
)  # fmt: skip
NAMES = ("{}", "{}x{scale}", "{}_x{scale}", "{}_LR{scale}", "{}_LR")  # of partners; {}: the good name without _HR
HR_END = re.compile(r"[_-](hr|gt)", re.IGNORECASE)
FIND_HELP = "give the folder of good pictures as domain.data.path and the other one as domain.data.lr_path"


def pair_entries(
    path: Path, scale: int, lr_path: Path | None = None, template: str = "", max_bad_share: float = 0.01
) -> list[Entry]:
    """Return the pairs of ``scale``: in ``path`` and ``lr_path``, or in two folders in ``path`` (or beside each other).

    ``template``: how a partner is called, such as ``{}x4``; by default the most common of the usual ways. UserError
    when the folders are not found, or when more than ``max_bad_share`` of the pictures have no partner.
    """
    hr_root, lr_root = (path, lr_path) if lr_path is not None else find_folders(path, scale)
    good, bad = image_files(hr_root), image_files(lr_root)
    if hr_root == lr_root:  # Canon_001_HR.png beside Canon_001_LR4.png
        good = [file for file in good if _base(file.stem) != file.stem]
        check(bool(good), f"{hr_root}: where both pictures of a pair are in one folder, good ones must end in _HR")
    partners = _by_place(bad, lr_root)
    name = template or _usual_name(good, hr_root, partners, scale)
    found, missing = [], []
    for file in good:
        place = file.relative_to(hr_root)
        wanted = (place.parent / _partner(name, file.stem, scale)).as_posix()
        partner = _one_of(partners.get(wanted, ()), file)
        if partner is None or partner == file:
            missing.append(f"{file} has no partner '{wanted}' in {lr_root}")
        else:
            found.append(Entry(file, partner, place.as_posix()))
    left_out(str(hr_root), missing, len(found) + len(missing), max_bad_share, "add them, or set domain.data.template")
    alone = {str(file) for file in bad} - {str(entry.lq) for entry in found} - {str(entry.hr) for entry in found}
    if alone:
        log.warning("%s: %d pictures are without a good one, such as %s", lr_root, len(alone), min(alone))
    return found


def find_folders(path: Path, scale: int) -> tuple[Path, Path]:
    """Return the folders of good and bad pictures in a folder, by the names data sets give them; UserError for none.

    X/HR and X/LR, gt and lq, test_HR and test_LR, GT and LR4x, DIV2K_train_HR and DIV2K_train_LR_bicubic/X4, or one
    folder with both, where names end in _HR and _LR4. The folder of good pictures itself may be given as well.
    """
    check(path.exists(), f"no folder {path}: {FIND_HELP}")
    check(path.is_dir(), f"{path} is a file: {FIND_HELP}")
    found = _beside(path.resolve().parent, [path], scale) or _beside(path, _folders(path), scale)
    if not found and any(_base(file.stem) != file.stem for file in image_files(path)):
        return path, path
    names = ", ".join(good.name for good, _ in found)
    check(len(found) < 2, f"{path}: holds several sets of pairs ({names}): {FIND_HELP}")
    check(bool(found), f"{path}: no two folders such as HR and LR, gt and lq, or HR and LR/X{scale}: {FIND_HELP}")
    return found[0]


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(each for each in path.iterdir() if each.is_dir())
    except PermissionError as error:
        raise UserError(f"{path}: {error.strerror}, change its permissions or give another folder") from error


def _beside(parent: Path, candidates: Iterable[Path], scale: int) -> list[tuple[Path, Path]]:
    """Return each candidate that is named like good pictures, with the folder of bad ones beside it."""
    found = []
    for good in candidates:
        named = GOOD.fullmatch(good.resolve().name)
        if named is None:
            continue
        for pattern in BAD:
            bad = _folder(parent, pattern.format(before=named["before"].lower(), scale=scale).split("/"))
            if bad is not None:
                found.append((good, bad))
                break
    return found


def _folder(parent: Path, names: Sequence[str]) -> Path | None:
    """Return a folder under another by its names, whatever their case."""
    for name in names:
        match = next((each for each in _folders(parent) if each.name.lower() == name), None)
        if match is None:
            return None
        parent = match
    return parent


def _base(stem: str) -> str:
    return stem[:-3] if HR_END.fullmatch(stem[-3:]) else stem


def _partner(name: str, stem: str, scale: int) -> str:
    """Return what a partner is called; a template of a person's own is about the whole name."""
    return name.replace("{scale}", str(scale)).replace("{}", _base(stem) if name in NAMES[1:] else stem)


def _by_place(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Return files by their place under a folder and their name without its suffix."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(file.relative_to(root).with_suffix("").as_posix(), []).append(file)
    return found


def _usual_name(good: Sequence[Path], root: Path, partners: Mapping[str, Sequence[Path]], scale: int) -> str:
    """Return the way of naming that gives the most pictures a partner."""

    def count(name: str) -> int:
        places = ((file.relative_to(root).parent / _partner(name, file.stem, scale)).as_posix() for file in good)
        return sum(any(each not in good_set for each in partners.get(place, ())) for place in places)

    good_set = set(good)
    return max(NAMES, key=count)  # the first of equals


def _one_of(files: Sequence[Path], good: Path) -> Path | None:
    """Return the only file, or of several the one with the good picture's suffix; UserError when that is none."""
    if len(files) > 1:
        same = [file for file in files if file.suffix == good.suffix]
        check(len(same) == 1, f"{files[0]} and {files[1]} are both named like {good}: remove one")
        return same[0]
    return files[0] if files else None
