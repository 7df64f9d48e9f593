"""A trajectory cut in two at one knot: what each side is trained on, where it ends, and who samples where."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.grids import Knots, knot_grid
from fewstep.core.process import Process, RectifiedFlow
from fewstep.core.rng import Rng


@dataclass(frozen=True)
class CutGrid:
    """Knots of a process with the index ``kappa`` of the one at the cut.

    Knots above it jump to the cut, those up to it to ``previous[0]``, the end.
    """

    knots: Knots
    kappa: int

    @property
    def cut(self) -> float:
        """Return the time of the cut: noisier samples are the first expert's, all others the second's."""
        return float(self.knots.times[self.kappa])

    @property
    def end(self) -> float:
        """Return the time the lower side ends at."""
        return float(self.knots.previous[0])

    def draw(self, upper: bool, rng: Rng) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return a knot of one side, the one before it and the end of the side, per sample."""
        low = self.kappa + 1 if upper else 0
        count = len(self.knots.times) - low if upper else self.kappa + 1
        index = low + rng.integers("knot", count).cpu()
        end = torch.full((len(index),), self.cut if upper else self.end, dtype=torch.float64)
        return self.knots.times[index], self.knots.previous[index], end

    def draw_level(self, rng: Rng, stream: str) -> Float[Tensor, " b"]:
        """Return a level between the end and the last knot before the cut, per sample: where samples are judged."""
        return self.knots.previous[rng.integers(stream, self.kappa + 1).cpu()]

    def steps(self, num_steps: int) -> tuple[float, ...]:
        """Return the times of a student of ``num_steps``, evenly chosen on either side, the cut among them.

        Half of the steps are above the cut, of an odd number the smaller half. Raises UserError for fewer than two
        steps, and for more than there are knots.
        """
        top, above = len(self.knots.times) - 1, num_steps // 2
        below = num_steps - above
        check(
            num_steps >= 2 and above <= top - self.kappa and below <= self.kappa + 1,
            f"two experts sample in 2 steps or more, each in no more than its knots ({top - self.kappa} and "
            f"{self.kappa + 1}), not in {num_steps}: set train.sample_steps or --steps",
        )
        index = [top - (i * (top - self.kappa)) // above for i in range(above)]
        index += [self.kappa - -(-i * (self.kappa + 1) // below) for i in range(below)]
        return tuple(self.knots.times[index].tolist())


def cut_grid(process: Process, num_knots: int, kappa: int, shift: float = 0.0, end: float = 0.0) -> CutGrid:
    """Return the knots of a process, cut at ``kappa``.

    ``shift``: of the grid of a flow process, where it is not the process's own (0). ``end``: the fraction of the clock
    the lower side ends at, below the first knot. Raises UserError for a cut that leaves one side without knots, a shift
    of a process without, and an end that is not below the first knot.
    """
    if shift > 0:
        check(
            isinstance(process, RectifiedFlow),
            f"recipe.shift is for flow teachers, this one's process is {type(process).__name__}: set it to 0",
        )
        assert isinstance(process, RectifiedFlow)  # for mypy
        process = replace(process, shift=shift)
    times, previous = knot_grid(process, num_knots)
    check(
        0 <= kappa < len(times) - 1,
        f"recipe.kappa is {kappa}, and of {len(times)} knots both sides need one: 0 to {len(times) - 2}",
    )
    last = process.round(process.unit_to_time(torch.tensor([end], dtype=torch.float64)))
    check(
        bool(last[0] < times[0]),
        f"recipe.end is {end:g} of the clock, time {float(last[0]):.4g}, and the first knot is {float(times[0]):.4g}: "
        "set a smaller one",
    )
    return CutGrid(Knots(times, torch.cat([last, previous[1:]])), kappa)


__all__ = ["CutGrid", "cut_grid"]
