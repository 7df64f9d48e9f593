"""Clips lie where their draw says: in range, equally spaced, each start equally likely, the same on every run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core.errors import UserError
from fewstep.video.reading.info import ClipInfo
from fewstep.video.reading.sampling import (
    ClipConfig,
    Draw,
    TooShort,
    clip_indices,
    covering,
    draw,
    interval_of,
    place,
    span,
    window,
)

INFO = ClipInfo(64, 48, 100, 30.0, 100 / 30, 0, True, "h264")
counts, intervals = st.integers(1, 40), st.integers(1, 12)
fractions = st.floats(0, 1, exclude_max=True)


@given(total=st.integers(1, 300), frames=counts, interval=intervals, start=fractions)
def test_indices_are_equally_spaced_and_in_range(total, frames, interval, start):
    if total < span(frames, interval):
        with pytest.raises(TooShort):
            clip_indices(total, frames, interval, start)
        return
    indices = clip_indices(total, frames, interval, start)
    assert len(indices) == frames
    assert indices[0] >= 0
    assert indices[-1] < total
    assert {b - a for a, b in pairwise(indices)} <= {interval}


@given(frames=counts, interval=intervals, room=st.integers(0, 20))
def test_every_start_is_equally_likely(frames, interval, room):
    total, cells = span(frames, interval) + room, 7
    starts = Counter(
        clip_indices(total, frames, interval, (k + 0.5) / (cells * (room + 1)))[0] for k in range(cells * (room + 1))
    )
    assert starts == dict.fromkeys(range(room + 1), cells)


@given(total=st.integers(1, 60), frames=counts, interval=intervals, start=fractions)
def test_short_videos_follow_their_policy(total, frames, interval, start):
    if total >= span(frames, interval):
        return
    loop = clip_indices(total, frames, interval, start, "loop")
    assert loop == [k * interval % total for k in range(frames)]
    last = clip_indices(total, frames, interval, start, "repeat_last")
    assert last == [min(k * interval, total - 1) for k in range(frames)]
    if total < frames:
        with pytest.raises(TooShort, match="loop or repeat_last"):
            clip_indices(total, frames, interval, start, "shorten")
        return
    shortened = clip_indices(total, frames, interval, start, "shorten")
    step = shortened[1] - shortened[0]
    assert shortened == list(range(shortened[0], shortened[0] + frames * step, step))
    assert shortened[-1] < total
    assert step < interval
    assert total < span(frames, step + 1)  # the largest that fits


def test_the_interval_comes_nearest_to_the_rate():
    assert [interval_of(ClipConfig(fps=8), fps) for fps in (8, 24, 30, 29.97, 5)] == [1, 3, 4, 4, 1]
    assert interval_of(ClipConfig(interval=5), 0) == 5
    with pytest.raises(UserError, match="interval"):
        interval_of(ClipConfig(fps=8), 0)


def test_a_draw_is_a_function_of_seed_epoch_and_index():
    config = ClipConfig(crop="random", flip=True)
    drawn = {(s, e, i): draw(config, s, e, i) for s in range(4) for e in range(4) for i in range(40)}
    assert len(set(drawn.values())) == len(drawn)
    assert all(draw(config, *key) == value for key, value in reversed(drawn.items()))
    mean = sum(value.start for value in drawn.values()) / len(drawn)
    assert abs(mean - 0.5) < 0.05
    assert 0.4 < sum(value.flip for value in drawn.values()) / len(drawn) < 0.6


def test_fixed_places_stay_fixed():
    for start, fraction in (("first", 0.0), ("centre", 0.5)):
        assert draw(ClipConfig(start=start), 1, 2, 3) == Draw(fraction, 0.5, 0.5, False)


@given(height=st.integers(1, 500), width=st.integers(1, 500), size=st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_the_resized_video_covers_the_crop_and_keeps_its_shape(height, width, size):
    resized = covering((height, width), size)
    assert resized[0] >= size[0]
    assert resized[1] >= size[1]
    assert resized[0] == size[0] or resized[1] == size[1]
    scale = max(size[0] / height, size[1] / width)
    assert abs(resized[0] - scale * height) <= 1
    assert abs(resized[1] - scale * width) <= 1


@given(drawn=st.builds(Draw, fractions, fractions, fractions, st.booleans()))
def test_a_window_lies_inside(drawn):
    cut = window(ClipConfig(frames=8, size=(32, 32), fps=10), INFO, drawn)
    assert cut.resized == (32, 43)
    assert cut.top == 0
    assert 0 <= cut.left <= 11
    assert cut.indices == tuple(clip_indices(100, 8, 3, drawn.start))


@given(fraction=fractions, room=st.integers(0, 50))
def test_a_place_is_in_the_room(fraction, room):
    assert 0 <= place(fraction, room) <= room


@pytest.mark.parametrize(
    "wrong", [{"frames": 0}, {"interval": 0}, {"fps": -1}, {"fps": 8, "interval": 2}, {"size": (0, 3)}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError):
        replace(ClipConfig(), **wrong)
