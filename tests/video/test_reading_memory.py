"""Memory that is used again is never used while anybody still looks at it."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from fewstep.video.reading.memory import LARGE, Memory


def place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.fixture
def memory():
    return Memory(2**24)


def test_what_was_dropped_is_used_again(memory):
    first = memory.array((4, 8, 8, 3))
    at = place(first)
    del first
    assert memory.waiting == 4 * 8 * 8 * 3
    second = memory.array((3, 8, 8, 3))
    assert place(second) == at
    assert second.shape == (3, 8, 8, 3)
    assert memory.waiting == 0


@pytest.mark.parametrize(
    "kept",
    [
        lambda frames: frames[1:],
        lambda frames: frames.reshape(-1)[5:6],
        lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2)[2],
        lambda frames: torch.from_numpy(frames[:1]).flatten(),
        lambda frames: memoryview(frames),
    ],
)
def test_any_view_keeps_it(memory, kept):
    frames = memory.array((4, 8, 8, 3))
    frames[:] = 7
    view = kept(frames)
    del frames
    other = memory.array((4, 8, 8, 3))
    other[:] = 9
    assert np.asarray(view).max() == 7
    assert memory.waiting == 0
    del view
    assert memory.waiting == 4 * 8 * 8 * 3


def test_much_larger_memory_is_not_spent_on_little_and_makes_room(memory):
    memory.array((1000, 10, 1, 1))
    assert memory.waiting == 10_000
    little = memory.array((1000, 4, 1, 1))
    assert memory.waiting == 0
    assert little.base is not None


def test_no_more_than_is_allowed_waits():
    memory = Memory(1000)
    several = [memory.array((400, 1, 1, 1)) for _ in range(4)]
    several.clear()
    assert memory.waiting == 800
    memory.array((2000, 1, 1, 1))
    assert memory.waiting == 400  # the oldest went when nothing fitted


def test_large_memory_comes_back_too():
    memory = Memory(2 * LARGE)
    frames = memory.array((LARGE, 1, 1, 1))
    frames[::4096] = 3
    at = place(frames)
    del frames
    again = memory.array((LARGE, 1, 1, 1))
    again[:] = 5
    assert place(again) == at
    assert int(again.min()) == 5


def test_a_forked_process_has_its_own(memory):
    frames = memory.array((4096, 1, 1, 1))
    frames[:] = 1
    child = os.fork()
    if child == 0:
        frames[:] = 2
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert int(frames.max()) == 1


def test_no_pixels_is_an_array_too(memory):
    assert memory.array((0, 8, 8, 3)).shape == (0, 8, 8, 3)
