"""A learned motion representation: a small network on each frame that starts as the identity."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.errors import check
from fewstep.core.rng import Rng
from fewstep.core.tensors import precise, sample_sum


@dataclass(frozen=True, kw_only=True)
class MotionHeadConfig:
    """The learned head; ``layers`` 0 is none.

    ``layers``, ``kernel``: MCM's "learn" has 2 and 1, its "hlearn" 5 and 3 (arXiv 2406.06890). ``width``: hidden
    channels. ``channels``: of the clip. ``ema_decay``: of the head on the target's side.
    """

    layers: int = 0
    kernel: int = 1
    width: int = 64
    channels: int = 4
    ema_decay: float = 0.95

    def __post_init__(self) -> None:
        check(self.layers == 0 or self.layers >= 2, f"head.layers must be 0 (no head) or at least 2, got {self.layers}")
        check(self.kernel >= 1 and self.kernel % 2 == 1, f"head.kernel must be odd, got {self.kernel}")
        check(self.width >= 1 and self.channels >= 1, "head.width and head.channels must be at least 1")
        check(0 <= self.ema_decay < 1, f"head.ema_decay must lie in [0, 1), got {self.ema_decay:g}")


class MotionHead(nn.Module):
    """``h(x) = x + network(x)`` frame by frame, the network's last layer zero at first: then ``h(x) = x`` exactly."""

    def __init__(self, config: MotionHeadConfig, seed: int = 0) -> None:
        super().__init__()
        check(config.layers >= 2, "a motion head needs head.layers of at least 2")
        width, groups = config.width, max(g for g in range(1, 33) if config.width % g == 0)
        blocks: list[nn.Module] = [nn.SiLU()]
        with Rng(seed, 0, ()).network_noise("motion_head"):
            for layer in range(config.layers - 1):
                inputs = width if layer else config.channels
                blocks.append(nn.Conv2d(inputs, width, config.kernel, padding=config.kernel // 2))
                blocks += [nn.GroupNorm(groups, width), nn.SiLU()]
            self.out = nn.Conv2d(width, config.channels, 1)
        self.blocks = nn.Sequential(*blocks)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, clip: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        """Return the representation; the frames do not see each other. UserError for another number of channels."""
        check(
            clip.shape[1] == self.out.out_channels,
            f"the motion head was made for {self.out.out_channels} channels and the clip has {clip.shape[1]}: set "
            "head.channels",
        )
        frames = clip.transpose(1, 2).flatten(0, 1)
        added: Tensor = self.out(self.blocks(frames))
        return clip + added.reshape(clip.transpose(1, 2).shape).transpose(1, 2)


def head_deviation(represented: Float[Tensor, "b c f h w"], clip: Float[Tensor, "b c f h w"]) -> Float[Tensor, " b"]:
    """Return ``|h(x) - x| / |x|`` per sample, detached: a head that cheats shrinks both sides of the loss."""
    moved = sample_sum((precise(represented) - precise(clip)).detach().square())
    return (moved / sample_sum(precise(clip).detach().square()).clamp_min(1e-24)).sqrt()
