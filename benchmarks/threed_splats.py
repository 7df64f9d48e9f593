"""The CPU's rasteriser of splats: against brute force, against its arithmetic, and how its cost grows.

    OMP_NUM_THREADS=1 python benchmarks/threed_splats.py [--large]

Times are CPU seconds of forward and backward together, one view, the best of a few. Brute force asks every pixel about
every splat, in depth order, and gives the same picture. The floor is the arithmetic alone: as many exponentials,
products and sums as there are pairs of a pixel and a splat within its tile, in one pass over plain tensors.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.report.tables import table
from fewstep.core.rng import Rng
from fewstep.threed.cameras import Camera, turntable
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.gaussians.projection import covariances, project
from fewstep.threed.gaussians.rasterise import rasterization

CHUNK = 1024  # pixels that brute force asks at a time


def cloud(count: int, seed: int = 0) -> Gaussians:
    """Return Gaussians that fill a ball, each as wide as its share of it."""
    rng = Rng.for_batch(seed, 0, count)
    direction = rng.normal("direction", (3,))
    direction = direction / direction.norm(dim=-1, keepdim=True)
    means = direction * (0.8 * rng.uniform("radius").float() ** (1 / 3))[:, None]
    return Gaussians.isotropic(means, 0.8 * (4 / count) ** (1 / 3), 0.3, rng.uniform("colour", (3,)).float())


def leaves(cloud: Gaussians) -> list[Tensor]:
    """Return what gradients are taken to: means, scales, opacities, colours."""
    return [
        each.clone().requires_grad_()
        for each in (cloud.means, cloud.scales, cloud.opacities, cloud.harmonics[:, 0] + 0.5)
    ]


def ours(cloud: Gaussians, camera: Camera) -> tuple[Tensor, list[Tensor]]:
    """Return a picture and its gradients by the rasteriser."""
    means, scales, opacities, colours = inputs = leaves(cloud)
    image, _, _ = rasterization(
        means, cloud.quaternions, scales, opacities, colours,
        camera.world_to_camera, camera.intrinsics, camera.width, camera.height,
    )  # fmt: skip
    return image[0].detach(), list(torch.autograd.grad(image.square().sum(), inputs))


def brute(cloud: Gaussians, camera: Camera) -> tuple[Tensor, list[Tensor]]:
    """Return the same by asking every pixel about every splat."""
    means, scales, opacities, colours = inputs = leaves(cloud)
    covars = covariances(cloud.quaternions, scales)
    seen = project(means, covars, camera.world_to_camera, camera.intrinsics, camera.width, camera.height)
    order = seen.depths[0].argsort()
    at, conics, o, rgb = seen.means2d[0][order], seen.conics[0][order], opacities[order], colours[order]
    index = torch.arange(camera.width * camera.height)
    pixels = torch.stack([index % camera.width, index // camera.width], -1) + 0.5
    parts = []
    total = [torch.zeros_like(each) for each in (at, conics, o, rgb)]
    for piece in torch.split(pixels, CHUNK):
        held = [each.detach().requires_grad_() for each in (at, conics, o, rgb)]
        d = piece[:, None] - held[0][None]
        a, b, c = held[1].unbind(-1)
        power = -0.5 * (a * d[..., 0] ** 2 + c * d[..., 1] ** 2) - b * d[..., 0] * d[..., 1]
        alpha = (held[2] * power.exp()).clamp_max(0.999)
        alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
        after = torch.cumprod(1 - alpha, 1)
        alpha = alpha * (after > 1e-4)
        before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
        part = (alpha * before) @ held[3]
        parts.append(part.detach())
        for sum_, own in zip(total, torch.autograd.grad(part.square().sum(), held), strict=True):
            sum_ += own
    return torch.cat(parts).reshape(camera.height, camera.width, 3), list(
        torch.autograd.grad([at, conics, o, rgb], inputs, total)
    )


def floor(cloud: Gaussians, camera: Camera) -> Callable[[], object]:
    """Return the arithmetic of the pairs of a pixel and a splat that tiles of 16 pixels make, without anything else."""
    covars = covariances(cloud.quaternions, cloud.scales)
    seen = project(cloud.means, covars, camera.world_to_camera, camera.intrinsics, camera.width, camera.height)
    across = (2 * seen.radii[0].float() / 16 + 1).ceil().clamp_max(camera.width / 16)
    pairs = int((across.prod(-1) if across.ndim > 1 else across.square()).sum()) * 256
    values = torch.rand(min(pairs, 2**20))

    def work() -> object:
        for _ in range(math.ceil(pairs / len(values))):
            alpha = values * torch.exp(-values)
            alpha = alpha * (1 - alpha)  # blended
            alpha = alpha * values + values  # and back: by alpha, by exponent
            alpha.sum()
        return None

    return work


def seconds(work: Callable[[], object], repeat: int = 3) -> float:
    """Return the least CPU time of a call."""
    found = []
    for _ in range(repeat):
        since = time.process_time()
        work()
        found.append(time.process_time() - since)
    return min(found)


def slope(xs: list[float], ys: list[float]) -> float:
    """Return the slope of a line through logarithms."""
    x, y = torch.tensor(xs).log(), torch.tensor(ys).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="up to 300 thousand splats")
    args = parser.parse_args()
    scene, camera = cloud(10_000), turntable(1, 256, 256)
    (mine, grads), (theirs, expected) = ours(scene, camera), brute(scene, camera)
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(grads, expected, strict=True))
    print(f"10k splats, 256x256: pictures differ by {float((mine - theirs).abs().max()):.1e}, gradients by {worst:.1e}")
    fast, slow = seconds(lambda: ours(scene, camera)), seconds(lambda: brute(scene, camera), 1)
    least = seconds(floor(scene, camera))
    rows = [
        {"by": "brute force", "CPU s": slow, "ratio": slow / fast},
        {"by": "rasteriser", "CPU s": fast, "ratio": 1.0},
        {"by": "arithmetic alone", "CPU s": least, "ratio": least / fast},
    ]
    print(table(rows))
    counts = [1000, 3000, 10_000, 30_000, 100_000] + ([300_000] if args.large else [])
    times = [seconds(lambda c=count: ours(cloud(c), camera), 2) for count in counts]  # type: ignore[misc]
    print(table([{"splats, 256x256": n, "CPU s": t} for n, t in zip(counts, times, strict=True)]))
    print(f"slope over splats {slope([float(n) for n in counts], times):.2f}")
    sizes = [64, 128, 256, 512]
    times = [seconds(lambda s=size: ours(scene, turntable(1, s, s)), 2) for size in sizes]  # type: ignore[misc]
    print(table([{"pixels a side, 10k splats": n, "CPU s": t} for n, t in zip(sizes, times, strict=True)]))
    print(f"slope over pixels {slope([float(n * n) for n in sizes], times):.2f}")


if __name__ == "__main__":
    main()
