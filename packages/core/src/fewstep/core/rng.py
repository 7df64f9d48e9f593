"""Randomness as a function of (seed, step, sample, stream), never of the global generator.

Every draw is made by a counter-based generator (Philox) keyed by the seed and the stream's name and started at a
counter made of the step and the sample's index in the global batch. The same run therefore sees the same numbers
whatever the number of processes, the micro-batch, or how often it was stopped and resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Rng:
    """Draws for the samples ``ids`` (their indices in the global batch) of one step.

    ``scope`` separates uses of the same stream name, such as phases; see :meth:`fork`. ``batch`` is the size of the
    global batch where one is known (0 otherwise): data that goes through its samples in epochs needs it.
    """

    seed: int
    step: int
    ids: tuple[int, ...]
    scope: str = ""
    device: torch.device | str = "cpu"
    batch: int = 0

    @classmethod
    def for_batch(cls, seed: int, step: int, batch: int, device: torch.device | str = "cpu") -> Rng:
        """Return the generator of samples 0..batch-1."""
        return cls(seed, step, tuple(range(batch)), device=device, batch=batch)

    def fork(self, name: str) -> Rng:
        """Return an independent generator for the same samples."""
        return replace(self, scope=f"{self.scope}/{name}")

    def across_phases(self, name: str) -> Rng:
        """Return a generator for the same samples that every phase of a step gets alike: for draws phases share."""
        return replace(self, scope=f"step:{name}")

    def select(self, start: int, stop: int) -> Rng:
        """Return the generator of a slice of the samples (a micro-batch)."""
        return replace(self, ids=self.ids[start:stop])

    def at_step(self, step: int) -> Rng:
        """Return the generator of another step."""
        return replace(self, step=step)

    def _fill(self, stream: str, shape: tuple[int, ...], ids: tuple[int, ...], normal: bool, double: bool) -> Tensor:
        key = np.array([self.seed % 2**64, _hash(f"{self.scope}:{stream}")], dtype=np.uint64)
        bits = np.random.Philox(key=key)
        generator = np.random.Generator(bits)
        fresh = bits.state
        dtype = np.float64 if double else np.float32
        out = np.empty((len(ids), *shape), dtype=dtype)
        for row, sample in enumerate(ids):
            # words 0-1 count the draws, word 2 is the sample, word 3 the step: streams cannot meet
            fresh["state"]["counter"][:] = (0, 0, sample, self.step)
            bits.state = fresh
            if normal:
                out[row] = generator.standard_normal(shape, dtype=dtype)
            else:
                out[row] = generator.random(shape, dtype=dtype)
        return torch.from_numpy(out).to(self.device)

    def normal(self, stream: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Float[Tensor, "b *d"]:
        """Return unit normal noise, one tensor of ``shape`` per sample."""
        return self._fill(stream, shape, self.ids, True, dtype == torch.float64).to(dtype)

    def normal_like(self, stream: str, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Return unit normal noise shaped like ``x`` (whose batch must be this generator's samples)."""
        return self.normal(stream, tuple(x.shape[1:]), x.dtype).to(x.device)

    def uniform(self, stream: str, shape: tuple[int, ...] = ()) -> Float[Tensor, "b *d"]:
        """Return uniform numbers in [0, 1), float64, one tensor of ``shape`` per sample."""
        return self._fill(stream, shape, self.ids, False, True)

    def integers(self, stream: str, high: int) -> Int[Tensor, " b"]:
        """Return whole numbers in 0..high-1, one per sample."""
        return (self.uniform(stream) * high).long().clamp_max(high - 1)

    def shared_uniform(self, stream: str) -> float:
        """Return one uniform number in [0, 1), the same for every sample and process of the step."""
        return float(self._fill(f"shared:{stream}", (), (0,), False, True)[0])

    def shared_integer(self, stream: str, high: int) -> int:
        """Return one whole number in 0..high-1, the same for every sample and process of the step."""
        return min(int(self.shared_uniform(stream) * high), high - 1)

    @contextmanager
    def network_noise(self, stream: str) -> Iterator[None]:
        """Run what is inside with torch's generators set from this stream (dropout), and put them back afterwards.

        Two forwards under the same stream see the same dropout masks.
        """
        device = torch.device(self.device)
        cuda = [device] if device.type == "cuda" else []
        seed = self.torch_seed(stream)
        with torch.random.fork_rng(devices=cuda):
            torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
            for each in cuda:
                torch.cuda.set_rng_state(torch.Generator(each).manual_seed(seed).get_state(), each)
            yield

    def torch_seed(self, stream: str) -> int:
        """Return a 63-bit seed for torch's own generators (dropout), a function of the same quadruple."""
        first = self.ids[0] if self.ids else 0
        return _hash(f"{self.seed}:{self.step}:{first}:{self.scope}:{stream}") >> 1
