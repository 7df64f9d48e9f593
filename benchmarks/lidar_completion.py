"""What completing a scan costs, in time and in memory, against the points of the scene; and the real scan, where it is.

    python benchmarks/lidar_completion.py [--model FOLDER | --full-size] [--steps 1] [--rounds 1] [--most 1000000]
        [--scan ../shared/data/kitti_scan_000123.ply] [--device cpu]

A real scan of 125,773 points becomes a scene of 180,000 in one step within 60 s and 6 GiB on two cores. Without
``--model`` the network has random weights and the widths of the shipped ones at 20 cm (``--full-size``: LiDiff's at
5 cm). Rows are processes of their own, so that each has a peak of its own (``ru_maxrss``; on a GPU, what torch took
there). The floor of memory is the first row's, which is libraries mostly; slopes are the exponents of cost in points:
1 for trees, sorting and products of voxels, less for the network where points share voxels. On a machine that does
other things as well, ``--clock cpu`` counts processor time, of all threads.
With ``--device cuda`` the network runs in bfloat16, and one evaluation of LiDiff's widths is timed by both backends.
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
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fewstep.core.errors import UserError
from fewstep.lidar import completion
from fewstep.lidar.clouds import read_cloud
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.files import save_denoiser
from fewstep.lidar.models.unet import NetworkConfig
from fewstep.lidar.sparse.backend import find_backend

LIMITS = (60.0, 6.0)  # seconds, GiB
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
SCENE = 180_000
STAGES = ("thin", "encode", "sample", "crop")
SHIPPED = NetworkConfig(
    resolution=0.2, channels=(8, 16, 24, 24, 32), up_channels=(24, 24, 16, 16), time_width=32
)  # configs/teacher-streets.yaml
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "kitti_scan_000123.ply"


def scan_of(count: int, seed: int = 0) -> np.ndarray:
    """Return a scan of ground and walls from 4 to 50 m, denser near the sensor."""
    generator = np.random.default_rng(seed)
    distance, angle = generator.uniform(4, 49, count), 2 * np.pi * generator.random(count)
    ground = generator.random(count) < 0.6
    z = np.where(ground, -1.7, generator.uniform(-2, 4, count))
    distance = np.where(ground, distance, np.round(distance / 5) * 5)
    made = np.stack([distance * np.cos(angle), distance * np.sin(angle), z], 1)
    return (made + 0.02 * generator.standard_normal((count, 3))).astype(np.float32)


def make_network(folder: Path, full_size: bool) -> None:
    """Write a network of random weights."""
    save_denoiser(LidarBackbone(NetworkConfig() if full_size else SHIPPED).eval(), folder)


def measure(model: str, points: int, args: argparse.Namespace, scan: np.ndarray) -> dict[str, Any]:
    """Return seconds by stage, the peak in GiB and the points made; the least of the rounds for each stage."""
    if args.clock == "cpu":
        completion.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment, attr-defined]
    cuda = args.device.startswith("cuda")
    config = completion.CompletionConfig(
        steps=args.steps, guidance_scale=args.guidance_scale, points=points, precision="bf16" if cuda else "fp32"
    )
    complete = completion.Completer(model, config, device=args.device)
    rounds = [complete(scan) for _ in range(args.rounds + cuda)][cuda:]  # the first on a GPU warms up
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    least = {stage: min(done.seconds[stage] for done in rounds) for stage in STAGES}
    return {"seconds": least, "peak": peak / 2**30, "made": len(rounds[-1].points), "raw": len(scan)}


def apart(model: str, points: int, args: argparse.Namespace, scan: str = "") -> dict[str, Any]:
    """Return :func:`measure` of a process of its own."""
    given = ["--model", model, "--row", str(points), "--scan", scan, "--device", args.device, "--clock", args.clock]
    given += ["--steps", str(args.steps), "--guidance-scale", str(args.guidance_scale), "--rounds", str(args.rounds)]
    done = subprocess.run([sys.executable, __file__, *given], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(points: int, found: dict[str, Any]) -> str:
    """Return a row of the table."""
    seconds = found["seconds"]
    stages = "".join(f"{seconds[stage]:9.2f}" for stage in STAGES)
    return f"{found['raw']:>9,} {points:>9,} {stages}{sum(seconds.values()):9.2f} {found['peak']:9.2f}"


def table(model: str, args: argparse.Namespace) -> None:
    """Print costs at growing sizes, their slopes, and those of the real scan."""
    print(f"{'raw':>9} {'points':>9} " + "".join(f"{stage:>9}" for stage in (*STAGES, "total")) + f" {'peak GiB':>9}")
    sizes, rows = [size for size in SIZES if size <= args.most], []
    for size in sizes:
        rows.append(apart(model, size, args))
        print(line(size, rows[-1]), flush=True)
    if len(sizes) > 1:
        series = [[row["seconds"][stage] for row in rows] for stage in STAGES]
        series.append([sum(row["seconds"].values()) for row in rows])
        slopes = [np.polyfit(np.log(sizes), np.log(np.maximum(own, 1e-6)), 1)[0] for own in series]
        beyond = (rows[-1]["peak"] - rows[0]["peak"]) * 2**30 / (sizes[-1] - sizes[0])
        print(f"{'slope':>19} " + "".join(f"{slope:9.2f}" for slope in slopes) + f"  {beyond:,.0f} bytes a point")
    if args.scan and Path(args.scan).is_file():
        found = apart(model, SCENE, args, args.scan)
        total = sum(found["seconds"].values())
        above = total > LIMITS[0] or found["peak"] > LIMITS[1]
        print(f"{line(SCENE, found)}  {Path(args.scan).name}{'  above the limit' if above else ''}")


def full_step(args: argparse.Namespace) -> None:
    """Print what one evaluation of LiDiff's widths takes by each backend, on the GPU."""
    network = LidarBackbone(NetworkConfig()).to(args.device).eval()
    points = torch.from_numpy(scan_of(SCENE))[None].to(args.device)
    time_, cond = torch.full((1,), 500.0, device=args.device), {"scan": points[:, ::10].contiguous()}
    for backend in ("torch", "spconv"):
        try:
            find_backend(backend)
        except UserError as error:
            print(error)
            continue
        network.backend = backend
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            least = math.inf
            torch.cuda.reset_peak_memory_stats()
            with torch.no_grad(), torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
                known = network.encode(cond)
                for number in range(args.rounds + 2):
                    torch.cuda.synchronize()
                    since = time.perf_counter()
                    network(points, time_, known)
                    torch.cuda.synchronize()
                    least = min(least, time.perf_counter() - since) if number else least
            peak = torch.cuda.max_memory_allocated() / 2**30
            name = str(dtype).removeprefix("torch.")
            print(f"LiDiff's widths, {SCENE:,} points, {backend:6} {name:8} {1e3 * least:9.1f} ms {peak:6.2f} GiB")


def main() -> None:
    """Print the table, or as a child one row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="", help="a shipped network, or a folder")
    parser.add_argument("--full-size", action="store_true", help="LiDiff's widths at 5 cm, random weights")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--most", type=int, default=SIZES[-1])
    parser.add_argument("--scan", default=str(REAL))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--row", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        scan = read_cloud(Path(args.scan)).xyz if args.scan else scan_of(int(0.7 * args.row))
        print(json.dumps(measure(args.model, args.row, args, scan)))
        return
    print(
        f"limit {LIMITS[0]:.0f} s and {LIMITS[1]:.0f} GiB for the real scan; {args.steps} steps, {args.clock} seconds, "
        f"{torch.get_num_threads()} threads of torch, device {args.device}"
    )
    with tempfile.TemporaryDirectory() as folder:
        if not args.model:
            make_network(Path(folder), args.full_size)
        table(args.model or folder, args)
    if args.device.startswith("cuda"):
        full_step(args)


if __name__ == "__main__":
    main()
