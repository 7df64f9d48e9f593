"""The command that writes simulated drives; loads no library until it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path


def _names(text: str) -> tuple[str, ...]:
    """Return the sequences' names: ``3`` stands for 00, 01, 02, and ``00,08`` or ``08,`` for themselves."""
    if text.isascii() and text.isdigit() and len(text) < 5 and not (len(text) > 1 and text[0] == "0"):
        return tuple(f"{number:02d}" for number in range(int(text)))
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def simulate_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command; those without a default here have the one of the sensor's or street's config."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder that gets sequences/00 and so on")
    parser.add_argument(
        "--sequences", type=_names, default=("00",), metavar="N", help="how many, or names such as 00,08 (1)"
    )
    parser.add_argument("--scans", type=int, default=100, metavar="N", help="of each sequence (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the first sequence, the next ones count on (0)")
    sensor = parser.add_argument_group("sensor")
    sensor.add_argument("--beams", type=int, metavar="N", help="(64)")
    sensor.add_argument("--elevation", type=float, nargs=2, metavar="DEG", help="of the first and last beam (2 -24.8)")
    sensor.add_argument("--azimuth-step", type=float, metavar="DEG", help="between columns (0.1728)")
    sensor.add_argument("--max-range", type=float, metavar="M", help="(120)")
    sensor.add_argument("--range-noise", type=float, metavar="M", help="standard deviation along the ray (0.02)")
    sensor.add_argument("--drop-out", type=float, metavar="SHARE", help="of the returns (0.03)")
    sensor.add_argument("--rate", type=float, metavar="HZ", help="turns per second (10)")
    sensor.add_argument("--raw-motion", action="store_true", help="leave the sensor's motion within a turn in the scan")
    street = parser.add_argument_group("street")
    street.add_argument("--speed", type=float, metavar="M/S", help="of the sensor (8)")
    for name, default in (("moving-cars", 2), ("parked-cars", 9), ("trees", 14), ("poles", 6)):
        street.add_argument(f"--{name}", type=float, metavar="N", help=f"on 100 m of street ({default})")
    street.add_argument("--buildings", type=float, metavar="SHARE", help="of the street front (0.7)")


SENSOR_OPTIONS = ("beams", "azimuth_step", "max_range", "range_noise", "drop_out", "rate")
STREET_OPTIONS = ("speed", "moving_cars", "parked_cars", "trees", "poles", "buildings")


def simulate(args: Namespace) -> None:
    """Write the sequences and print a line for each. Raises UserError for values out of range or a folder in use."""
    from fewstep.core.errors import check
    from fewstep.lidar.simulator.config import SensorConfig, StreetConfig
    from fewstep.lidar.simulator.sequence import simulate_sequence

    given = {
        name: getattr(args, name) for name in (*SENSOR_OPTIONS, *STREET_OPTIONS) if getattr(args, name) is not None
    }
    sensor_values = {name: given[name] for name in SENSOR_OPTIONS if name in given}
    if args.elevation is not None:
        sensor_values["elevation_top"], sensor_values["elevation_bottom"] = args.elevation
    sensor = SensorConfig(**sensor_values, deskew=not args.raw_motion)
    street = StreetConfig(**{name: given[name] for name in STREET_OPTIONS if name in given})
    check(
        bool(args.sequences), "simulator: --sequences names none; give a number of at least 1, or names such as 00,08"
    )
    for name in args.sequences:  # before the first one takes its time
        folder = args.out / "sequences" / name
        check(not folder.exists(), f"simulator: {folder} exists already; remove it, or choose another name or folder")
    for number, name in enumerate(args.sequences):
        folder = simulate_sequence(
            args.out, name, args.scans, args.seed + number, street, sensor, progress=sys.stderr.isatty()
        )
        points = sum(file.stat().st_size for file in (folder / "velodyne").iterdir()) // 16
        sys.stdout.write(f"{folder}: {args.scans} scans, {points / args.scans:,.0f} points each\n")
