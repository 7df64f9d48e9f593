"""Learned measures through a stand-in for pyiqa, which is not installed where the tests run."""

from __future__ import annotations

import socket
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.restoration.iqa import LEARNED, LearnedMeasure

HIGHER = ("musiq", "clipiqa", "maniqa", "maniqa-pipal")


class Metric:
    """Mean absolute difference, or the mean of random crops of one picture."""

    def __init__(self, name: str, lower_better: bool) -> None:
        self.name, self.lower_better = name, lower_better
        self.seen: list[tuple[Tensor, ...]] = []

    def __call__(self, *pictures: Tensor) -> Tensor:
        self.seen.append(pictures)
        if len(pictures) == 2:
            return (pictures[0] - pictures[1]).abs().mean().reshape(1, 1)
        at = int(torch.randint(0, pictures[0].shape[-1], ()))
        return pictures[0][..., at].mean().reshape(1)


@pytest.fixture
def pyiqa(monkeypatch):
    module = ModuleType("pyiqa")
    module.__version__ = "0.1.99"
    module.create_metric = lambda name, as_loss, device: Metric(name, name not in HIGHER)
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return module


def picture(seed: int, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, 20, 30, generator=torch.Generator().manual_seed(seed))


def test_without_pyiqa_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(UserError, match=r"measure 'lpips' needs pyiqa .*pip install pyiqa") as caught:
        LearnedMeasure("lpips")
    assert "\n" not in str(caught.value)


def test_names_are_those_of_pyiqa_and_no_two_networks_share_one(pyiqa):
    for name, entry in LEARNED.items():
        measure = LearnedMeasure(name)
        assert measure.metric.name == entry.pyiqa == name
        assert f"pyiqa 0.1.99 '{name}'" in measure.protocol(0)
        assert ("lower" if entry.lower_is_better else "higher") in measure.protocol(4)
    assert len({entry.about for entry in LEARNED.values()}) == len(LEARNED)
    with pytest.raises(UserError, match="did you mean 'maniqa'"):
        LearnedMeasure("manika")


def test_a_reference_is_given_only_where_it_counts(pyiqa):
    x, y = picture(0), picture(1)
    for name, entry in LEARNED.items():
        measure = LearnedMeasure(name)
        values = measure(x, y)
        assert values.shape == (2,)
        assert values.dtype == torch.float64
        assert {len(pictures) for pictures in measure.metric.seen} == {1 + entry.reference}


def test_pictures_arrive_as_rgb_of_8_bits_without_their_border(pyiqa):
    measure = LearnedMeasure("lpips")
    gray = picture(0, 1).double() * 1.2
    measure(gray, gray, crop=4)
    seen = measure.metric.seen[0][0]
    assert seen.shape == (1, 3, 12, 22)
    assert seen.dtype == torch.float32
    assert torch.equal((seen * 255).round() / 255, seen)
    assert seen.max() == 1


def test_random_crops_are_the_same_every_time_and_the_global_generator_stays(pyiqa):
    x = picture(0)
    before = torch.random.get_rng_state()
    first = LearnedMeasure("maniqa")(x, x)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, LearnedMeasure("maniqa")(x, x))
    assert torch.equal(first[1:], LearnedMeasure("maniqa")(x[1:], x[1:]))


def test_weights_that_are_not_here_are_not_downloaded(pyiqa):
    def create(name: str, as_loss: bool, device: torch.device) -> Metric:
        socket.create_connection(("weights.example", 443), timeout=1)
        return Metric(name, True)

    pyiqa.create_metric = create
    kept = socket.getaddrinfo
    with pytest.raises(UserError, match="its weights are not on this machine"):
        LearnedMeasure("lpips")
    assert socket.getaddrinfo is kept


def test_a_version_that_turns_a_measure_around_is_refused(pyiqa):
    pyiqa.create_metric = lambda name, as_loss, device: Metric(name, False)
    with pytest.raises(UserError, match="calls higher better"):
        LearnedMeasure("niqe")


def test_what_a_measure_cannot_take_is_one_line(pyiqa):
    measure = LearnedMeasure("niqe")
    measure.metric.__class__ = type("Small", (Metric,), {"__call__": _too_small})
    with pytest.raises(UserError, match=r"niqe cannot measure 30x20 pixels \(the picture must be larger\)"):
        measure(picture(0), picture(0))
    with pytest.raises(UserError, match="nothing is left"):
        measure(picture(0), picture(0), crop=10)


def _too_small(self: Metric, *pictures: Tensor) -> Tensor:
    raise AssertionError("the picture\nmust be larger")
