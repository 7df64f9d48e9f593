"""Running means over the global batch: splits do not matter, empty bins stay, checkpoints restore."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.errors import UserError
from fewstep.core.recipes.running import RunningMeans

F64 = torch.float64


def test_the_mean_of_a_step_moves_the_average_of_its_bins():
    means = RunningMeans(torch.ones(3), 0.75)
    index = torch.tensor([0, 0, 2])
    assert means.of(index).tolist() == [1.0, 1.0, 1.0]
    means.add(torch.tensor([3.0, 5.0, 2.0]), index)
    assert means.of(index).tolist() == [1.0, 1.0, 1.0]  # this step's weights come from the steps before
    means.finish(None)
    assert means.value.tolist() == pytest.approx([1 + 0.25 * 3, 1.0, 1 + 0.25 * 1])
    means.finish(None)  # a step without values
    assert means.value.tolist() == pytest.approx([1.75, 1.0, 1.25])


def test_splits_and_processes_do_not_matter():
    values, index = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=F64), torch.arange(8) % 2
    whole, split = RunningMeans(torch.zeros(2), 0.5), RunningMeans(torch.zeros(2), 0.5)
    other = RunningMeans(torch.zeros(2), 0.5)
    whole.add(values, index)
    split.add(values[:2], index[:2])
    split.add(values[2:4], index[2:4])
    other.add(values[4:], index[4:])
    whole.finish(None)
    others = other._sums
    split.finish(lambda x: x + others)
    torch.testing.assert_close(whole.value, split.value, rtol=0, atol=1e-15)


def test_an_average_equal_to_its_values_does_not_move_by_a_bit():
    means = RunningMeans(torch.full((1,), 0.1), 0.9)
    start = means.value.clone()
    for _ in range(5):
        means.add(start, torch.tensor([0]))
        means.finish(None)
    assert torch.equal(means.value, start)


def test_a_checkpoint_restores_and_forgets_what_was_not_finished():
    means = RunningMeans(torch.zeros(2), 0.5)
    means.add(torch.ones(2), torch.tensor([0, 1]))
    means.load("h", {"h": torch.tensor([2.0, 3.0], dtype=F64)})
    means.finish(None)
    assert means.state().tolist() == [2.0, 3.0]
    for state in ({}, {"h": torch.zeros(3)}):
        with pytest.raises(UserError, match="running mean 'h'"):
            means.load("h", state)
    with pytest.raises(UserError, match="decay"):
        RunningMeans(torch.zeros(1), 1.0)


def test_values_are_detached():
    means = RunningMeans(torch.zeros(1), 0.5)
    values = torch.ones(1, requires_grad=True)
    means.add(values, torch.tensor([0]))
    means.finish(None)
    assert not means.value.requires_grad


def test_a_value_that_is_not_finite_moves_nothing():
    means = RunningMeans(torch.ones(2), 0.5)
    means.add(torch.tensor([float("nan"), 3.0]), torch.tensor([0, 1]))
    means.finish(None)
    assert means.value.tolist() == [1.0, 2.0]
