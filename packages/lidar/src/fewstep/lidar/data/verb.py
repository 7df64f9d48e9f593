"""The command `fewstep lidar build-maps`; loads no library until it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from fewstep.core.verb import Verb


def _metres(text: str) -> float:
    try:
        length = float(text)
    except ValueError:
        length = -1.0
    if not 0 < length < float("inf"):
        raise ArgumentTypeError(f"'{text}' is not a length in metres above 0")
    return length


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def names_in(text: str) -> list[str]:
    """Return the parts of a list such as ``00,01``; argparse's error for an empty one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ArgumentTypeError("names of a list are separated by commas, as in 00,01")
    return names


def build_maps_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``build-maps``."""
    parser.add_argument("root", type=Path, metavar="ROOT", help="of the data set, or the folder of one sequence")
    parser.add_argument(
        "--sequences", type=names_in, metavar="00,01", help="which, or train, val, test of SemanticKITTI (all)"
    )
    parser.add_argument("--layout", default="semantickitti", metavar="NAME", help="of the folders (semantickitti)")
    parser.add_argument("--fields", type=names_in, metavar="x,y,z,..", help="columns of the scans (the layout's)")
    parser.add_argument("--voxel", type=_metres, default=0.1, metavar="M", help="a point per cell of this size (0.1)")
    parser.add_argument(
        "--min-range", type=_metres, default=3.5, metavar="M", help="leave the vehicle out: nearer points (3.5)"
    )
    parser.add_argument(
        "--moving", default="labels", metavar="HOW", help="leave out by labels or consistency, or keep (labels)"
    )
    parser.add_argument(
        "--seen", type=_positive, default=2, metavar="N", help="scans that must see a cell, for consistency (2)"
    )
    parser.add_argument("--force", action="store_true", help="build maps that are there already again")


def build_maps(args: Namespace) -> None:
    """Build and save the map of every sequence, one line each; those that are there already are skipped."""
    from tqdm import tqdm

    from fewstep.lidar.data.folder import MAP_FILE
    from fewstep.lidar.data.maps import build_map, save_map
    from fewstep.lidar.data.sequence import SPLITS, open_sequences

    names = [name for given in args.sequences or () for name in SPLITS.get(given, (given,))]
    for sequence in open_sequences(args.root, args.layout, names or None, args.fields):
        file = sequence.folder / MAP_FILE
        if file.exists() and not args.force:
            sys.stdout.write(f"{file}: is there already (--force builds it again)\n")
            continue
        with tqdm(total=len(sequence), desc=sequence.name, unit="scan", leave=False, disable=None) as bar:
            points = build_map(
                sequence,
                args.voxel,
                args.min_range,
                moving=args.moving,
                seen=args.seen,
                progress=lambda _: bar.update(),
            )
        save_map(file, points)
        sys.stdout.write(f"{file}: {len(points)} points of {len(sequence)} scans\n")
        sys.stdout.flush()


BUILD_MAPS = Verb("aggregate the scans of every sequence into its map", build_maps_arguments, build_maps)
