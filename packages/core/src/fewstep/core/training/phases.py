"""One optimizer update of one phase: micro-batches, gradients over all processes, the finiteness test, the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fewstep.core.errors import TrainingError, UserError
from fewstep.core.recipe import Batch, LossTerms, Recipe
from fewstep.core.rng import Rng
from fewstep.core.training.cast import Cast
from fewstep.core.training.optim import learning_rate
from fewstep.core.training.settings import OptimConfig, TrainConfig
from fewstep.core.training.stepper import Stepper
from fewstep.core.training.world import World, local

FIRST_SCALE, GROWTH_INTERVAL = 2.0**16, 2000


@dataclass
class LossScale:
    """The factor that keeps float16 gradients above underflow: halved on overflow, doubled after a quiet while."""

    value: float = 1.0
    quiet: int = 0

    def overflowed(self, phase: str) -> None:
        """Halve; TrainingError when even a factor of one overflows."""
        if self.value <= 1:
            raise TrainingError(f"phase '{phase}': gradients overflow float16 at any loss scale: use precision bf16")
        self.value, self.quiet = self.value / 2, 0

    def went_well(self) -> None:
        """Count an update; double after many."""
        self.quiet += 1
        if self.quiet == GROWTH_INTERVAL:
            self.value, self.quiet = self.value * 2, 0


@dataclass
class Update:
    """What one update did: batch means of its terms and metrics, and why it was skipped if it was."""

    phase: str
    values: dict[str, float] = field(default_factory=dict)
    bad: str = ""
    stop: bool = False
    overflow: bool = False

    @property
    def moved(self) -> bool:
        """Whether the optimizer moved."""
        return not self.bad and not self.overflow


def make_stepper(config: OptimConfig, parameters: Sequence[nn.Parameter], world: World) -> Stepper:
    """Return what moves the parameters of one phase, as the launch asks."""
    if world.zero_stage:
        from fewstep.core.training.zero import ZeroStepper

        return ZeroStepper(config, parameters, world)
    return Stepper(config, parameters, world)


class PhaseRunner:
    """A phase with its optimizer; :meth:`run` makes one update."""

    def __init__(
        self, name: str, recipe: Recipe, cast: Cast, optim: OptimConfig, train: TrainConfig, world: World
    ) -> None:
        self.name, self.recipe, self.cast, self.world = name, recipe, cast, world
        self.train, self.optim = train, optim.for_phase(name)
        self.named = cast.parameters(name)
        self.trains_student = any(p.name == name and "student" in p.trains for p in recipe.phases(recipe.config))
        self.parameters = [parameter for _, parameter in self.named]
        self.stepper = make_stepper(self.optim, self.parameters, world)
        self.scale = LossScale(FIRST_SCALE if train.precision == "fp16" else 1.0)
        self.updates = 0
        _, share = world.share(train.batch)
        self.micro = share if train.micro_batch == "auto" else min(share, train.micro_batch)
        self._fits = False

    def reset(self) -> None:
        """Forget the optimizer's state and start its warm-up again."""
        self.stepper.reset()
        self.updates = 0

    def run(self, batch: Batch, rng: Rng, step: int, stop: bool = False) -> Update:
        """Make one update on this process's share of the batch.

        Raises TrainingError when memory does not suffice for a single sample. A non-finite loss or gradient is
        reported, not raised, and leaves weights and optimizer as they were.
        """
        self.cast.enter(self.name)
        sums = self._forward_backward_that_fits(batch, rng, step)
        self.world.settle()
        names = list(sums)
        totals = self.world.total(torch.stack([*sums.values(), torch.tensor(float(stop)).to(self.world.device)]))
        norm = self.stepper.reduce().double()
        *numbers, stops, grad_norm = torch.cat([totals, norm.reshape(1)]).tolist()  # the one wait for the device
        values = {name: value / self.train.batch for name, value in zip(names, numbers, strict=True)}
        update = Update(self.name, values, stop=stops > 0)
        update.bad = self._bad_loss(values)
        if not update.bad and self.scale.value > 1 and not math.isfinite(grad_norm):
            self.scale.overflowed(self.name)
            update.overflow = True
        elif not update.bad and not math.isfinite(grad_norm):
            update.bad = self._bad_gradient()
        if update.moved:
            self._move(grad_norm / self.scale.value, step, update)
        self.stepper.clear()
        return update

    def _move(self, norm: float, step: int, update: Update) -> None:
        clip = self.train.grad_clip
        factor = (clip / norm if 0 < clip < norm else 1.0) / self.scale.value
        rate = learning_rate(self.optim, self.updates, step, self.train.steps) * self.recipe.lr_factor(step)
        self.stepper.step(rate, factor)
        self.updates += 1
        if self.train.precision == "fp16":
            self.scale.went_well()
        update.values |= {f"grad_norm/{self.name}": norm, f"lr/{self.name}": rate}

    def _forward_backward_that_fits(self, batch: Batch, rng: Rng, step: int) -> dict[str, Tensor]:
        if self._fits or self.train.micro_batch != "auto":
            return self._forward_backward(batch, rng, step)
        while True:
            before = {name: value.clone() for name, value in self.recipe.state().items()}
            full = False
            sums: dict[str, Tensor] = {}
            try:
                sums = self._forward_backward(batch, rng, step)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if self.world.shards:  # the other processes wait for this one's shards: nobody can be asked
                    raise TrainingError(
                        f"phase '{self.name}': out of memory with {self.micro} samples at a time on process "
                        f"{self.world.rank}: set train.micro_batch; auto cannot lower it for networks in shards"
                    ) from error
                full = True  # retried outside: here the traceback still holds the tensors
            if not self.world.any(full):
                self._fits = True
                return sums
            if self.micro == 1:
                raise TrainingError(
                    f"phase '{self.name}': out of memory with one sample at a time: use a smaller network, LoRA roles, "
                    "or roles.checkpointing; `fewstep plan` shows what would fit"
                )
            self.micro = (self.micro + 1) // 2
            self.stepper.clear()
            self.recipe.load_state(before)
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()

    def _forward_backward(self, batch: Batch, rng: Rng, step: int) -> dict[str, Tensor]:
        """Accumulate gradients of the batch mean; return sums over samples of every term and metric, float64."""
        sums: dict[str, Tensor] = {}
        for start in range(0, batch.size, self.micro):
            stop = min(start + self.micro, batch.size)
            whole = start == 0 and stop == batch.size
            piece, own = (batch, rng) if whole else (batch.select(start, stop), rng.select(start, stop))
            for name, value in self._of_piece(piece, own, step, batch.size, stop == batch.size).items():
                sums[name] = sums[name] + value if name in sums else value
        return sums

    def _of_piece(self, piece: Batch, rng: Rng, step: int, size: int, last: bool) -> dict[str, Tensor]:
        """Accumulate the gradients of a micro-batch, loss by loss; return sums over samples, means over the losses."""
        who = f"recipe '{self.recipe.name}', phase '{self.name}'"
        found: dict[str, list[Tensor]] = {}
        more = True
        with rng.network_noise("network"):
            losses = self.recipe.losses(self.name, piece, rng, step)
            while more:
                with self.world.autocast(self.train.precision):
                    terms = next(losses, None)
                    if terms is None:
                        raise UserError(f"{who}: the losses end after one with more" if found else f"{who}: no losses")
                    terms = self._penalised(terms, rng, piece.size)
                total, more = _checked(terms, piece.size, who), terms.more
                self.stepper.backward(total.sum() * (self.scale.value / size), last and not more)
                for name, summed in self._sums(terms).items():
                    found.setdefault(name, []).append(summed)
                del terms, total  # before the next is made: no two graphs at once
            if next(losses, None) is not None:
                raise UserError(f"{who}: the losses go on after one without more")
        return {name: torch.stack(values).mean() for name, values in found.items()}

    def _penalised(self, terms: LossTerms, rng: Rng, size: int) -> LossTerms:
        """Return the last loss of a micro-batch with what a student has against itself, where this phase trains it."""
        penalties = self.recipe.actors.penalties
        if penalties is None or terms.more or not self.trains_student:
            return terms
        own = {name: value.expand(size) for name, value in penalties(rng.fork("penalties")).items()}
        return replace(terms, terms={**terms.terms, **own})

    def _sums(self, terms: LossTerms) -> dict[str, Tensor]:
        values = {f"loss/{self.name}/{name}": value for name, value in terms.terms.items()}
        values |= {f"{self.name}/{name}": value for name, value in terms.metrics.items()}
        return {name: value.detach().double().sum() for name, value in values.items()}

    def _bad_loss(self, values: Mapping[str, float]) -> str:
        for name, value in values.items():
            if name.startswith("loss/") and not math.isfinite(value):
                return f"loss term '{name.split('/', 2)[2]}' is {value}"
        return ""

    def _bad_gradient(self) -> str:
        bad = [n for n, p in self.named if p.grad is not None and not bool(local(p.grad).isfinite().all())]
        return (
            f"gradient of '{bad[0]}' is not finite ({len(bad)} parameters)"
            if bad
            else "the norm of the gradients is not finite"
        )


def _checked(terms: LossTerms, size: int, who: str) -> Tensor:
    for name, value in (*terms.terms.items(), *terms.metrics.items()):
        if tuple(value.shape) != (size,):
            raise UserError(f"{who}: '{name}' must give one value per sample, [{size}], got {list(value.shape)}")
    if not terms.terms:
        raise UserError(f"{who}: no loss terms")
    total = terms.total()
    if not total.requires_grad:
        raise UserError(f"{who}: the loss does not depend on anything this phase trains")
    return total


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
