"""Learned measures of picture quality through the optional package pyiqa, with weights that are on this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError, check, nearest
from fewstep.restoration.metrics import border


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What pyiqa calls a measure, whether it looks at a reference, and which network it is."""

    pyiqa: str
    reference: bool
    lower_is_better: bool
    about: str


# names differ wherever weights do, so that numbers of different networks never share a column
LEARNED = {
    "lpips": Learned(pyiqa="lpips", reference=True, lower_is_better=True, about="LPIPS of AlexNet, v0.1"),
    "lpips-vgg": Learned(pyiqa="lpips-vgg", reference=True, lower_is_better=True, about="LPIPS of VGG-16, v0.1"),
    "dists": Learned(pyiqa="dists", reference=True, lower_is_better=True, about="DISTS"),
    "niqe": Learned(pyiqa="niqe", reference=False, lower_is_better=True, about="NIQE"),
    "musiq": Learned(pyiqa="musiq", reference=False, lower_is_better=False, about="MUSIQ of KonIQ-10k"),
    "clipiqa": Learned(pyiqa="clipiqa", reference=False, lower_is_better=False, about="CLIPIQA, no prompt learned"),
    "maniqa": Learned(pyiqa="maniqa", reference=False, lower_is_better=False, about="MANIQA of KonIQ-10k"),
    "maniqa-pipal": Learned(pyiqa="maniqa-pipal", reference=False, lower_is_better=False, about="MANIQA of PIPAL"),
}
SEED = 0  # of the random crops that MANIQA measures


class LearnedMeasure:
    """A measure of :data:`LEARNED` ready to be called; UserError without pyiqa or without the weights here."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        check(name in LEARNED, f"measure '{name}': unknown; {nearest(name, LEARNED)}")
        self.name, self.entry = name, LEARNED[name]
        self.device = torch.device(device)
        module = _pyiqa(name)
        try:
            with no_network():
                self.metric: Any = module.create_metric(self.entry.pyiqa, as_loss=False, device=self.device)
        except (OSError, RuntimeError, AssertionError, KeyError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"measure '{name}': pyiqa cannot load '{self.entry.pyiqa}' ({reason}); "
                "let pyiqa fetch its weights once with a network, nothing is downloaded here"
            ) from error
        lower = bool(self.metric.lower_better)
        check(
            lower == self.entry.lower_is_better,
            f"measure '{name}': this pyiqa calls {'lower' if lower else 'higher'} better; install another version",
        )
        self.version = str(getattr(module, "__version__", "of unknown version"))

    def protocol(self, crop: int) -> str:
        """Return in one sentence what is measured, and with which version."""
        better = "lower" if self.entry.lower_is_better else "higher"
        kind = "against the reference" if self.entry.reference else "without a reference"
        return (
            f"{self.name}: {self.entry.about} {kind}, pyiqa {self.version} '{self.entry.pyiqa}', RGB in [0, 1] rounded "
            f"to 8 bits, {border(crop)}, float32; {better} is better"
        )

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], *, crop: int = 0
    ) -> Float[Tensor, "b"]:
        """Return one value per picture in [0, 1], float64; UserError for pictures that the measure cannot take."""
        check(
            x.shape == reference.shape, f"pictures of {tuple(x.shape)} and {tuple(reference.shape)}: give equal sizes"
        )
        check(0 <= 2 * crop < min(x.shape[2:]), f"crop of {crop}: nothing is left of {tuple(x.shape)}")
        inside = slice(crop, -crop or None)
        pictures = [self._prepared(picture[..., inside, inside]) for picture in (x, reference)]
        given = pictures if self.entry.reference else pictures[:1]
        values = []
        for one in zip(*given, strict=True):
            values.append(self._value([picture[None] for picture in one]))
        return torch.stack(values)

    def _value(self, pictures: list[Tensor]) -> Tensor:
        # forked, so that random crops are the same for every picture and no other draw changes
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), torch.autocast(self.device.type, enabled=False):
                torch.default_generator.manual_seed(SEED)
                for device in devices:
                    torch.cuda.default_generators[device.index or 0].manual_seed(SEED)
                value: Tensor = self.metric(*pictures)
        except (RuntimeError, ValueError, AssertionError) as error:
            size = "x".join(map(str, pictures[0].shape[:1:-1]))
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.name} cannot measure {size} pixels ({reason}): leave it out") from error
        check(value.numel() == 1, f"{self.name}: pyiqa gave {value.numel()} values for one picture")
        return value.detach().double().cpu().reshape(())

    def _prepared(self, x: Tensor) -> Tensor:
        rounded = (x.detach().float().clamp(0, 1) * 255).round() / 255
        return rounded.expand(-1, 3, -1, -1).to(self.device)


def _pyiqa(name: str) -> ModuleType:
    try:
        import pyiqa
    except ImportError as error:
        raise UserError(
            f"measure '{name}' needs pyiqa ({' '.join(str(error).split())}): `pip install pyiqa`, or leave it out"
        ) from error
    module: ModuleType = pyiqa
    return module


@contextmanager
def no_network() -> Iterator[None]:
    """Let no address be looked up, so that a library that would download raises OSError at once."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise OSError("its weights are not on this machine")

    kept = socket.getaddrinfo
    socket.getaddrinfo = refuse
    try:
        yield
    finally:
        socket.getaddrinfo = kept
