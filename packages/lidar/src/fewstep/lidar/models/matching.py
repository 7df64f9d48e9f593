"""Tensors of a released network put where they belong, by the order of their modules and by shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fewstep.core.errors import check
from fewstep.lidar.models.checkpoint import shown
from fewstep.lidar.models.layout import LAYER, NORM, Layout, layout
from fewstep.lidar.models.unet import LEVELS, NetworkConfig

WIDEST = 1 << 14
Sizes = tuple[int, int, int]  # of an MLP: in, hidden, out


class Part:
    """The tensors of one network, sorted into kernels, norms and MLPs; ``where`` begins the messages.

    Raises UserError for a tensor that is none of these, and for an order that no network of modules saves.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors, self.where = tensors, where
        check_order(tensors, where)
        self.kernels = [name for name in tensors if name.endswith(".kernel")]
        norms: dict[str, None] = {}
        mlps: dict[str, None] = {}
        for name in tensors:
            if found := re.fullmatch(rf"(.+\.bn)\.(?:{'|'.join(NORM)})", name):
                norms[found[1]] = None
            elif found := re.fullmatch(r"(.+)\.[02]\.(?:weight|bias)", name):
                mlps[found[1]] = None
            else:
                check(name.endswith(".kernel"), f"{where} tensor {shown(name)} has no place in this network")
        self.norms = list(norms)
        self.mlps = {mlp: self._sizes(mlp) for mlp in mlps}

    def _sizes(self, mlp: str) -> Sizes:
        shapes = []
        for name in (f"{mlp}.0.weight", f"{mlp}.2.weight"):
            check(name in self.tensors, f"{self.where} tensor {shown(name)} is missing")
            check(self.tensors[name].ndim == 2, f"{self.where} tensor {shown(name)} is not a matrix")
            shapes.append(self.tensors[name].shape)
        return shapes[0][1], shapes[0][0], shapes[1][0]

    def widths(self, stages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the channels of the levels and of the way back, which the kernels that change levels mark."""
        shapes = [tuple(self.tensors[name].shape) for name in self.kernels]
        steps = [i for i, shape in enumerate(shapes[:-1]) if len(shape) == 3 and shape[0] == 8]
        check(
            len(steps) == stages,
            f"{self.where} has {len(steps)} convolutions of 2x2x2 where {stages} are expected ({len(shapes)} in all)",
        )
        flat = next((name for name, shape in zip(self.kernels, shapes, strict=True) if not 2 <= len(shape) <= 3), None)
        check(flat is None, f"{self.where} tensor {shown(flat or '')} is not a kernel")
        down = (shapes[0][-1], *(shapes[i + 1][-1] for i in steps[:LEVELS]))
        up = tuple(shapes[i][-1] for i in steps[LEVELS:])
        check(max(*down, *up) <= WIDEST, f"{self.where} has {max(*down, *up):,} channels, more than {WIDEST:,}")
        return down, up

    def config(self, resolution: float, *, gated: bool) -> NetworkConfig:
        """Return the sizes of a U-Net with or without gates."""
        down, up = self.widths(2 * LEVELS)
        if not gated:
            return NetworkConfig(resolution=resolution, channels=down, up_channels=up)
        # the first layer of the time's MLPs is square and not as wide as the scan's features, that of no other MLP is
        times = {size[0] for size in self.mlps.values() if size[0] == size[1] != down[-1] == size[2]}
        check(len(times) == 1, f"{self.where} has {len(times)} kinds of MLPs for the time where 1 is expected")
        width = times.pop()
        check(width <= WIDEST, f"{self.where} embeds the time in {width:,} numbers, more than {WIDEST:,}")
        return NetworkConfig(resolution=resolution, channels=down, up_channels=up, time_width=width)

    def fill(self, module: nn.Module) -> None:
        """Give a module on the meta device its tensors; UserError unless each fits and none is left over."""
        wanted = layout(module)
        names = self._names(wanted, module)
        filled, empty = {}, module.state_dict()
        for place in wanted.places():
            name, target = names[place.released], empty[place.ours]
            where = f"{self.where} tensor {shown(name)}"
            if name not in self.tensors:
                check(name.endswith(NORM[-1]), f"{where} is missing")
                filled[place.ours] = torch.zeros((), dtype=target.dtype)  # a count that nothing depends on
                continue
            value, shape = self.tensors[name], place.shape(tuple(target.shape))
            fits = tuple(value.shape) in (shape, (1, *shape) if place.elements == 1 else shape)
            check(fits, f"{where} has shape {tuple(value.shape)} where {shape} is expected")
            real = value.is_floating_point() == target.is_floating_point() and bool(value.isfinite().all())
            check(real, f"{where} holds numbers that are not finite, or not of its kind ({value.dtype})")
            filled[place.ours] = place.into(value).to(target.dtype)
        module.load_state_dict(filled, assign=True)

    def _names(self, wanted: Layout, module: nn.Module) -> dict[str, str]:
        """Return the file's name of every tensor, by the name :mod:`layout` gives it: all of the file's are used."""
        for kind, found, places in (
            ("convolutions", self.kernels, wanted.convs),
            ("norms", self.norms, wanted.convs),
            ("two-layer MLPs", self.mlps, wanted.mlps),
        ):
            check(len(found) == len(places), f"{self.where} has {len(found)} {kind} where {len(places)} are expected")
        names = {}
        for conv, kernel, norm in zip(wanted.convs, self.kernels, self.norms, strict=True):
            names[conv.kernel] = kernel
            names |= {f"{conv.bn}.{part}": f"{norm}.{part}" for part in NORM}
        for ours, theirs in self._mlps(wanted, module):
            names |= {f"{ours}.{part}": f"{theirs}.{part}" for part in LAYER}
        return names

    def _mlps(self, wanted: Layout, module: nn.Module) -> Iterable[tuple[str, str]]:
        """Return the names of MLPs here and there: the i-th of each kind, kinds told apart by sizes."""
        expected: dict[str, list[tuple[str, Sizes]]] = {}
        for mlp in wanted.mlps:
            first, second = module.get_parameter(f"{mlp.ours}.0.weight"), module.get_parameter(f"{mlp.ours}.2.weight")
            sizes = (first.shape[1], first.shape[0], second.shape[0])
            expected.setdefault(mlp.kind, []).append((mlp.released, sizes))
        for name, sizes in self.mlps.items():
            kinds = [kind for kind, places in expected.items() if any(sizes == size for _, size in places)]
            where = f"{self.where} tensors {shown(name)} (an MLP {'->'.join(map(str, sizes))})"
            check(len(kinds) == 1, f"{where} could be of {len(kinds)} kinds: {', '.join(kinds) or 'none'}")
            released, size = expected[kinds[0]].pop(0)
            check(sizes == size, f"{where} should be {'->'.join(map(str, size))} at its place")
            yield released, name


def check_order(names: Iterable[str], where: str) -> None:
    """Raise UserError unless the names are as modules save them: one module after the other, numbered ones rising."""
    open_path: list[str] = []
    left: set[str] = set()
    numbers: dict[tuple[str, str, str], int] = {}
    for name in names:
        path = name.split(".")
        same = 0
        while same < min(len(path), len(open_path)) and path[same] == open_path[same]:
            same += 1
        for depth in range(same, len(path)):
            module, parent = ".".join(path[: depth + 1]), ".".join(path[:depth])
            orderly = module not in left
            if found := re.fullmatch(r"([^0-9]*)([0-9]{1,9})([^0-9]*)", path[depth]):
                like = (parent, found[1], found[3])
                orderly = orderly and numbers.get(like, -1) < int(found[2])
                numbers[like] = int(found[2])
            check(
                orderly,
                f"{where} tensor {shown(name)} is not in the order of its modules; give the file as it was saved",
            )
            left.add(module)
        open_path = path
