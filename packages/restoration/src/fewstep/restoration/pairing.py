"""Which restored picture belongs to which reference: by relative path and stem, apart from a suffix such as `_x4`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fewstep.core.data.reading import image_files
from fewstep.core.errors import UserError, check

MAGNIFICATION = re.compile(r"[-_]?x\d+$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """A picture's name, its restored file and its reference."""

    name: str
    restored: Path
    reference: Path


@dataclass(frozen=True)
class Pairs:
    """``pairs`` in the order of their names; ``alone``: a line for each file without a partner."""

    pairs: list[Pair]
    alone: list[str]


def find_pairs(restored: Path, reference: Path, template: str | None = None) -> Pairs:
    """Return the pairs of two files, or of two folders searched recursively.

    ``template``: the stem of a restored file by that of its reference, such as ``{}_x4``. Without one the stems are
    equal or differ by a magnification at the end. Raises UserError for a file and a folder, for folders without
    pictures or pairs, for a template without ``{}`` and for stems that are not unique.
    """
    for path in (restored, reference):
        check(path.exists(), f"{path} does not exist: give a picture or a folder of pictures")
    both = f"{restored} and {reference}"
    check(restored.is_dir() == reference.is_dir(), f"{both} are a file and a folder: give two files or two folders")
    if not restored.is_dir():
        return Pairs([Pair(restored.name, restored, reference)], [])
    if template is not None:
        good = template.count("{}") == 1 and "/" not in template
        check(good, f"--template {template}: must hold {{}} once and no /, such as {{}}_x4")
    ours, theirs = _by_stem(restored), _by_stem(reference)
    partners = _by_template(theirs, template) if template else _partners(ours, theirs)
    found = {stem: partner for stem, partner in partners.items() if partner in ours}
    check(bool(found), f"{both} share no stems: name restored files by --template, such as {{}}_x4")
    pairs = [Pair(stem, ours[partner], theirs[stem]) for stem, partner in sorted(found.items())]
    alone = [f"{theirs[stem]}: no restored picture" for stem in theirs if stem not in found]
    used = set(found.values())
    return Pairs(pairs, alone + [f"{file}: no reference" for stem, file in ours.items() if stem not in used])


def _by_stem(root: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in image_files(root):
        stem = file.relative_to(root).with_suffix("").as_posix()
        check(stem not in files, f"{file} and {files.get(stem)} have one stem: keep one of them")
        files[stem] = file
    return files


def _by_template(theirs: dict[str, Path], template: str) -> dict[str, str]:
    named = {}
    for stem in theirs:
        folder, slash, name = stem.rpartition("/")
        named[stem] = folder + slash + template.replace("{}", name)
    return named


def _partners(ours: dict[str, Path], theirs: dict[str, Path]) -> dict[str, str]:
    """Return restored stems by reference stems: the same, or else the one with a magnification at its end."""
    partners = {stem: stem for stem in theirs if stem in ours}
    for stem in ours:
        plain = MAGNIFICATION.sub("", stem)
        if stem in theirs or plain not in theirs or partners.get(plain) == plain:
            continue
        if plain in partners:
            raise UserError(f"{theirs[plain]} has two restored pictures, {stem} and {partners[plain]}: give --template")
        partners[plain] = stem
    return partners
