"""What rendering Gaussians in plain torch costs beside brute force and bare tensor products, and how it grows.

    python benchmarks/splats.py [--rounds 5] [--most 300000] [--share 32] [--clock cpu] [--device cpu]

Brute force puts every Gaussian on every pixel by autograd alone, a row at a time: on every ``--share``-th row, times
that. To reach: 20 times its speed, forward and backward. The floor is 1.00: on the very blocks of splats and pixels
that the rasteriser goes through, the exponents as one matrix product, their exp, a running product of transmittances
and the product with the features; backward the same but the last again, three products more (light, features,
coefficients) and a running sum; inputs made before, results thrown away. The slopes are exponents of cost, projection
and sorting included, in the number of Gaussians (which shrink so that they cover as much) and in that of pixels, at
most 1.10. With ``--clock cpu`` and ``OMP_NUM_THREADS=1`` it is this process's processor time, for a machine that does
other things as well.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.gaussians.compositing import _prepared, composite
from fewstep.threed.gaussians.geometry import views
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.gaussians.projection import covariances, project
from fewstep.threed.gaussians.tiles import Tiles, tiles

FASTER, SLOPE = 20.0, 1.1
COUNTS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
SIDES = (64, 128, 256, 512, 1024)
MIDDLE = 10_000, 256
CHANNELS = 7  # colour, depth, normal


def cloud(count: int, device: str, seed: int = 0) -> Gaussians:
    """Return Gaussians of all shapes and opacities, thick in the middle, that cover as much whatever their number."""
    draw = torch.Generator().manual_seed(seed)
    means = 0.5 * torch.randn(count, 3, generator=draw)
    log_scales = 0.4 * torch.randn(count, 3, generator=draw) + math.log(3 / math.sqrt(count))
    quaternions, logits = torch.randn(count, 4, generator=draw), 1.5 * torch.randn(count, generator=draw)
    colours = 0.5 * torch.randn(count, 1, 3, generator=draw)
    return Gaussians(*(each.to(device) for each in (means, log_scales, quaternions, logits, colours)))


def eye(side: int, device: str) -> Camera:
    """Return a camera that sees nearly all of the cloud."""
    angles = torch.tensor([[30.0], [20.0], [3.2], [40.0]])
    return orbit(*angles, side, side).to(device)


def seconds(rounds: int, clock: Callable[[], float], *functions: Callable[[], object]) -> list[float]:
    """Return the least time of each function, taken in turns so that a busy machine slows them alike."""
    times: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for own, function in zip(times, functions, strict=True):
            since = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first round warms up
                own.append(clock() - since)
    return [min(own) for own in times]


def splats(count: int, side: int, device: str) -> tuple[list[Tensor], Tiles]:
    """Return means, conics, opacities and features on the image, from near to far, and their tiles."""
    given, camera = cloud(count, device), eye(side, device)
    spread = covariances(given.quaternions, given.scales)
    seen = project(given.means, spread, camera.world_to_camera, camera.intrinsics, side, side)
    ids = seen.visible[0].nonzero()[:, 0]
    ids = ids[seen.depths[0, ids].argsort()]
    parts = [seen.means2d[0, ids], seen.conics[0, ids], given.opacities[ids]]
    features = torch.randn(len(ids), CHANNELS, device=device, generator=torch.Generator(device).manual_seed(1))
    return [*parts, features], tiles(*parts, seen.depths[0, ids], side, side)


def brute_force(parts: list[Tensor], rows: list[int], side: int) -> Tensor:
    """Return rows of pixels, "r w d": every splat on every pixel of a row."""
    means2d, conics, opacities, features = parts
    x = torch.arange(side, device=means2d.device) + 0.5
    a, b, c = conics[:, :, None].unbind(1)
    made = []
    for row in rows:
        dx, dy = x - means2d[:, 0, None], row + 0.5 - means2d[:, 1, None]
        alpha = opacities[:, None] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
        alpha = torch.where(alpha < 1 / 255, 0.0, alpha.clamp_max(0.999))
        after = torch.cumprod(1 - alpha, dim=0)
        before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
        made.append((before * alpha * (after > 1e-4)).T @ features)
    return torch.stack(made)


def against_brute_force(rounds: int, share: int, clock: Callable[[], float], device: str) -> None:
    """Print times of both at 10,000 Gaussians on 256x256 pixels, and how far their pictures are apart."""
    count, side = MIDDLE
    parts, over = splats(count, side, device)
    rows = list(range(share // 2, side, share))
    leaves = [each.clone().requires_grad_() for each in parts]
    towards = torch.ones(side, side, CHANNELS, device=device)

    def ours() -> Tensor:
        with torch.no_grad():
            return composite(*parts, over)[0]

    def ours_both() -> object:
        return torch.autograd.grad(composite(*leaves, over)[0], leaves, towards)

    def brute() -> Tensor:
        with torch.no_grad():
            return brute_force(parts, rows, side)

    def brute_both() -> None:
        for row in rows:  # one at a time: autograd keeps all of a row
            torch.autograd.grad(brute_force(leaves, [row], side), leaves, towards[:1])

    apart = float((ours()[rows] - brute()).abs().max())
    forward, both = seconds(rounds, clock, ours, ours_both)
    brute_forward, brute_all = (share * each for each in seconds(1, clock, brute, brute_both))
    print(f"{count:,} Gaussians on {side}x{side}, compositing of {CHANNELS} channels; pictures differ by {apart:.1e}")
    print(f"{'':18}{'ours ms':>10}{'brute ms':>11}{'faster':>8}")
    for name, own, other in (("forward", forward, brute_forward), ("and backward", both, brute_all)):
        below = "  below the limit" if other / own < FASTER else ""
        print(f"{name:18}{1e3 * own:10.1f}{1e3 * other:11.0f}{other / own:8.0f}{below}")


def bare(blocks: list[tuple[int, int, int]], device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what no rasteriser of such blocks (tiles, pixels, splats) can do without: forward, and with backward."""
    kept: dict[tuple[int, int, int], list[Tensor]] = {}
    for k, p, m in set(blocks):
        shapes = ((k, m, 6), (6, p), (k, m, CHANNELS), (k, CHANNELS, p), (k, p, m))
        kept[k, p, m] = [torch.rand(shape, device=device) for shape in shapes]

    def once(coefficients: Tensor, basis: Tensor, features: Tensor, towards: Tensor, pairs: Tensor) -> None:
        torch.matmul(basis.T, coefficients.mT).exp_()
        torch.cumprod(pairs, dim=2)

    def forward() -> None:
        for each in blocks:
            once(*kept[each])
            torch.bmm(kept[each][2].mT, kept[each][4].mT)

    def both() -> None:
        forward()
        for each in blocks:
            _, basis, features, towards, pairs = kept[each]
            once(*kept[each])
            torch.bmm(towards, pairs)
            torch.bmm(towards.mT, features.mT).cumsum(dim=2)
            torch.matmul(basis, pairs)

    return forward, both


def against_products(rounds: int, most: int, clock: Callable[[], float], device: str) -> None:
    """Print times beside those of bare tensor products on the same blocks."""
    print(f"{'Gaussians':>10}{'tile':>6}{'pairs':>8}{'shine':>7}", end="")
    print(f"{'bare ms':>9}{'ours ms':>9}{'ratio':>7}{'bare f+b':>10}{'ours f+b':>10}{'ratio':>7}")
    for count in (each for each in COUNTS if each <= most):
        parts, over = splats(count, MIDDLE[1], device)
        leaves = [each.clone().requires_grad_() for each in parts]
        towards = torch.ones(MIDDLE[1], MIDDLE[1], CHANNELS, device=device)
        shapes, shining, pairs = [], 0, 0
        for block in _prepared(*parts, over)[0]:
            shapes.append((block.alpha.shape[0], block.alpha.shape[1], block.alpha.shape[2]))
            shining, pairs = shining + int((block.alpha > 0).sum()), pairs + block.alpha.numel()

        def ours(parts: list[Tensor] = parts, over: Tiles = over) -> None:
            with torch.no_grad():
                composite(*parts, over)

        def ours_both(leaves: list[Tensor] = leaves, over: Tiles = over, towards: Tensor = towards) -> None:
            torch.autograd.grad(composite(*leaves, over)[0], leaves, towards)

        f, b, own_f, own_b = seconds(rounds, clock, *bare(shapes, device), ours, ours_both)
        print(f"{count:10,}{over.size:6}{pairs / 1e6:7.1f}M{shining / pairs:7.0%}", end="")
        print(f"{1e3 * f:9.1f}{1e3 * own_f:9.1f}{own_f / f:7.2f}{1e3 * b:10.1f}{1e3 * own_b:10.1f}{own_b / b:7.2f}")


def render_and_back(count: int, side: int, device: str) -> Callable[[], object]:
    """Return a whole render of colour, alpha, depth and normals with the gradients of all parameters."""
    given, camera = cloud(count, device), eye(side, device)
    leaves = [getattr(given, name).requires_grad_() for name in given.__dataclass_fields__]

    def run() -> object:
        made = views(Gaussians(*leaves), camera, backend="torch")
        return torch.autograd.grad(sum(each.sum() for each in made), leaves)

    return run


def against_size(most: int, rounds: int, clock: Callable[[], float], device: str) -> None:
    """Print times of whole renders with gradients at growing sizes, and their slopes."""
    counts = [each for each in COUNTS if each <= most]
    for label, sizes, cases in (
        ("Gaussians", counts, [(each, MIDDLE[1]) for each in counts]),
        ("pixels", [side * side for side in SIDES], [(MIDDLE[0], side) for side in SIDES]),
    ):
        times = seconds(rounds, clock, *(render_and_back(*case, device) for case in cases))
        slope = np.polyfit(np.log(sizes), np.log(times), 1)[0]
        end = math.log(times[-1] / times[-2]) / math.log(sizes[-1] / sizes[-2])
        print(f"{label:14}" + "".join(f"{size:>11,}" for size in sizes) + f"{'slope':>8}{'last':>7}")
        above = "  above the limit" if slope > SLOPE else ""
        print(f"{'ms, with back':14}" + "".join(f"{1e3 * t:11.0f}" for t in times) + f"{slope:8.2f}{end:7.2f}{above}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=COUNTS[-1])
    parser.add_argument("--share", type=int, default=32)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    print(f"{args.clock} time, {torch.get_num_threads()} threads of torch, device {args.device}")
    against_brute_force(args.rounds, args.share, clock, args.device)
    against_products(args.rounds, args.most, clock, args.device)
    against_size(args.most, args.rounds, clock, args.device)


if __name__ == "__main__":
    main()
