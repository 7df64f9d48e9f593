"""Data opened as its settings say, and split into what is trained on and what is held out."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.restoration.data.examples import Entry, Examples, Files, Joined, Photos, check_captions
from fewstep.restoration.data.folder import folder_entries
from fewstep.restoration.data.lists import list_entries
from fewstep.restoration.data.pairs import pair_entries
from fewstep.restoration.data.settings import DataConfig

log = logging.getLogger("fewstep.data")

Named = list[tuple[str, Float[Tensor, "3 h w"]]]
PART = re.compile(r"_s\d{3,}$")  # sub-images of one picture


class Shipped(Protocol):
    """Pictures that came with the package, in [0, 1]."""

    def training(self) -> Named:
        """Return the pictures to train on, with their names."""

    def held_out(self) -> Named:
        """Return those that are never trained on."""


def open_examples(config: DataConfig, scales: Sequence[int], photos: Shipped) -> tuple[Examples, Examples]:
    """Return the examples to train on and those held out; UserError for data that is not there or does not fit.

    ``photos``: the ones of ``source=photos``.
    """
    if config.source == "photos":
        train: Examples = Photos(photos.training())
        if config.also:
            more = folder_entries(Path(config.also).expanduser())
            train = Joined([train, _files(config, scales, more, config.also)])
        return train, Photos(photos.held_out())
    found = _entries(config, scales, config.path, config.lr_path)
    if config.held_out_path:
        learnt, held = found, _entries(config, scales, config.held_out_path, config.held_out_lr_path)
        seen = {entry.hr.resolve() for entry in learnt}
        both = next((entry for entry in held if entry.hr.resolve() in seen), None)
        check(both is None, f"domain.data.held_out_path: {both and both.hr} is trained on as well; give other pictures")
    else:
        learnt, held = split(found, config.held_out, config.path)
    if config.captions > 0:
        check_captions(learnt, config.path)
    log.info("%s: %d pictures to train on, %d held out", config.path, len(learnt), len(held))
    where = config.held_out_path or config.path
    return _files(config, scales, learnt, config.path), _files(config, scales, held, where)


def _files(config: DataConfig, scales: Sequence[int], entries: Sequence[Entry], where: str) -> Files:
    paired = entries[0].lq is not None
    check(
        not paired or len(scales) == 1, f"domain.scales: {where} holds pairs, which have one scale, got {list(scales)}"
    )
    return Files(
        entries,
        where,
        scale=scales[0] if paired else 0,
        max_bad_share=config.max_bad_share,
        cache=config.cache_pictures,
        captions=config.captions > 0,
    )


def _entries(config: DataConfig, scales: Sequence[int], path: str, lr_path: str) -> list[Entry]:
    place = Path(path).expanduser()
    if config.source == "folder":
        return folder_entries(place)
    if config.source == "list":
        root = Path(config.root).expanduser() if config.root else None
        return list_entries(place, root, config.max_bad_share)
    check(len(scales) == 1, f"domain.scales: {path} holds pairs, which have one scale, got {list(scales)}")
    other = Path(lr_path).expanduser() if lr_path else None
    return pair_entries(place, scales[0], other, config.template, config.max_bad_share)


def split(entries: Sequence[Entry], share: float, where: str) -> tuple[list[Entry], list[Entry]]:
    """Return the entries to train on and those held out, chosen by their names: no seed or order changes them.

    Sub-images of one picture (``name_s001``) stay together. UserError when there is nothing left to train on.
    """
    order = sorted({_group(entry) for entry in entries}, key=_draw)
    check(len(order) > 1, f"{where}: one picture is too few to hold some out; give domain.data.held_out_path")
    held = set(order[: max(1, round(share * len(order)))])
    parts: tuple[list[Entry], list[Entry]] = [], []
    for entry in entries:
        parts[_group(entry) in held].append(entry)
    return parts


def _group(entry: Entry) -> str:
    place = Path(entry.name)
    return (place.parent / PART.sub("", place.stem)).as_posix()


def _draw(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
