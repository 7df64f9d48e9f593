"""Motion statistics of clips without optical flow: how much changes, how fast, how jerkily. One value per clip.

Clips are "b c f h w" in [-1, 1] throughout. A clip of one frame has no motion, and every amount of it is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.tensors import precise, sample_mean

SPAN = 2.0  # of [-1, 1]
TOP = 0.05  # of a pair's pixels, those that change most: VBench's share for the magnitudes of optical flow
PER_SECOND = 8.0  # frames a dynamic degree looks at, as VBench does


@dataclass(frozen=True)
class Motion:
    """Statistics of clips, "b" each; :func:`motion` makes them.

    ``energy``: :func:`motion_energy`; ``speed``: :func:`pattern_speed`; ``flicker``: :func:`flicker`;
    ``brightness``: :func:`brightness_flicker`; ``moves``: 1 for a clip that counts for the dynamic degree.
    """

    energy: Float[Tensor, " b"]
    speed: Float[Tensor, " b"]
    flicker: Float[Tensor, " b"]
    brightness: Float[Tensor, " b"]
    moves: Float[Tensor, " b"]

    def means(self) -> dict[str, float]:
        """Return the mean of every statistic over the clips; that of ``moves`` is the dynamic degree."""
        found = {name: float(getattr(self, name).mean()) for name in ("energy", "speed", "flicker", "brightness")}
        return found | {"dynamic_degree": float(self.moves.mean())}


def motion(clips: Float[Tensor, "b c f h w"], *, fps: float = PER_SECOND, threshold: float = 0.1) -> Motion:
    """Return all statistics; ``fps`` and ``threshold`` are those of :func:`moving`."""
    return Motion(
        motion_energy(clips),
        pattern_speed(clips),
        flicker(clips),
        brightness_flicker(clips),
        moving(clips, fps=fps, threshold=threshold).to(precise(clips).dtype),
    )


def motion_energy(clips: Float[Tensor, "b c f h w"]) -> Float[Tensor, " b"]:
    """Return the mean square of the difference of neighbouring frames; 0 for a still."""
    return _mean(precise(clips).diff(dim=2).square())


def motion_ratio(student: Float[Tensor, "b c f h w"], teacher: Float[Tensor, "n c f h w"]) -> float:
    """Return the student's mean motion energy over the teacher's: 1 keeps the motion, 0 is a still.

    A ratio of means, which clips that hardly move cannot dominate. It grows with contrast; :func:`pattern_speed` does
    not. Raises UserError when no clip of the teacher moves.
    """
    against = motion_energy(teacher).mean()
    check(float(against) > 0, "the teacher's clips are stills: there is no motion to keep, give clips that move")
    return float(motion_energy(student).mean() / against)


def pattern_speed(clips: Float[Tensor, "b c f h w"]) -> Float[Tensor, " b"]:
    """Return ``(E |x_(i+1) - x_i|^2 / E |grad x_i|^2)^(1/2)``, pixels per frame, blind to brightness and contrast.

    For a pattern that translates slowly it is the root mean square of the velocity along the gradient: the speed for
    stripes that move across themselves, ``1/2^(1/2)`` of it for a texture without direction. Flicker counts, too.
    0 for clips without a gradient (single colours).
    """
    x = precise(clips)
    here = x[:, :, :-1, :-1, :-1]
    across, down = x[:, :, :-1, :-1, 1:] - here, x[:, :, :-1, 1:, :-1] - here
    moved, slope = _mean((x[:, :, 1:, :-1, :-1] - here).square()), _mean(across.square() + down.square())
    return _ratio(moved, slope).sqrt()


def flicker(clips: Float[Tensor, "b c f h w"]) -> Float[Tensor, " b"]:
    """Return how much of the change is undone by the next frame, in [0, 1], whatever the amount of change.

    ``sum |d_(i+1) - d_i|^2 / (2 sum (|d_i|^2 + |d_(i+1)|^2))`` over differences ``d`` of neighbouring frames, which is
    ``(1 - rho) / 2`` for their correlation ``rho`` with the next: 0 for steady change, 3/4 for frames of independent
    noise, 1 for two frames that alternate, 0 for stills and for fewer than three frames. Ours.
    """
    d = precise(clips).diff(dim=2)
    first, second = d[:, :, :-1], d[:, :, 1:]
    return _ratio(_mean((second - first).square()), 2 * _mean(first.square() + second.square()))


def brightness_flicker(clips: Float[Tensor, "b c f h w"]) -> Float[Tensor, " b"]:
    """Return the mean change of the frames' mean colour as a share of the value range; 1 for black and white by turns.

    Motion inside the frame hardly changes it.
    """
    return _mean(precise(clips).mean((-2, -1)).diff(dim=2).abs()) / SPAN


def vbench_flickering(clips: Float[Tensor, "b c f h w"]) -> Float[Tensor, " b"]:
    """Return VBench's temporal flickering, ``(255 - mean |x_(i+1) - x_i|) / 255`` on 8-bit frames (arXiv 2311.17982).

    1 for a still: a score that wants a dynamic degree beside it.
    """
    levels = ((precise(clips).clamp(-1, 1) + 1) * 127.5).round()
    return 1 - _mean(levels.diff(dim=2).abs()) / 255


def moving(clips: Float[Tensor, "b c f h w"], *, fps: float = PER_SECOND, threshold: float = 0.1) -> Bool[Tensor, " b"]:
    """Return which clips move, as booleans; their share is the dynamic degree, by pixels instead of optical flow.

    As VBench does with flow: of frames about 1/8 s apart, a pair moves when the mean of the largest 5 % of the changes
    (after the change of the frame's mean colour is taken out) exceeds ``threshold`` of the value range; a clip moves
    when ``round(4 n / 16)`` (at least 1) of its ``n`` looked-at frames' pairs do. Not comparable with VBench's number.
    Raises UserError for rates and thresholds that are not positive.
    """
    check(fps > 0 and threshold > 0, f"fps and threshold must be positive, got {fps:g} and {threshold:g}")
    x = precise(clips)[:, :, :: max(1, round(fps / PER_SECOND))]
    frames = x.shape[2]
    if frames < 2:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    change = x.diff(dim=2)
    change = (change - change.mean((-2, -1), keepdim=True)).square().mean(1).sqrt().flatten(2)
    most = change.topk(max(1, round(TOP * change.shape[-1])), dim=-1).values.mean(-1) / SPAN
    return (most > threshold).sum(1) >= max(1, round(4 * frames / 16))


def _mean(x: Tensor) -> Tensor:
    """Return the mean of each clip; 0 for one without elements (of too few frames)."""
    return sample_mean(x) if x[0].numel() else x.new_zeros(len(x))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return ``above / below``, and 0 where both are 0."""
    return above / torch.where((above == 0) & (below == 0), torch.ones_like(below), below)
