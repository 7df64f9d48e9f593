"""What the metrics of completed scans cost: Chamfer distance against scipy's k-d tree, and all of them against size.

    python benchmarks/lidar_metrics.py [--points 180000] [--rounds 5] [--most 1000000] [--device cpu]

The Chamfer distance of 2 x 180,000 points takes at most 1.30 of two queries of ``scipy.spatial.cKDTree`` (default
trees, ``workers=-1``, building included). The floor is the work no exact search avoids: two trees, and one descent per
point. Below 1.00 is what trees without medians save in building, and what asking in the order of a tree saves in the
cache. The slope is the exponent of cost in the number of points: 1 for sorting and hashing, a little more for trees.
The scene is flat with walls, densest at the sensor, as scans are; the prediction is off by 5 cm.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from scipy.spatial import cKDTree

from fewstep.core.losses.points import chamfer_loss, select_key_points, structural_loss, surface_variation
from fewstep.lidar.metrics import CompletionIoU, Points, chamfer, emd, jsd_3d, jsd_bev, precision_recall_f

LIMIT = 1.30
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)


def scene(count: int, seed: int) -> np.ndarray:
    """Return a ground plane and walls within 50 m, float32, denser near the sensor."""
    generator = np.random.default_rng(seed)
    distance, angle = 50 * generator.random(count), 2 * np.pi * generator.random(count)
    ground = generator.random(count) < 0.6
    z = np.where(ground, -1.7, generator.uniform(-2, 4, count))
    distance = np.where(ground, distance, np.round(distance / 5) * 5)
    made = np.stack([distance * np.cos(angle), distance * np.sin(angle), z], 1)
    return (made + 0.05 * generator.standard_normal((count, 3))).astype(np.float32)


def seconds(rounds: int, *functions: Callable[[], object]) -> list[list[float]]:
    """Return the times of each function, taken in turns so that a busy machine slows them alike."""
    times: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for own, function in zip(times, functions, strict=True):
            since = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first round warms up
                own.append(time.perf_counter() - since)
    return times


def against_scipy(p: np.ndarray, q: np.ndarray, rounds: int) -> None:
    """Print the ratio to two queries of default trees."""

    def plain() -> None:
        tree_p, tree_q = cKDTree(p), cKDTree(q)
        tree_q.query(p, workers=-1)
        tree_p.query(q, workers=-1)

    own, reference = seconds(rounds, lambda: chamfer(p, q), plain)
    ratio = min(own) / min(reference)
    print(
        f"chamfer, 2 x {len(p)}: {min(own):.3f} s, scipy {min(reference):.3f} s, ratio {ratio:.2f}, of medians "
        f"{median(own) / median(reference):.2f}{'' if ratio <= LIMIT else '  above the limit'}"
    )


def slope(sizes: list[int], times: list[float]) -> float:
    """Return the exponent of the cost, fitted on logarithms."""
    return float(np.polyfit([math.log(n) for n in sizes], [math.log(t) for t in times], 1)[0])


def against_size(rounds: int, most: int, device: str) -> None:
    """Print the times of each metric at growing sizes."""
    metrics: dict[str, Callable[[Points, Points], object]] = {
        "chamfer": chamfer,
        "precision_recall_f": precision_recall_f,
        "jsd_bev": jsd_bev,
        "jsd_3d": jsd_3d,
        "iou .5 .2 .1": lambda p, q: CompletionIoU().update(p, q),
        "emd of 2048": emd,
    }
    sizes = [size for size in SIZES if size <= most]
    print(f"{'seconds at points':20}" + "".join(f"{size:>10}" for size in sizes) + f"{'slope':>8}")
    for name, metric in metrics.items():
        times = []
        for size in sizes:
            p, q = (torch.from_numpy(scene(size, seed)).to(device) for seed in (0, 1))
            (own,) = seconds(rounds, lambda p=p, q=q, metric=metric: metric(p, q))  # type: ignore[misc]
            times.append(min(own))
        print(f"{name:20}" + "".join(f"{t:10.3f}" for t in times) + f"{slope(sizes, times):8.2f}")


def losses(count: int, rounds: int, device: str) -> None:
    """Print the times of the losses of one scene, forward and backward."""
    p, q = (torch.from_numpy(scene(count, seed))[None].to(device) for seed in (0, 1))
    uniforms = torch.rand(1, count, generator=torch.Generator().manual_seed(0)).to(device)
    keys = select_key_points(q, uniforms)
    subset = q[:, : count // 10]
    x = p.clone().requires_grad_()
    for name, function in {
        "chamfer_loss": lambda: chamfer_loss(x, q).sum().backward(),
        f"surface_variation of {count // 10}": lambda: surface_variation(subset),
        f"structural_loss, {keys.shape[1]} key points": lambda: structural_loss(x, q, keys).sum().backward(),
    }.items():
        (own,) = seconds(rounds, function)
        print(f"{name:40} {min(own):8.3f} s")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=180_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=SIZES[-1])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(f"limit {LIMIT:.2f} of scipy's k-d trees; {torch.get_num_threads()} threads of torch, device {args.device}")
    against_scipy(scene(args.points, 0), scene(args.points, 1), args.rounds)
    against_size(args.rounds, args.most, args.device)
    print(f"losses of one scene of {args.points} points, forward and backward")
    losses(args.points, args.rounds, args.device)


if __name__ == "__main__":
    main()
