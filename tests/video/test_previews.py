"""Previews: what is written is what was shown, row by row and frame by frame."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from video.clip_bed import discs

from fewstep.core.errors import UserError
from fewstep.video.previews import Remembered, strips, to_bytes, write_previews
from fewstep.video.reading import probe, read_clip
from fewstep.video.writing.sheets import Sheet


def flat(*levels: int, side: int = 8, frames: int = 3) -> torch.Tensor:
    """Clips of one level each, a little brighter every frame, "n f 3 h w"."""
    start = torch.tensor(levels).reshape(-1, 1, 1, 1, 1)
    return (start + torch.arange(frames).reshape(1, -1, 1, 1, 1)).expand(-1, -1, 3, side, side).byte()


def test_a_sheet_holds_every_pixel_of_every_clip():
    clips = torch.randint(0, 256, (2, 3, 3, 8, 6), generator=torch.Generator().manual_seed(0)).byte()
    sheet = Sheet([("a", clips), ("b", clips[:1] // 2)])
    frames = torch.cat(list(sheet.draw()))
    assert frames.shape == (3, 3, *sheet.size)
    height, width = sheet.tile
    assert (height, width) == (8 * 11, 6 * 11)  # enlarged by a whole factor until the shorter side is 64
    top = 12
    for column in range(2):
        left = sheet.left + column * (width + 4)
        seen = frames[:, :, top : top + height, left : left + width]
        assert torch.equal(seen[:, :, ::11, ::11], clips[column])
        assert torch.equal(seen[:, :, 10::11, 10::11], clips[column])
    below = frames[:, :, top + height + 4 :, sheet.left : sheet.left + width][:, :, :height:11, ::11]
    assert torch.equal(below, clips[0] // 2)


def test_large_clips_are_shrunk_and_short_ones_wait():
    sheet = Sheet([("long", flat(10, 20, side=400)), ("short", flat(200, side=400, frames=1))], side=200)
    frames = torch.cat(list(sheet.draw()))
    assert sheet.tile == (100, 100)
    row = sheet.size[0] - 12 - 50
    assert frames[:, 0, 62, sheet.left + 50].tolist() == [10, 11, 12]
    assert frames[:, 0, row, sheet.left + 50].tolist() == [200, 200, 200]


@pytest.mark.parametrize("rows", [[], [("a", flat())], [("a", flat(1)), ("b", flat(1, side=9))]])
def test_what_cannot_be_shown_is_refused(rows):
    with pytest.raises(UserError):
        Sheet(rows)


def test_previews_are_a_picture_a_video_and_an_animation(tmp_path):
    rows = [("teacher, 2 steps", discs(2)), ("student, 1 step", discs(2, 1))]
    path = write_previews(rows, tmp_path / "step-0000005", 8.0)
    assert path == tmp_path / "step-0000005.png"
    info = probe(tmp_path / "step-0000005.mp4")
    assert (info.frames, info.fps) == (16, 8.0)
    with Image.open(tmp_path / "step-0000005.gif") as opened:
        assert opened.n_frames == 16
    sheet = Sheet([(label, to_bytes(x)) for label, x in rows])
    written = read_clip(tmp_path / "step-0000005.mp4", (0, 16, 1))[:, :, : sheet.size[0], : sheet.size[1]].float()
    assert float((written - torch.cat(list(sheet.draw())).float()).abs().mean()) < 4


def test_stills_have_the_picture_only(tmp_path):
    write_previews([("student, 1 step", discs(1)[:, :, :1])], tmp_path / "samples", 8.0)
    assert [file.name for file in tmp_path.iterdir()] == ["samples.png"]


def test_values_out_of_range_and_none_at_all_can_be_seen():
    x = torch.tensor([float("nan"), -float("inf"), -1.0, 1.0, 9.0]).reshape(1, 1, 1, 1, 5)
    assert to_bytes(x)[0, 0, 0, 0].tolist() == [0, 0, 0, 255, 255]
    assert to_bytes(x).shape == (1, 1, 3, 1, 5)


def test_a_strip_starts_with_the_first_frame_and_ends_with_the_last():
    video = torch.arange(9.0).reshape(1, 1, 9, 1, 1).expand(1, 3, 9, 2, 2)
    assert strips(video)[0, 0, 0].tolist() == [0.0, 0.0, 3.0, 3.0, 5.0, 5.0, 8.0, 8.0]


def test_rows_are_decoded_once():
    calls: list[torch.Tensor] = []

    def decode(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return 2 * x

    remembered, first = Remembered(decode), torch.ones(2)
    assert remembered(first) is remembered(first)
    assert torch.equal(remembered(torch.ones(2)), torch.full((2,), 2.0))
    assert len(calls) == 2  # equal values in another tensor may have changed meaning
    for _ in range(6):
        remembered(torch.ones(1))
    remembered(first)
    assert len(calls) == 9
