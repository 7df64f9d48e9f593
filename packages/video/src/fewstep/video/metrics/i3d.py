"""The inflated Inception network (I3D, arXiv 1705.07750) as a feature space, with weights the user gives.

Nothing is shipped and nothing is downloaded. The space is that of the Frechet video distance (arXiv 1812.01717) when
the weights are those the original distance uses, which nobody but the user can know: the file's hash is in its name.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from fewstep.core.data.writing import sha256
from fewstep.core.errors import UserError, check
from fewstep.core.metrics.measure import FeatureSpace
from fewstep.video.metrics.features import scaled

SIDE, FRAMES, CLASSES = 224, 9, 400  # FRAMES: the fewest the last pooling can see
COUNTED = ".num_batches_tracked"  # a counter of training, in some files
MIXED = {  # of each block: channels in, and of its branches (1x1; 1x1, 3x3; 1x1, 3x3; pooled 1x1)
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
POOLED = {"Mixed_4b": (3, 2), "Mixed_5b": (2, 2)}  # kernel and stride of the pooling before a block


class Unit(nn.Module):
    """Convolution, normalisation and rectifier; borders are filled so that the output is the input over the stride."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inside, outside, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outside, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations."""
        return functional.relu(self.bn(self.conv3d(same(x, self.kernel, self.stride))))


class Mixed(nn.Module):
    """A block of four branches, side by side in the channels."""

    def __init__(self, inside: int, a: int, b: int, bb: int, c: int, cc: int, d: int) -> None:
        super().__init__()
        self.b0 = Unit(inside, a, 1)
        self.b1a, self.b1b = Unit(inside, b, 1), Unit(b, bb, 3)
        self.b2a, self.b2b = Unit(inside, c, 1), Unit(c, cc, 3)
        self.b3b = Unit(inside, d, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations of all branches."""
        pooled = pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class I3D(nn.Module):
    """The network up to its 400 logits, averaged over time; parts are named as the widespread PyTorch ports name them.

    ``Conv3d_1a_7x7``, ``Conv3d_2b_1x1``, ``Conv3d_2c_3x3``, ``Mixed_3b`` to ``Mixed_5c``, each unit with ``conv3d`` and
    ``bn``; ``logits.conv3d`` with a bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, widths in MIXED.items():
            self.add_module(name, Mixed(*widths))
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, CLASSES, 1)})

    def forward(self, x: Float[Tensor, "n 3 f 224 224"]) -> Float[Tensor, "n 400"]:
        """Return the logits of clips in [-1, 1]."""
        x = pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name in POOLED:
                kernel, stride = POOLED[name]
                x = pool(x, (kernel,) * 3, (stride,) * 3)
            x = self.get_submodule(name)(x)
        x = functional.avg_pool3d(x, (2, SIDE // 32, SIDE // 32), stride=1)
        found: Tensor = self.logits["conv3d"](x).mean((2, 3, 4))
        return found


def i3d_space(weights: str | Path) -> FeatureSpace:
    """Return the space of I3D's logits with the weights in a safetensors file.

    Raises UserError for a file that is none, and for tensors that are missing, unknown or of another shape; later, for
    clips of fewer than 9 frames.
    """
    path = Path(weights).expanduser()
    model = _load(path)
    digest = sha256(path)
    protocol = (
        f"400 logits of I3D with the weights {path.name} (sha256 {digest[:16]}), frames scaled to {SIDE}x{SIDE} "
        "(bilinear, not antialiased)"
    )

    @torch.no_grad()
    def extract(clips: Tensor) -> Tensor:
        check(clips.shape[2] >= FRAMES, f"I3D needs clips of at least {FRAMES} frames, got {clips.shape[2]}")
        return torch.cat([model(scaled(one, SIDE, antialias=False).cpu()) for one in torch.split(clips, 1)])

    return FeatureSpace(f"i3d-{digest[:8]}", protocol, extract)


def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Return the largest of each window; values must not be negative, since borders are filled with zeros."""
    return functional.max_pool3d(same(x, kernel, stride), list(kernel), list(stride))


def same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Return ``x`` with zeros around it, so that a window gives ``ceil(size / stride)``; odd ones go behind."""
    widths: list[int] = []
    for size, k, s in zip(reversed(x.shape[-3:]), reversed(kernel), reversed(stride), strict=True):
        need = max((-(-size // s) - 1) * s + k - size, 0)
        widths += [need // 2, need - need // 2]
    return functional.pad(x, widths)


def _load(path: Path) -> I3D:
    with torch.device("meta"):
        model = I3D()
    wanted = {name: tuple(x.shape) for name, x in model.state_dict().items() if not name.endswith(COUNTED)}
    try:
        with safe_open(path, framework="pt") as file:
            given = [name for name in file.keys() if not name.endswith(COUNTED)]  # noqa: SIM118  it is no mapping
            wrong = sorted(wanted.keys() ^ set(given))
            wrong += [
                name for name in given if name in wanted and tuple(file.get_slice(name).get_shape()) != wanted[name]
            ]
            check(not wrong, f"{path}: not the weights of an I3D with 400 classes: look at '{(wrong or [''])[0]}'")
            tensors = {name: file.get_tensor(name).float() for name in given}
    except (OSError, SafetensorError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as safetensors ({line}); convert I3D's weights to it") from error
    counters = {name: torch.zeros(x.shape) for name, x in model.state_dict().items() if name.endswith(COUNTED)}
    model.load_state_dict(tensors | counters, assign=True)
    return model.eval().requires_grad_(False)
