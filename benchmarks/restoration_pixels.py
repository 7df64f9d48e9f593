"""What restoring a picture costs: seconds against pixels, peak memory, and tiles against the picture in one piece.

    python benchmarks/restoration_pixels.py [--model photos-student] [--sides 256,512] [--large] [--color-fix lab]

Every picture is restored by a process of its own, x4, with the wavelet fix or another, and written as PNG. The floor of
the time is the network on the bare pixels, once: what is above it is overlaps, colours, quantising and writing; model
bicubic has no network, and leaves that alone. ``--large`` adds 4096 x 3072 pixels, which come out as 16384 x 12288.
Where other work shares the machine, "cpu s", the processor's seconds of restoring, say more than the clock's.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fewstep.core.report.tables import table
from fewstep.restoration.data.photos import photo
from fewstep.restoration.pictures.picture import Picture
from fewstep.restoration.pictures.writing import write_picture
from fewstep.restoration.restorer import Restorer
from fewstep.restoration.upscaling import UpscaleConfig, upscale

SCALE = 4
WHOLE = 768  # side of the picture that is restored in one piece and in tiles


def picture_of(height: int, width: int) -> Picture:
    """Return photos put side by side, mirrored, until they fill the size."""
    x = photo("retina")
    x = torch.cat([x, x.flip(2)], 2)
    x = torch.cat([x, x.flip(1)], 1)
    rows, columns = torch.arange(height) % x.shape[1], torch.arange(width) % x.shape[2]
    return Picture(colours=x[:, rows][:, :, columns].contiguous(), mode="RGB")


class Enlarges:
    """Bicubic interpolation as a model, in tiles of the same size as the shipped one's."""

    scales = (SCALE,)

    def multiple(self, scale: int) -> int:
        """Return 1: any tile will do."""
        return 1

    def reach(self, scale: int) -> int:
        """Return what interpolation looks at."""
        return 2

    def bytes_per_pixel(self, scale: int) -> float:
        """Return what the shipped network takes."""
        return Restorer.load("photos-student").bytes_per_pixel(scale)

    def __call__(self, lq: torch.Tensor, scale: int, *, top: int = 0, left: int = 0) -> torch.Tensor:
        """Return the tile enlarged."""
        return torch.nn.functional.interpolate(lq, scale_factor=scale, mode="bicubic")


def one(args: argparse.Namespace) -> dict[str, Any]:
    """Restore a picture in this process; seconds of its parts, and the peak of the process in GiB."""
    picture = picture_of(args.height, args.width)
    restorer = Enlarges() if args.model == "bicubic" else Restorer.load(args.model)
    restorer(picture.colours[None, :, :64, :64], SCALE)  # what is set up once
    began, busy = time.perf_counter(), time.process_time()
    done = upscale(picture, restorer, UpscaleConfig(scale=SCALE, tile=args.tile, colour_fix=args.color_fix))
    restored, busy = time.perf_counter(), time.process_time() - busy
    with tempfile.TemporaryDirectory() as folder:
        write_picture(Path(folder) / "x.png", done.raster)
    written = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"tiles": done.tiles, "side": done.side, "restore s": restored - began, "cpu s": busy}
    found |= {"write s": written - restored}
    return found | {"peak GiB": peak}


def child(model: str, height: int, width: int, fix: str, tile: int | None = None) -> dict[str, Any]:
    """Return what :func:`one` finds in a process of its own."""
    command = [sys.executable, __file__, "--model", model, "--color-fix", fix, "--one", str(height), str(width)]
    command += [] if tile is None else ["--tile", str(tile)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="photos-student")
    parser.add_argument("--sides", default="256,512,1024,2048")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--color-fix", default="wavelet")
    parser.add_argument("--one", nargs=2, type=int)
    parser.add_argument("--tile", type=int)
    args = parser.parse_args()
    if args.one:
        args.height, args.width = args.one
        print(json.dumps(one(args)))
        return
    sizes = [(int(side), int(side)) for side in args.sides.split(",")] + ([(3072, 4096)] if args.large else [])
    rows = []
    for height, width in sizes:
        found = child(args.model, height, width, args.color_fix)
        pixels = height * width
        rows.append({"input": f"{width}x{height}", **found, "us/pixel": 1e6 * found["restore s"] / pixels})
        print(f"{width}x{height}: {found['restore s']:.1f} s", file=sys.stderr)
    print(table(rows), "\n")
    logs = [(math.log(h * w), math.log(row["restore s"])) for (h, w), row in zip(sizes, rows, strict=True)]
    x, y = (sum(v) / len(logs) for v in zip(*logs, strict=True))
    slope = sum((a - x) * (b - y) for a, b in logs) / sum((a - x) ** 2 for a, _ in logs)
    print(f"slope of log seconds against log pixels: {slope:.3f} (1 is linear)")
    whole, tiled = (
        min(child(args.model, WHOLE, WHOLE, args.color_fix, tile)["restore s"] for _ in range(3)) for tile in (0, 512)
    )
    print(f"{WHOLE}x{WHOLE} in tiles of 512 against one piece: {tiled / whole:.2f} ({tiled:.2f} s and {whole:.2f} s)")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, model {args.model}, x{SCALE}, {args.color_fix}"
    )


if __name__ == "__main__":
    main()
