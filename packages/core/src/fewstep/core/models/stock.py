"""Which stock diffusers scheduler walks a student's plan, and with which settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fewstep.core.errors import UserError, check
from fewstep.core.grids import time_grid
from fewstep.core.process import EDM, VP, Process, RectifiedFlow
from fewstep.core.recipe import StepPlan


@dataclass(frozen=True)
class StockSampler:
    """A diffusers scheduler: its config, and what ``set_timesteps`` and ``step`` are given besides.

    ``own_grid``: the times are what the scheduler makes of their number alone.
    """

    config: dict[str, Any]
    set_timesteps: str
    step: Mapping[str, float] = field(default_factory=dict)
    own_grid: bool = False

    @property
    def scheduler(self) -> str:
        """Return the scheduler's class name."""
        return str(self.config["_class_name"])


def stock_sampler(
    plan: StepPlan,
    process: Process,
    teacher: Mapping[str, Any],
    time_scaling: float,
    *,
    sends_sigmas: bool = False,
    takes: Collection[str] = ("timesteps", "sigmas"),
) -> StockSampler:
    """Return the scheduler that samples as the plan does, from the config of the teacher's scheduler.

    ``time_scaling``: of the consistency boundary the student has (infinite: none). ``sends_sigmas``: whoever uses the
    scheduler hands it the sigmas 1, (n-1)/n ... 1/n itself. ``takes``: in which form it takes times of one's own.
    Raises UserError for a plan that no stock scheduler walks.
    """
    check(
        plan.start == "noise", "export: stock pipelines start from noise, and this student from its low-quality input"
    )
    if isinstance(process, VP):
        return _vp(plan, process, teacher, time_scaling, takes)
    if isinstance(process, RectifiedFlow):
        return _flow(plan, process, sends_sigmas, takes)
    if isinstance(process, EDM):
        grid = time_grid(process, len(plan.times), "karras")
        same = plan.mode == "deterministic" and all(math.isclose(a, b) for a, b in zip(plan.times, grid, strict=True))
        check(
            same, "export: diffusers' EDM schedulers walk Karras' grid without fresh noise only, and this plan differs"
        )
        return StockSampler(dict(teacher), f"{len(plan.times)}")
    raise UserError(f"export: no stock diffusers scheduler describes {type(process).__name__}")


def _check_takes(name: str, times: list[Any], takes: Collection[str]) -> None:
    check(
        name in takes,
        f"export: this pipeline's call takes no {name}=, and its scheduler does not make this student's {times} by "
        "itself: train with evenly spaced times (student_steps; of consistency, a divisor of num_knots)",
    )


def _flow(plan: StepPlan, process: RectifiedFlow, sends_sigmas: bool, takes: Collection[str]) -> StockSampler:
    check(plan.mode != "jump", "export: diffusers' flow schedulers know no jumps (TCD): train with gamma 0 or 1")
    unit = process.time_to_unit(torch.tensor(plan.times, dtype=torch.float64)).tolist()
    check(
        unit[0] > 1 - 1e-6,  # ours starts from noise of the first time's own size, they do from unit noise
        f"export: stock flow pipelines start at the noisiest time, and this student at {unit[0]:.4g} of the clock: "
        "train it with student_start=1, or with student_times that begin with 1",
    )
    steps = len(unit)
    plain = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": process.shift}
    if plan.mode == "renoise":
        plain["stochastic_sampling"] = True
    if all(math.isclose(u, (steps - i) / steps, abs_tol=1e-6) for i, u in enumerate(unit)):
        if sends_sigmas:
            return StockSampler(plain, f"{steps}", own_grid=True)
        return StockSampler(plain | _even_grid(process.shift, steps, plan.times[-1]), f"{steps}", own_grid=True)
    given = [round(u, 8) for u in unit]  # the scheduler applies the shift itself
    _check_takes("sigmas", given, takes)
    return StockSampler(plain, f"sigmas={given}")


def _even_grid(shift: float, steps: int, last: float, levels: int = 1000) -> dict[str, float]:
    """Return the settings under which the scheduler's own grid of ``steps`` is the shifted 1, (n-1)/n ... 1/n.

    Its own grid goes evenly down to its least level m, is shifted by s', and then stretched so that it ends at
    ``shift_terminal``. With ``q = (1 - m)/(n - 1)``, ``1 - sigma_k`` is ``k q / (s' - (s' - 1) k q)`` before stretching
    and has to be proportional to ``(k/n) / (s - (s - 1) k/n)``: so ``1 - 1/s' = (1 - 1/s) / (n q)``.
    """
    if steps == 1:
        return {"shift": shift}
    own = shift
    for _ in range(50):  # m depends on s', weakly
        least = own / levels / (1 + (own - 1) / levels)
        own = 1 / (1 - (1 - 1 / shift) * (steps - 1) / (steps * (1 - least)))
    return {"shift": own, "shift_terminal": last}


def _vp(
    plan: StepPlan, process: VP, teacher: Mapping[str, Any], time_scaling: float, takes: Collection[str]
) -> StockSampler:
    """Return a scheduler whose table ends at the student's first time, so that its own grid is the student's."""
    import diffusers

    name = {"renoise": "LCMScheduler", "deterministic": "DDIMScheduler", "jump": "TCDScheduler"}[plan.mode]
    times = [round(t) for t in plan.times]
    config = {
        "_class_name": name,
        "num_train_timesteps": times[0] + 1,
        "prediction_type": teacher.get("prediction_type", "epsilon"),
        "clip_sample": False,
        "set_alpha_to_one": plan.end == "clean",
        "steps_offset": 1,  # of no effect here; old pipelines insist on it
        "timestep_spacing": "trailing",
    } | _betas(process, times[0] + 1, teacher)
    if plan.mode != "deterministic":
        config["original_inference_steps"] = _original_steps(times)
    if plan.mode == "renoise":
        # 1e9 leaves nothing of the boundary that LCMScheduler always applies
        config["timestep_scaling"] = min(time_scaling, 1e9)
    own: Callable[..., Any] = getattr(diffusers, name)
    scheduler = own(**{key: value for key, value in config.items() if key != "_class_name"})
    scheduler.set_timesteps(len(times))
    how, own_grid = f"{len(times)}", True
    if [int(t) for t in scheduler.timesteps] != times:
        check(
            plan.mode != "deterministic",
            f"export: DDIMScheduler knows uniform steps only, and this student's times are {times}: "
            "train it with student_steps instead of student_times",
        )
        _check_takes("timesteps", times, takes)
        how, own_grid = f"timesteps={times}", False
    return StockSampler(config, how, {"eta": plan.gamma} if plan.mode == "jump" else {}, own_grid)


def _original_steps(times: Sequence[int], most: int = 1000) -> int:
    """Return of how many even steps LCM's and TCD's schedulers pick these times by themselves, else their number.

    Of ``n`` steps down from the table's end they take every ``n/len(times)``-th, rounded down.
    """
    levels, steps = times[0] + 1, len(times)
    for n in range(steps, min(most, levels) + 1):
        if [(n - (i * n) // steps) * (levels // n) - 1 for i in range(steps)] == list(times):
            return n
    return steps


def _betas(process: VP, levels: int, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """Return the noise table as the teacher's scheduler wrote it, or cut to its first ``levels`` entries."""
    if levels == len(process.alphas_cumprod):
        from diffusers import DDIMScheduler

        keys = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
        given = {key: teacher[key] for key in keys if teacher.get(key) is not None}
        made = DDIMScheduler(num_train_timesteps=levels, **given).alphas_cumprod.double()
        if torch.allclose(made, process.alphas_cumprod, atol=1e-6):  # not so for tables that are changed afterwards
            return given
    abar = process.alphas_cumprod[:levels]
    before = torch.cat([torch.ones(1, dtype=abar.dtype), abar[:-1]])
    return {"trained_betas": (1 - abar / before).tolist()}
