"""Every layout people have gives the same list; what does not fit is refused in one line; and a data set of it all."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
import torch
from video.reading_bed import copy, numbered, sequential, truncated, write

from fewstep.core.data.damage import Damaged
from fewstep.core.errors import TrainingError, UserError
from fewstep.video.reading import read_clip
from fewstep.video.reading.dataset import Clips
from fewstep.video.reading.layouts import list_clips
from fewstep.video.reading.sampling import ClipConfig, draw, window

CAPTIONS = {"a": "a red bar", "b": 'a "green", blue bar'}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / "whole.mp4", numbered(20), "libx264", g="5")


def listed(path, **given):
    return {(each.source.name, each.caption) for each in list_clips(path, **given)}


def folder(root, clip, suffix=".mp4"):
    root.mkdir(parents=True, exist_ok=True)
    return {name: copy(root / f"{name}{suffix}", clip) for name in CAPTIONS}


def expected(files):
    return {(str(file), CAPTIONS[name]) for name, file in files.items()}


@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_captions_beside_the_videos(suffix, clip, tmp_path):
    files = folder(tmp_path / "videos" / "deep", clip)
    for name, file in files.items():
        text = CAPTIONS[name] + "\n"
        file.with_suffix(suffix).write_text(text if suffix == ".txt" else json.dumps({"caption": text, "fps": 24}))
    assert listed(tmp_path / "videos") == expected(files)


def test_a_folder_of_images_counts_as_a_video(tmp_path, clip):
    from PIL import Image

    files = folder(tmp_path, clip)
    for name, file in files.items():
        file.with_suffix(".txt").write_text(CAPTIONS[name])
    (tmp_path / "c.d").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "c.d" / "0.png")
    (tmp_path / "c.d.txt").write_text("a still")
    assert listed(tmp_path) == expected(files) | {(str(tmp_path / "c.d"), "a still")}


def test_webvid_tables(clip, tmp_path):
    files = folder(tmp_path / "videos" / "000001_000050", clip)
    table = tmp_path / "results.csv"
    quoted = {name: text.replace('"', '""') for name, text in CAPTIONS.items()}
    table.write_text(
        "videoid,contentUrl,duration,page_dir,name\n"
        + "".join(f'{name},https://host/{name}.mp4,PT00H00M01S,000001_000050,"{quoted[name]}"\n' for name in CAPTIONS)
    )
    assert listed(table) == expected(files)


@pytest.mark.parametrize(
    ("name", "path", "caption"),
    [
        ("metadata.jsonl", "file_name", "text"),
        ("clips.jsonl", "path", "prompt"),
        ("metadata.csv", "video", "prompt"),
        ("clips.tsv", "video_path", "caption"),
        ("videos2caption.json", "path", "cap"),
    ],
)
def test_plain_tables(name, path, caption, clip, tmp_path):
    files = folder(tmp_path, clip)
    rows = [{path: f"{key}.mp4", caption: text} for key, text in CAPTIONS.items()]
    if name.endswith("l"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif name.endswith("json"):
        text = json.dumps([{**row, caption: [row[caption]]} for row in rows])
    else:
        comma = "," if name.endswith("csv") else "\t"
        lines = [comma.join(f'"{value}"' for value in (row[path], row[caption].replace('"', '""'))) for row in rows]
        text = "\n".join([comma.join((path, caption)), *lines])
    (tmp_path / name).write_text(text)
    found_by_itself = name in ("metadata.jsonl", "metadata.csv", "videos2caption.json")
    assert listed(tmp_path if found_by_itself else tmp_path / name) == expected(files)


@pytest.mark.parametrize("name", ["prompt.txt", "prompts.txt"])
def test_two_lists_belong_together_line_by_line(name, clip, tmp_path):
    files = folder(tmp_path, clip)
    lists = tmp_path / "videos.txt"
    lists.write_text("".join(f"{file.name}\r\n" for file in files.values()))
    assert len(list_clips(write_captions(tmp_path, files), max_bad_share=1)) == 2  # beside the videos
    (tmp_path / name).write_text("\n".join(CAPTIONS.values()))
    assert listed(tmp_path) == listed(lists) == expected(files)
    assert "no column 'text'" in refused(lists, column="text")
    (tmp_path / name).write_text("one\n")
    assert f"2 lines, and {name} has 1" in refused(tmp_path)
    (tmp_path / name).unlink()
    assert "no prompt.txt or prompts.txt beside it" in refused(lists)
    (tmp_path / name).write_text("one\n")
    lists.write_text("../a.mp4")
    assert "line 1: '../a.mp4' leads out of" in refused(lists)


def write_captions(root, files):
    for name, file in files.items():
        file.with_suffix(".txt").write_text(CAPTIONS[name])
    return root


def archive(path, clip, members=None):
    with tarfile.open(path, "w") as made:
        for name, text in CAPTIONS.items():
            parts = {f"x/{name}.mp4": clip.read_bytes(), f"x/{name}.json": json.dumps({"caption": text}).encode()}
            for member, data in (members or parts).items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
    return path


def test_archives_are_read_from_their_place(clip, tmp_path):
    path = archive(tmp_path / "00000.tar", clip)
    clips = list_clips(tmp_path)
    assert {(each.source.name, each.caption) for each in clips} == {
        (f"{path}:x/{name}.mp4", text) for name, text in CAPTIONS.items()
    }
    whole = torch.from_numpy(sequential(clip)).permute(0, 3, 1, 2)
    for each in clips:
        assert torch.equal(read_clip(each.source, [19, 0]), whole[[19, 0]])
    assert list_clips(path) == list_clips(tmp_path / "{00000..00000}.tar") == clips


def refused(path, **given):
    with pytest.raises(UserError) as caught:
        list_clips(path, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_refused(clip, tmp_path):
    assert "not there" in refused(tmp_path / "missing")
    assert "no video" in refused(tmp_path)
    files = folder(tmp_path / "bare", clip)
    assert "caption" in refused(tmp_path / "bare")
    files["a"].with_suffix(".txt").write_text("one of two")
    assert "max_bad_share" in refused(tmp_path / "bare")
    assert len(list_clips(tmp_path / "bare", max_bad_share=0.5)) == 1
    assert "videos are listed in" in refused(clip)
    table = tmp_path / "bare" / "t.csv"
    for text, said in {
        "id,words\n1,hello\n": "videoid",
        "path,words\na.mp4,hello\n": "text, caption or prompt",
        "path,text\n../a.mp4,hello\n": "leads out",
        "path,text\n/etc/passwd,hello\n": "leads out",
        "path,text\nc.mp4,hello\n": "is not there",
        "path,text\na.mp4,hello,more\n": "fields",
        "path,text\n": "no row",
    }.items():
        table.write_text(text)
        assert said in refused(table)
    lines = tmp_path / "bare" / "t.jsonl"
    for text, said in {"[]": "object", "{": "JSON", '{"path": 3, "text": "x"}': "must be text"}.items():
        lines.write_text(text)
        assert said in refused(lines)
    whole = archive(tmp_path / "a.tar", clip)
    assert "damaged" in refused(truncated(tmp_path / "cut.tar", whole, 0.5))


def test_a_data_set_cuts_what_its_draw_says(clip, tmp_path):
    files = folder(tmp_path, clip)
    for name, file in files.items():
        file.with_suffix(".txt").write_text(CAPTIONS[name])
    config = ClipConfig(frames=4, interval=3, size=(16, 16), crop="random", flip=True)
    clips = Clips(str(tmp_path), list_clips(tmp_path), config)
    info = clips_info(files["a"])
    for seed, epoch, index in [(0, 0, 0), (0, 1, 0), (1, 0, 1)]:
        cut = window(config, info, draw(config, seed, epoch, index))
        whole = read_clip(clip, list(cut.indices), size=cut.resized)[:, :, cut.top : cut.top + 16]
        whole = whole[..., cut.left : cut.left + 16]
        frames = clips.clip(index, seed, epoch)
        assert torch.equal(frames, whole.flip(3) if cut.flip else whole)
        assert torch.equal(frames, clips.clip(index, seed, epoch))
    assert [clips.caption(index) for index in range(len(clips))] == list(CAPTIONS.values())


def clips_info(path):
    from fewstep.video.reading import probe

    return probe(path)


def test_a_data_set_counts_what_cannot_be_read(clip, tmp_path, caplog):
    files = folder(tmp_path, clip)
    files["c"] = truncated(tmp_path / "c.mp4", clip, 0.4)
    files["d"] = write(tmp_path / "d.mp4", numbered(3))
    for name, file in files.items():
        file.with_suffix(".txt").write_text(CAPTIONS.get(name, "x"))
    clips = Clips(str(tmp_path), list_clips(tmp_path), ClipConfig(frames=4, size=(16, 16)), max_bad_share=0.5)
    for _ in range(2):
        for index in (2, 3):
            with pytest.raises(Damaged):
                clips.clip(index, 0, 0)
    assert clips.bad.indices == {2, 3}
    assert [sum(f"{name}.mp4" in record.message for record in caplog.records) for name in "abcd"] == [0, 0, 1, 1]
    clips = Clips(str(tmp_path), list_clips(tmp_path), ClipConfig(frames=4, size=(16, 16)), max_bad_share=0.1)
    with pytest.raises(TrainingError, match=r"c\.mp4"):
        clips.clip(2, 0, 0)
