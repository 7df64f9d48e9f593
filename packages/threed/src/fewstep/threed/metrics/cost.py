"""What an asset costs: seconds, and the memory that making it takes at its peak."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import psutil
import torch

INTERVAL = 0.005  # seconds between looks at a process's memory


@dataclass
class Cost:
    """Filled when its block ends: ``seconds``, ``peak_bytes`` over those at its start, and the ``device`` in words.

    On CUDA they are the tensors' of this process; on a CPU its resident memory, looked at every 5 ms, so that less
    than the truth may be seen of a short block, and of a small one: systems count pages with a lag.
    """

    device: str
    seconds: float = 0.0
    peak_bytes: int = 0

    def words(self) -> str:
        """Return seconds and memory for people."""
        return f"{self.seconds:.1f} s, {self.peak_bytes / 2**20:.0f} MiB more at the peak"


@contextmanager
def measure_cost(device: torch.device | str = "cpu") -> Iterator[Cost]:
    """Measure what the block takes on ``device``; work queued there is waited for."""
    place = torch.device(device)
    if place.type == "cuda":
        yield from _on_cuda(place)
        return
    cost = Cost(f"CPU, {torch.get_num_threads()} threads")
    process, done = psutil.Process(), Event()
    start = peak = process.memory_info().rss

    def look() -> None:
        nonlocal peak
        while not done.wait(INTERVAL):
            peak = max(peak, process.memory_info().rss)

    watcher = Thread(target=look, daemon=True)
    watcher.start()
    begun = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - begun
        done.set()
        watcher.join()
        cost.peak_bytes = max(peak, process.memory_info().rss) - start


def _on_cuda(place: torch.device) -> Iterator[Cost]:
    cost = Cost(torch.cuda.get_device_name(place))
    torch.cuda.synchronize(place)
    torch.cuda.reset_peak_memory_stats(place)
    start, begun = torch.cuda.memory_allocated(place), time.perf_counter()
    try:
        yield cost
    finally:
        torch.cuda.synchronize(place)
        cost.seconds = time.perf_counter() - begun
        cost.peak_bytes = torch.cuda.max_memory_allocated(place) - start
