"""The data of the coming steps, made in one thread while the present step runs."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from fewstep.core.domain import DataSource
from fewstep.core.recipe import Batch
from fewstep.core.rng import Rng
from fewstep.core.training.settings import RunConfig
from fewstep.core.training.world import World


class Feed:
    """This process's share of every step's batch; a function of the step, so a resumed run asks for what it needs."""

    def __init__(self, data: DataSource, config: RunConfig, world: World) -> None:
        self.data, self.seed, self.batch, self.device = data, config.seed, config.train.batch, world.device
        self.steps = config.train.steps
        first, share = world.share(self.batch)
        self.ids = tuple(range(first, first + share))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
        self._next: tuple[int, Future[Batch]] | None = None

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def rng(self, step: int, scope: str) -> Rng:
        """Return the generator of this process's samples at a step."""
        return Rng(self.seed, step, self.ids, scope, self.device, self.batch)

    def get(self, step: int) -> Batch:
        """Return the batch of ``step`` and start on the next one."""
        waiting = self._next
        batch = waiting[1].result() if waiting is not None and waiting[0] == step else self._make(step)
        after = step + 1
        self._next = (after, self._thread.submit(self._make, after)) if after < self.steps else None
        return batch

    def _make(self, step: int) -> Batch:
        return self.data.batch(self.rng(step, "data"), self.device)
