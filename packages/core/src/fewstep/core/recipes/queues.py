"""Queues of a student's own states on their way from noise to data, one queue per key time.

A state is made by one step of the student from the state before, in some later update, so that a chain of steps is
followed while gradients go through one of them only. Every sample of the global batch has its own place in an entry:
what a sample meets does not depend on micro-batches or on the number of processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check

Total = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """States ``x`` "b *d" of the samples ``ids``, the real states ``ahead`` "b k *d" of their trajectories, the nearest
    first, and their condition.

    ``batch``: samples in the global batch; an entry that has them all is the same on every process.
    """

    ids: tuple[int, ...]
    x: Tensor
    ahead: Tensor
    cond: Cond
    batch: int

    def of(self, ids: tuple[int, ...], device: torch.device) -> Entry | None:
        """Return the rows of some samples, None unless all are here."""
        place = {sample: row for row, sample in enumerate(self.ids)}
        if not all(sample in place for sample in ids):
            return None
        rows = torch.tensor([place[sample] for sample in ids], device=self.x.device)
        cond = {name: value[rows].to(device) for name, value in self.cond.items()}
        return Entry(ids, self.x[rows].to(device), self.ahead[rows].to(device), cond, self.batch)

    def tensors(self, total: Total | None) -> dict[str, Tensor]:
        """Return the entry as tensors of the whole global batch; all processes together."""
        found = {"x": self.x, "ahead": self.ahead, **{f"cond/{name}": value for name, value in self.cond.items()}}
        ids = torch.tensor(self.ids, dtype=torch.int64, device=self.x.device)
        if total is not None and len(ids) < self.batch:
            found = {name: _gathered(value, ids, self.batch, total) for name, value in found.items()}
            ids = torch.arange(self.batch)
        return {"ids": ids, **found}


def _gathered(value: Tensor, ids: Tensor, batch: int, total: Total) -> Tensor:
    """Return the rows of all processes: each adds its own to zeros, which loses no bit."""
    flag = value.dtype == torch.bool
    own = value.to(torch.uint8) if flag else value
    whole = torch.zeros(batch, *own.shape[1:], dtype=own.dtype, device=own.device)
    whole[ids] = own
    return total(whole).to(value.dtype)


def _joined(pieces: list[Entry]) -> Entry:
    first = pieces[0]
    cond = {name: torch.cat([piece.cond[name] for piece in pieces]) for name in first.cond}
    ids = tuple(sample for piece in pieces for sample in piece.ids)
    x, ahead = torch.cat([piece.x for piece in pieces]), torch.cat([piece.ahead for piece in pieces])
    return Entry(ids, x, ahead, cond, first.batch)


class LatentQueues:
    """``count`` queues of at most ``length`` entries; the oldest is on offer once a queue is full.

    Entries come in micro-batches during a step and are in their queue after :meth:`finish`; what was on offer in the
    step is then gone.
    """

    def __init__(self, count: int, length: int) -> None:
        check(length >= 1, f"queue_length must be at least 1, got {length}")
        self.length = length
        self.queues: list[deque[Entry]] = [deque(maxlen=length) for _ in range(count)]
        self._came: dict[int, list[Entry]] = {}

    def oldest(self, queue: int, ids: tuple[int, ...], device: torch.device) -> Entry | None:
        """Return the rows of the oldest entry of a full queue; None where there is none for these samples."""
        full = len(self.queues[queue]) == self.length
        return self.queues[queue][0].of(ids, device) if full else None

    def put(self, queue: int, entry: Entry) -> None:
        """Take a micro-batch's states, detached, to be in the queue after the step."""
        held = Entry(entry.ids, entry.x.detach(), entry.ahead.detach(), entry.cond, entry.batch)
        self._came.setdefault(queue, []).append(held)

    def finish(self, used: int | None) -> None:
        """End a step: drop the entry that was on offer in the queue ``used``, take in what came."""
        if used is not None and len(self.queues[used]) == self.length:
            self.queues[used].popleft()
        for queue, pieces in self._came.items():
            self.queues[queue].append(_joined(pieces))
        self._came.clear()

    def state(self, total: Total | None) -> dict[str, Tensor]:
        """Return all entries as ``<queue>/<place>/<name>``, put together from all processes by ``total``."""
        return {
            f"{number}/{place}/{name}": value
            for number, queue in enumerate(self.queues)
            for place, entry in enumerate(queue)
            for name, value in entry.tensors(total).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` gave and forget what came in this step; UserError for what does not fit."""
        parts: dict[tuple[int, int], dict[str, Tensor]] = {}
        for key, value in state.items():
            where, at, name = key.split("/", 2)
            parts.setdefault((int(where), int(at)), {})[name] = value
        for queue in self.queues:
            queue.clear()
        self._came.clear()
        for (number, place), found in sorted(parts.items()):
            fits = number < len(self.queues) and place < self.length and {"ids", "x", "ahead"} <= found.keys()
            if not fits:
                raise UserError(
                    f"the checkpoint has entry {place} in queue {number}, this run {len(self.queues)} queues of "
                    f"{self.length}: go on with the same student_steps and queue_length"
                )
            ids = tuple(int(sample) for sample in found["ids"].tolist())
            cond = {name.removeprefix("cond/"): value for name, value in found.items() if name.startswith("cond/")}
            self.queues[number].append(Entry(ids, found["x"], found["ahead"], cond, len(ids)))
