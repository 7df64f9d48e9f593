"""The processes of a run and what they do together, through accelerate.

Roles may be views of one shared network that is run several times per step, so nothing is wrapped: gradients are
averaged after the backward passes, which is exact for any number of forwards. Where accelerate's config asks for FSDP2,
networks are sharded in place instead, and their gradients arrive averaged.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.core.errors import TrainingError, UserError, check
from fewstep.core.training.memory import keep_freed_memory
from fewstep.core.training.settings import Precision

BUCKET = 25 * 2**20  # bytes of gradient summed over processes in one message
PARTING = 0.2  # seconds in which a group's threads let go of their last tensors
T = TypeVar("T")


def is_sharded(x: Tensor) -> bool:
    """Return whether ``x`` is one process's part of a larger tensor."""
    return hasattr(x, "full_tensor")


def full(x: Tensor) -> Tensor:
    """Return the whole tensor of a sharded one (all processes must ask together), or ``x``."""
    sharded: Any = x
    whole: Tensor = sharded.full_tensor() if is_sharded(x) else x
    return whole


def local(x: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, or ``x``."""
    sharded: Any = x
    part: Tensor = sharded.to_local() if is_sharded(x) else x
    return part


class World:
    """This process's device and rank, and sums over all processes."""

    def __init__(self) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedType

        # noise schedules are float64, which Apple's devices do not have
        cpu = True if torch.backends.mps.is_available() and not torch.cuda.is_available() else None
        self.accelerator: Any = Accelerator(cpu=cpu) if cpu else Accelerator()
        self.device: torch.device = self.accelerator.device
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.device.type == "cuda":
            # its backward gives NaN in bfloat16 for some short sequences (seen with torch 2.11 on an H200)
            torch.backends.cuda.enable_cudnn_sdp(False)
        joined = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank: int = torch.distributed.get_rank() if joined else 0
        self.size: int = torch.distributed.get_world_size() if joined else 1
        self.main = self.rank == 0
        self.shards = self.accelerator.distributed_type == DistributedType.FSDP
        self.reshard = True
        self._parts: list[Any] = []
        if self.shards:
            plugin = self.accelerator.state.fsdp_plugin
            check(plugin.fsdp_version == 2, "only FSDP2 is supported: set fsdp_version: 2 in accelerate's config")
            self.reshard = bool(plugin.reshard_after_forward)
        self.engines = set[int]()  # parameters some DeepSpeed engine holds
        self.zero_stage = 0
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED and self.size > 1:
            self.zero_stage = int(self.accelerator.state.deepspeed_plugin.zero_stage)
            check(self.zero_stage < 3, "ZeRO stage 3 divides the weights, which FSDP2 does here: use launch/fsdp2.yaml")

    def share(self, batch: int) -> tuple[int, int]:
        """Return the first sample of this process and the number of its samples; UserError when shares are unequal."""
        check(
            batch % self.size == 0,
            f"train.batch={batch} cannot be divided among {self.size} processes: make it a multiple of {self.size}",
        )
        each = batch // self.size
        return self.rank * each, each

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """Return the context forwards run in."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if precision == "bf16" else torch.float16)

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over all processes."""
        if self.size == 1:
            return x
        summed = x.detach().clone()
        torch.distributed.all_reduce(summed)
        return summed

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set on some process."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, x: Tensor) -> Tensor:
        """Return every process's ``x`` joined along the first axis, in order of rank."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        torch.distributed.all_gather(parts, x.detach().contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """Return when every process is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def on_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the main process; all processes return its result, or raise its error, together."""
        if self.size == 1:
            return work()
        outcome: list[Any] = ["", None]
        error: Exception | None = None
        if self.main:
            try:
                outcome[1] = work()
            except Exception as raised:  # carried to the other processes, then raised on all of them
                error = raised
                outcome = ["user" if isinstance(raised, UserError) else "training", str(raised) or repr(raised)]
        torch.distributed.broadcast_object_list(outcome, src=0)
        if error is not None:
            raise error
        if outcome[0]:
            raise (UserError if outcome[0] == "user" else TrainingError)(outcome[1])
        result: T = outcome[1]
        return result

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Replace gradients by their means over the processes, in place; sharded ones are means already."""
        if self.size == 1:
            return
        whole = [g for g in gradients if not is_sharded(g)]
        for bucket in buckets(whole):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            torch.distributed.all_reduce(flat)
            flat /= self.size
            parts = torch.split(flat, [g.numel() for g in bucket])
            torch._foreach_copy_(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the Euclidean norm of all gradients together, shards of other processes included."""
        parts = [g for g in gradients if is_sharded(g)]
        whole = torch.nn.utils.get_total_norm([g for g in gradients if not is_sharded(g)]).to(self.device)
        if not parts:
            return whole
        square = torch.nn.utils.get_total_norm([local(g) for g in parts]).to(self.device) ** 2
        return (whole**2 + self.total(square)).sqrt()

    def shard(self, networks: Mapping[nn.Module, Sequence[str]]) -> None:
        """Shard networks in place over the processes (FSDP2): each of their blocks (paths), then the rest."""
        if not self.shards:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for network, blocks in networks.items():
            for part in (*(network.get_submodule(path) for path in blocks), network):
                self._parts.append(fully_shard(part, mesh=mesh, reshard_after_forward=self.reshard))

    def settle(self) -> None:
        """Let go of the gathered weights a forward without backward leaves behind: they would miss the next update."""
        if not self.reshard:
            for part in self._parts:
                part.reshard()


def part() -> None:
    """Leave the other processes, if there are any; a program calls this where all its processes end together.

    Threads of a group that still hold a tensor abort a process whose interpreter is gone (pytorch/pytorch, pull request
    179291).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(PARTING)  # torch keeps a group over which networks were sharded, and with it the threads


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one dtype in groups that are sent together."""
    for _, same in itertools.groupby(sorted(tensors, key=lambda x: str(x.dtype)), key=lambda x: x.dtype):
        bucket: list[Tensor] = []
        size = 0
        for x in same:
            bucket.append(x)
            size += x.numel() * x.element_size()
            if size >= BUCKET:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket
