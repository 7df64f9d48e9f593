"""CLIP score and R-precision of views, by vectors that are known, and what an asset costs."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.metrics.cost import measure_cost
from fewstep.threed.metrics.prompts import prompt_scores

PROMPTS = ("red", "green", "blue")


class Channels:
    """A picture is its mean colour, a prompt the colour it names."""

    def __init__(self):
        self.asked = []

    def embed_pictures(self, pixels):
        return torch.nn.functional.normalize((pixels.mean((2, 3)) + 1) / 2, dim=1)

    def embed_prompts(self, prompts):
        self.asked += prompts
        return torch.stack([torch.eye(3)[PROMPTS.index(prompt.split()[-1])] for prompt in prompts])


def plain(*colour):
    return torch.tensor(colour)[:, None, None].expand(3, 4, 4)


def test_scores_are_the_cosines_and_precision_the_share_of_views_that_name_their_prompt():
    pictures = torch.stack([
        torch.stack([plain(1.0, 0.0, 0.0), plain(0.6, 0.8, 0.0)]),
        torch.stack([plain(0.0, 0.0, 0.5), plain(0.0, 0.6, 0.8)]),
    ])  # fmt: skip
    clip = Channels()
    found = prompt_scores(clip, pictures, ["red", "blue"], PROMPTS)
    assert_close(found.clip_score, 2.5 * torch.tensor([0.8, 0.9]))
    assert found.r_precision.tolist() == [0.5, 1.0]
    assert clip.asked == ["a photo of red", "a photo of green", "a photo of blue"]
    assert "'a photo of '" in found.protocol
    assert "2 views" in found.protocol
    turned = prompt_scores(clip, pictures.flip(0), ["blue", "red"], PROMPTS[::-1], prefix="")
    assert_close(turned.clip_score, found.clip_score.flip(0))
    assert turned.r_precision.tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("prompts", "candidates", "words"),
    [
        (["red"], PROMPTS, "2 assets and 1 prompts"),
        (["red", "grey"], PROMPTS, "'grey' is not among"),
        (["red", "red"], ("red", "red"), "two or more"),
    ],
)
def test_mistakes_are_said_in_one_line(prompts, candidates, words):
    with pytest.raises(UserError, match=words):
        prompt_scores(Channels(), torch.ones(2, 1, 3, 4, 4), prompts, candidates)


def test_cost_sees_what_is_held_at_the_peak_and_given_back(monkeypatch):
    held, looks = [1000], []

    def memory_info():  # an operating system's own count of resident pages lags, here and there by more than 64 MiB
        looks.append(held[0])
        return SimpleNamespace(rss=held[0])

    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(memory_info=memory_info))
    with measure_cost() as cost:
        held[0] = 9000
        begun = time.monotonic()
        while 9000 not in looks and time.monotonic() < begun + 30:
            time.sleep(0.01)
        held[0] = 4000
    assert cost.peak_bytes == 8000
    assert cost.seconds > 0
    assert "CPU" in cost.device
    with pytest.raises(ZeroDivisionError), measure_cost() as failed:
        raise ZeroDivisionError
    assert failed.seconds > 0
