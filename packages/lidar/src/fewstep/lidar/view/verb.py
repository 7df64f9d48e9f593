"""The command that draws files of point clouds; loads no library until it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from fewstep.core.errors import check, nearest
from fewstep.lidar.view.limits import MAX_PANELS, MAX_RANGE, MAX_SIZE, MIN_SIZE, VIEWS


def _views(text: str) -> tuple[str, ...]:
    views = tuple(text.split(","))
    for view in views:
        if view not in VIEWS:
            raise ArgumentTypeError(f"no view '{view}': {nearest(view, VIEWS)}")
    return views


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not MIN_SIZE <= int(text) <= MAX_SIZE:
        raise ArgumentTypeError(f"'{text}' is not a number of pixels from {MIN_SIZE} to {MAX_SIZE}")
    return int(text)


def _range(text: str) -> float:
    try:
        metres = float(text)
    except ValueError:
        metres = -1.0
    if not 0 < metres <= MAX_RANGE:
        raise ArgumentTypeError(f"'{text}' is not a distance above 0 and up to {MAX_RANGE:g} metres")
    return metres


def view_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``fewstep lidar view``."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="clouds: .ply, .bin, .npy or .pcd")
    parser.add_argument("--labels", metavar="A,B,...", help="one per file (the names of the files)")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="PATH", help="a folder, or a .png or .html file (this folder)"
    )
    parser.add_argument(
        "--max-range", type=_range, default=50.0, metavar="M", help="draw points within so many metres (50)"
    )
    parser.add_argument("--views", type=_views, default=VIEWS, metavar="A,B", help="top, perspective (both)")
    parser.add_argument("--size", type=_size, default=640, metavar="N", help="pixels across a picture (640)")


def view(args: Namespace) -> None:
    """Draw the files side by side as a PNG and write a page that turns them, and print where they are."""
    from fewstep.lidar.clouds import read_cloud
    from fewstep.lidar.view.html import write_viewer
    from fewstep.lidar.view.raster import draw_panels

    files: list[Path] = args.files
    check(len(files) <= MAX_PANELS, f"{len(files)} files: a sheet holds {MAX_PANELS} clouds, name fewer")
    labels = args.labels.split(",") if args.labels is not None else [file.stem for file in files]
    check(len(labels) == len(files), f"--labels names {len(labels)} clouds, {len(files)} files are given")
    wanted = outputs(args.out, files[0])
    clouds = [(label, read_cloud(file).xyz) for label, file in zip(labels, files, strict=True)]
    for out in wanted:
        if out.suffix.lower() == ".png":
            draw_panels(clouds, out, args.views, max_range=args.max_range, size=args.size)
        else:
            write_viewer(out, clouds, title=", ".join(labels), max_range=args.max_range)
        sys.stdout.write(f"{out}\n")


def outputs(out: Path, first: Path) -> list[Path]:
    """Return the files to write: the one ``out`` names, or both kinds in this folder, named as the first cloud."""
    if out.suffix.lower() in (".png", ".html"):
        return [out]
    check(not out.is_file(), f"{out}: a file; give a folder, or a name that ends in .png or .html")
    return [out / f"{first.stem}{suffix}" for suffix in (".png", ".html")]
