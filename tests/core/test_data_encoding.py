"""Reading ahead keeps order, makes no more than it should, and lets faults through."""

from __future__ import annotations

import threading

import pytest

from fewstep.core.data.cost import Cost, in_time, in_units
from fewstep.core.data.encoding import AHEAD, ahead
from fewstep.core.data.epochs import epoch_indices, epochs_of
from fewstep.core.errors import TrainingError
from fewstep.core.rng import Rng


def test_one_item_is_made_while_another_is_in_use():
    made, started = [], {number: threading.Event() for number in range(6)}

    def work(number):
        started[number].set()
        made.append((number, threading.current_thread() is threading.main_thread()))
        return number * number

    for number, found in enumerate(ahead(work, range(6))):
        assert found == number * number
        if number < 5:
            assert started[number + 1].wait(10)  # without being asked for
        assert len(made) <= number + 1 + AHEAD
    assert made == [(number, False) for number in range(6)]
    assert list(ahead(work, [])) == []


def test_a_fault_comes_where_its_item_would_have():
    def work(number):
        if number == 2:
            raise TrainingError("too many")
        return number

    found = ahead(work, range(5))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(TrainingError, match="too many"):
        next(found)


@pytest.mark.parametrize(("batch", "count"), [(4, 10), (10, 4), (3, 3), (7, 1)])
def test_epochs_count_on_across_steps(batch, count):
    seen = []
    for step in range(6):
        rng = Rng.for_batch(1, step, batch)
        seen += zip(epochs_of(rng, count), epoch_indices(rng, count), strict=True)
    whole = len(seen) // count * count
    assert len(set(seen)) == len(seen)
    assert [epoch for epoch, _ in seen[:whole]] == [number // count for number in range(whole)]


def test_costs_are_said_as_people_say_them():
    assert [in_units(size) for size in (5, 2048, 3 * 2**20)] == ["5 bytes", "2.0 KiB", "3.0 MiB"]
    assert [in_time(seconds) for seconds in (0.2, 5.0, 150.0, 7200.0, 4e5)] == [
        "1 s",
        "5 s",
        "2.5 min",
        "2 h",
        "4.63 days",
    ]
    assert (
        str(Cost(2, 1, "clips", 1024, 60.0)) == "2 clips, 1 different captions: 1.0 KiB on the disk, about 1 min here"
    )
    assert str(Cost(2, 1, "clips", 1024)).endswith("on the disk")
