"""Where the weights of encoder and U-Net stand in released files: in the order of definition, under names of this form.

Stem: ``stem.0.kernel``, ``stem.1.bn.weight``, ``stem.3``, ``stem.4.bn``. Down stage 1: ``stage1.0.net.0``, ``.1.bn``,
then residual blocks ``stage1.1`` and ``stage1.2`` with ``net.0``, ``net.1.bn``, ``net.3``, ``net.4.bn`` and, where
channels change, ``downsample.0``, ``downsample.1.bn``. Up stage 1: ``up1.0.net``, then blocks ``up1.1.0``, ``up1.1.1``.
Head: ``last.0``, ``last.2``. Gates: ``scan_stage1``, ``time_stage1``, ``joint_stage1`` and so on to ``joint_up4``, each
with ``.0`` and ``.2``. Only the endings (kernel, bn, 0, 2), the order and the kernels are those of the released code.
Kernels are "k ci co", x fastest, then y, then z, offsets -1, 0, 1 or 0, 1, as here; those of one element are "ci co".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from fewstep.lidar.sparse.layers import ConvNorm, ResidualBlock

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
LAYER = ("0.weight", "0.bias", "2.weight", "2.bias")
GATE = ("scan", "time", "joint")


class Conv(NamedTuple):
    """A convolution and its norm: ``weight`` and ``norm`` here, ``kernel`` and ``bn`` there; 1 element is 1x1x1."""

    weight: str
    norm: str
    kernel: str
    bn: str
    elements: int


class Mlp(NamedTuple):
    """Two layers ``ours`` here, ``released`` there; ``kind`` is one of GATE or ``head``."""

    kind: str
    ours: str
    released: str


class Place(NamedTuple):
    """A tensor ``ours`` here, ``released`` there; ``elements`` of a kernel, 0 for what is the same in both."""

    ours: str
    released: str
    elements: int

    def out(self, value: Tensor) -> Tensor:
        """Return our tensor as it is there."""
        if self.elements <= 1:
            return value.T.contiguous() if self.elements else value.clone()
        return value.view(len(value), self.elements, -1).permute(1, 2, 0).contiguous()

    def into(self, value: Tensor) -> Tensor:
        """Return a released tensor as it is here."""
        if not self.elements:
            return value
        return value.reshape(-1, value.shape[-1]).T.contiguous()

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Return the released shape of a tensor that has the shape ``ours`` here."""
        if not self.elements:
            return ours
        pair = (ours[1] // self.elements, ours[0])
        return pair if self.elements == 1 else (self.elements, *pair)


class Layout(NamedTuple):
    """Convolutions and MLPs of a network in the order of definition."""

    convs: tuple[Conv, ...]
    mlps: tuple[Mlp, ...]

    def places(self) -> Iterator[Place]:
        """Return every tensor of the network."""
        for conv in self.convs:
            yield Place(conv.weight, conv.kernel, conv.elements)
            for part in NORM:
                yield Place(f"{conv.norm}.{part}", f"{conv.bn}.{part}", 0)
        for mlp in self.mlps:
            for part in LAYER:
                yield Place(f"{mlp.ours}.{part}", f"{mlp.released}.{part}", 0)


def layout(module: nn.Module) -> Layout:
    """Return the layout of a ScanEncoder or SparseUNet."""
    convs = [*_conv(module, "stem.first", "stem", 0), *_conv(module, "stem.second", "stem", 3)]
    for side, first, stage, blocks in (("down", "reduce", "stage", ""), ("up", "expand", "up", "1.")):
        for i, _ in enumerate(getattr(module, side, ())):
            ours, released = f"{side}.{i}", f"{stage}{i + 1}"
            convs += _conv(module, f"{ours}.{first}", f"{released}.0.net", 0)
            for j in (0, 1):
                convs += _block(module, f"{ours}.blocks.{j}", f"{released}.{blocks}{j if blocks else j + 1}")
    mlps = [Mlp("head", "head", "last")] if hasattr(module, "head") else []
    for side, stage in (("down", "stage"), ("up", "up")):
        for i, _ in enumerate(getattr(module, f"{side}_gates", ())):
            mlps += [Mlp(kind, f"{side}_gates.{i}.{kind}", f"{kind}_{stage}{i + 1}") for kind in GATE]
    return Layout(tuple(convs), tuple(mlps))


def _conv(module: nn.Module, ours: str, released: str, index: int) -> list[Conv]:
    made = module.get_submodule(ours)
    assert isinstance(made, ConvNorm)
    kernel, norm = f"{released}.{index}.kernel", f"{released}.{index + 1}.bn"
    return [Conv(f"{ours}.conv.linear.weight", f"{ours}.norm", kernel, norm, made.conv.elements)]


def _block(module: nn.Module, ours: str, released: str) -> list[Conv]:
    made = module.get_submodule(ours)
    assert isinstance(made, ResidualBlock)
    convs = [
        *_conv(module, f"{ours}.first", f"{released}.net", 0),
        *_conv(module, f"{ours}.second", f"{released}.net", 3),
    ]
    if made.shortcut is not None:
        there = f"{released}.downsample"
        convs.append(Conv(f"{ours}.shortcut.weight", f"{ours}.shortcut_norm", f"{there}.0.kernel", f"{there}.1.bn", 1))
    return convs
