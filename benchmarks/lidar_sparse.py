"""What sparse convolutions cost beside their bare matrix products, and kernel maps and nearest voxels by size.

    python benchmarks/lidar_sparse.py [--voxels 30000] [--rounds 5] [--most 1000000] [--clock cpu] [--device cpu]

A convolution takes at most 3.00 of the matrix products it cannot avoid: as many rows for every kernel element, already
gathered, results thrown away (three products for forward and backward). The floor is 1.00; beyond it are rows gathered
and results added up, which matter the less the more channels there are. The slope is the exponent of cost in the number
of voxels, about 1. On a machine that does other things as well, ``--clock cpu`` with ``OMP_NUM_THREADS=1`` counts this
process's processor time instead. The scene is ground and walls, densest at the sensor, as scans are.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from fewstep.lidar.models.nearest import nearest_rows
from fewstep.lidar.sparse.backend import find_backend
from fewstep.lidar.sparse.sites import Pairs, Sites, pack

LIMIT = 3.0
CHANNELS = (16, 32, 64, 96)
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
RESOLUTION = 0.2


def surface(voxels: int, device: str, seed: int = 0) -> Sites:
    """Return ``voxels`` voxels of ground and walls, denser near the middle, in an area that grows with their number."""
    generator = np.random.default_rng(seed)
    count = 2 * voxels
    reach = 0.28 * math.sqrt(voxels) * RESOLUTION
    distance, angle = reach * np.sqrt(generator.random(count)), 2 * np.pi * generator.random(count)
    ground = generator.random(count) < 0.6
    z = np.where(ground, -1.7, generator.uniform(-2, 4, count))
    distance = np.where(ground, distance, np.round(distance / 5) * 5)
    points = np.stack([distance * np.cos(angle), distance * np.sin(angle), z], 1)
    points += 0.03 * generator.standard_normal((count, 3))
    coords = torch.from_numpy(points / RESOLUTION).round().long()
    keys = torch.unique(pack(coords, torch.zeros(count, dtype=torch.long)))
    if len(keys) > voxels:  # the middle of them: a band through the scene, as dense as the whole
        keys = keys[(len(keys) - voxels) // 2 :][:voxels]
    return Sites(keys.to(device))


def seconds(rounds: int, clock: Callable[[], float], *functions: Callable[[], object]) -> list[float]:
    """Return the least time of each function, taken in turns so that a busy machine slows them alike."""
    times: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for own, function in zip(times, functions, strict=True):
            since = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first round warms up, and makes what maps keep
                own.append(clock() - since)
    return [min(own) for own in times]


def convolutions(pairs: Pairs, width: int, backend: str, device: str) -> list[Callable[[], object]]:
    """Return bare products and convolution, forward, then the same forward and backward."""
    convolve = find_backend(backend).convolve
    x = torch.randn(pairs.rows_in, width, device=device, requires_grad=True)
    kernel = torch.randn(len(pairs.reads), width, width, device=device, requires_grad=True)
    rows, flat = [len(own) for own in pairs.reads], kernel.detach()
    given = torch.randn(pairs.rows_out, width, device=device)

    def bare() -> None:
        for k, count in enumerate(rows):
            torch.mm(given[:count], flat[k])

    def bare_both() -> None:
        for k, count in enumerate(rows):
            own = given[:count]
            torch.mm(own, flat[k])
            torch.mm(own, flat[k].T)
            torch.mm(own.T, own)

    def forward() -> None:
        with torch.no_grad():
            convolve(x, kernel, pairs)

    def both() -> None:
        torch.autograd.grad(convolve(x, kernel, pairs), (x, kernel), given)

    return [bare, forward, bare_both, both]


def against_products(sites: Sites, rounds: int, clock: Callable[[], float], backend: str, device: str) -> None:
    """Print milliseconds and ratios to bare products at growing channels."""
    pairs = sites.neighbours
    print(f"3x3x3 on {len(sites):,} voxels, {pairs.products / len(sites):.1f} products of rows each, backend {backend}")
    print(f"{'channels':>8} {'bare ms':>9} {'conv ms':>9} {'ratio':>6} {'bare f+b':>9} {'conv f+b':>9} {'ratio':>6}")
    for width in CHANNELS:
        bare, forward, bare_both, both = seconds(rounds, clock, *convolutions(pairs, width, backend, device))
        above = "  above the limit" if max(forward / bare, both / bare_both) > LIMIT else ""
        print(
            f"{width:8} {1e3 * bare:9.1f} {1e3 * forward:9.1f} {forward / bare:6.2f} "
            f"{1e3 * bare_both:9.1f} {1e3 * both:9.1f} {both / bare_both:6.2f}{above}"
        )


def against_size(most: int, rounds: int, clock: Callable[[], float], device: str) -> None:
    """Print the times of maps and of the nearest scan voxels at growing sizes, and their slopes."""
    sizes = [size for size in SIZES if size <= most]
    scenes = [surface(size, device) for size in sizes]
    scans = []
    for sites in scenes:
        scan = sites
        for _ in range(4):
            scan, _ = scan.coarser
        scans.append(scan)

    def fresh(sites: Sites) -> Sites:
        return Sites(sites.keys, sites.stride)  # with none of the maps that are kept

    cases: dict[str, Callable[[Sites, Sites], object]] = {
        "neighbours": lambda sites, _: fresh(sites).neighbours,
        "their blocks": lambda sites, _: replace(sites.neighbours, _blocks={}).blocks,
        "coarser": lambda sites, _: fresh(sites).coarser,
        "nearest_rows": nearest_rows,
    }
    print(f"{'ms at voxels':14}" + "".join(f"{len(sites):>11,}" for sites in scenes) + f"{'slope':>8}")
    for name, case in cases.items():
        times = [
            seconds(rounds, clock, lambda sites=sites, scan=scan, case=case: case(sites, scan))[0]  # type: ignore[misc]
            for sites, scan in zip(scenes, scans, strict=True)
        ]
        slope = np.polyfit(np.log([len(sites) for sites in scenes]), np.log(times), 1)[0] if len(times) > 1 else 0.0
        print(f"{name:14}" + "".join(f"{1e3 * t:11.1f}" for t in times) + f"{slope:8.2f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--voxels", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=SIZES[-1])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    threads = f"{torch.get_num_threads()} threads of torch"
    print(f"floor 1.00, limit {LIMIT:.2f} of bare products; {args.clock} time, {threads}, device {args.device}")
    against_products(surface(args.voxels, args.device), args.rounds, clock, args.backend, args.device)
    against_size(args.most, args.rounds, clock, args.device)


if __name__ == "__main__":
    main()
