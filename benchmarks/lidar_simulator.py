"""Scans per second of the LiDAR simulator, against beams and azimuth steps.

    python benchmarks/lidar_simulator.py [--beams 16 32 64 128] [--azimuth-step 0.1728 0.3456] [--clock cpu]

The street is the default one; a scan is what ``simulate_scan`` returns, without writing it. The time is that of the
fastest round of three. On a machine that does other things as well, ``--clock cpu`` with ``OMP_NUM_THREADS=1`` counts
this process's processor time instead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from fewstep.lidar.simulator import SensorConfig, StreetConfig, World, drive, simulate_scan

TARGET = 3.0  # scans per second of the default sensor on one core


def measure(world: World, sensor: SensorConfig, scans: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Return scans per second and points per scan."""
    simulate_scan(world, sensor, 0.0, np.random.default_rng(0))  # tabulates the lanes
    took, points = [], 0
    for _ in range(3):
        since = clock()
        points = 0
        for number in range(scans):
            points += len(simulate_scan(world, sensor, number / sensor.rate, np.random.default_rng(number)).xyz)
        took.append(clock() - since)
    return scans / min(took), points / scans


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--beams", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--azimuth-step", type=float, nargs="+", default=[SensorConfig().azimuth_step, 0.3456])
    parser.add_argument("--scans", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    world = drive(args.scans, args.seed, StreetConfig(), SensorConfig())
    things = len(world.boxes) + len(world.cylinders) + len(world.canopies) + 2 * len(world.traffic)
    print(f"default street of seed {args.seed}: {things} primitives; {args.clock} time; target {TARGET:.0f} scans/s")
    print(f"{'beams':>5} {'step deg':>8} {'rays':>9} {'points':>9} {'scans/s':>8} {'M rays/s':>9}")
    for beams in args.beams:
        for step in args.azimuth_step:
            sensor = SensorConfig(beams=beams, azimuth_step=step)
            speed, points = measure(world, sensor, args.scans, clock)
            rays = beams * sensor.columns
            slow = "  below the target" if sensor == SensorConfig() and speed < TARGET else ""
            print(f"{beams:5} {step:8.4f} {rays:9,} {points:9,.0f} {speed:8.2f} {rays * speed / 1e6:9.3f}{slow}")


if __name__ == "__main__":
    main()
