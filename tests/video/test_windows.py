"""Long clips from windows: how many, what neighbours share, what is kept bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.testing import assert_close
from video.clip_bed import noise

from fewstep.core.errors import UserError
from fewstep.video.windows import Windows, sample_windows, windows_of


@pytest.mark.parametrize(("length", "overlap"), [(16, 1), (9, 5), (4, 3), (2, 1)])
def test_windows_cover_and_never_by_one_too_many(length, overlap):
    windows = Windows(length, overlap)
    for frames in range(1, 60):
        count = windows.count(frames)
        assert windows.total(count) >= frames
        assert count == 1 or windows.total(count - 1) < frames
        spans = windows.spans(count)
        assert spans[0] == (0, length)
        assert spans[-1][1] == windows.total(count)
        assert all(stop - start == length for start, stop in spans)
        assert all(before[1] - after[0] == overlap for before, after in itertools.pairwise(spans))


@pytest.mark.parametrize(("length", "overlap"), [(4, 4), (4, 0), (1, 1), (4, -1)])
def test_windows_that_do_not_slide_are_refused(length, overlap):
    with pytest.raises(UserError, match=f"overlap of {overlap}"):
        Windows(length, overlap)


def test_given_latent_frames_in_pixel_frames():
    """81 frames are 21 latent ones; one given is 1 frame, two are 5; each 540p window of Magic 1-For-1 adds 80."""
    assert windows_of(81, 1, 4) == Windows(81, 1)
    assert windows_of(81, 2, 4) == Windows(81, 5)
    assert windows_of(16, 3, 1) == Windows(16, 3)
    assert windows_of(81, 1, 4).total(18) == 1441  # a minute at 24 frames per second, and one


@pytest.mark.parametrize("first", [None, 1, 2])
@pytest.mark.parametrize("overlap", [1, 3])
def test_each_window_is_given_the_end_of_the_one_before(first, overlap):
    windows, seen, made = Windows(6, overlap), [], []
    start = None if first is None else noise(2, 3, first, 4, 4, seed=9)

    def sample(index, given):
        seen.append(given)
        made.append(noise(2, 3, 6, 4, 4, seed=index))  # keeps nothing of what it is given
        return made[-1]

    clip = sample_windows(sample, windows, 17, start)
    assert clip.shape == (2, 3, 17, 4, 4)
    assert len(seen) == windows.count(17)
    assert seen[0] is start
    if start is not None:
        assert torch.equal(clip[:, :, :first], start)
    whole = sample_windows(lambda i, given: made[i], windows, windows.total(len(made)), start)
    assert torch.equal(whole[:, :, :17], clip)
    for (begin, stop), given, window in zip(windows.spans(len(made))[1:], seen[1:], made[1:], strict=True):
        assert torch.equal(given, whole[:, :, begin : begin + overlap])
        assert torch.equal(whole[:, :, begin + overlap : stop], window[:, :, overlap:])


def test_a_sampler_that_carries_on_exactly_leaves_no_seam():
    def straight(index, given):
        start = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64) if given is None else given[:, :, :1]
        return start + torch.arange(5.0).double()[None, None, :, None, None]

    clip = sample_windows(straight, Windows(5, 2), 23)
    assert_close(clip.flatten(), torch.arange(23.0).double(), rtol=0, atol=0)


def test_what_does_not_fit_windows_is_refused():
    with pytest.raises(UserError, match="7 frames to start from"):
        sample_windows(lambda i, given: given, Windows(6, 1), 9, torch.zeros(1, 1, 7, 2, 2))
    with pytest.raises(UserError, match="window 0 has 5 frames and not 6"):
        sample_windows(lambda i, given: torch.zeros(1, 1, 5, 2, 2), Windows(6, 1), 9)
    with pytest.raises(UserError, match="0 frames: ask"):
        Windows(6, 1).count(0)
