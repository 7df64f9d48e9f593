"""Folders, lists and paired folders: what is found, what a file's pixels become, what is refused and in which words."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from restoration.data_bed import REAL, config, make_folder, make_pairs, noise, photos, shrunk, write
from torch.testing import assert_close

from fewstep.core.data.damage import Damaged
from fewstep.core.errors import TrainingError, UserError
from fewstep.restoration.data.examples import Entry, Files, Photos, to_float, to_pixels
from fewstep.restoration.data.folder import folder_entries
from fewstep.restoration.data.lists import list_entries
from fewstep.restoration.data.opening import open_examples, split
from fewstep.restoration.data.pairs import pair_entries
from fewstep.restoration.data.source import readable
from fewstep.restoration.pictures.picture import Picture
from fewstep.restoration.pictures.writing import write_picture


class Shipped:
    """Photos of a package."""

    def training(self):
        return [("a", torch.zeros(3, 8, 8)), ("b", torch.ones(3, 8, 8))]

    def held_out(self):
        return [("c", torch.ones(3, 8, 8) / 2)]


def names(entries):
    return [entry.name for entry in entries]


# pixels


def test_pixels_are_those_of_the_file(tmp_path):
    pixels = noise(7, 5)
    files = Files(folder_entries(write(tmp_path / "x" / "a.png", pixels).parent), "x")
    found = files.example(0)
    assert found.lq is None
    assert torch.equal(found.hr, torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(to_float(found.hr), found.hr.float() / 255)
    assert isinstance(files.identity, str)


def test_gray_is_repeated_and_transparency_is_white():
    gray = Picture(colours=torch.rand(1, 4, 6), mode="L", bits=16)
    assert torch.equal(to_pixels(gray), gray.colours.expand(3, -1, -1))
    colours, alpha = torch.rand(3, 4, 6), torch.rand(1, 4, 6)
    alpha[0, 0, 0], alpha[0, 0, 1] = 0, 1
    found = to_pixels(Picture(colours=colours, mode="RGBA", bits=16, alpha=alpha))
    assert_close(found, colours * alpha + 1 - alpha)
    assert found[:, 0, 0].tolist() == [1, 1, 1]
    eight = to_pixels(Picture(colours=colours, mode="RGBA", alpha=alpha))
    assert eight.dtype == torch.uint8
    assert_close(eight.float() / 255, found, atol=0.5001 / 255, rtol=0)


def test_any_mode_gives_three_channels_and_16_bits_keep_theirs(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        suffix = "tif" if mode == "CMYK" else "png"
        Image.fromarray(noise(6, 9)).convert("L" if mode == "LA" else "RGB").convert(mode).save(
            tmp_path / f"{mode}.{suffix}"
        )
    deep = Picture(colours=torch.arange(3 * 6 * 9).reshape(3, 6, 9) / 65535, mode="RGB", bits=16)
    write_picture(tmp_path / "deep.png", deep)
    files = Files(folder_entries(tmp_path), "x")
    assert len(files) == 8
    for index in range(8):
        hr = to_float(files.example(index).hr)
        assert hr.shape == (3, 6, 9)
        assert hr.dtype == torch.float32
        if files.name(index) == "deep.png":
            assert_close(hr, deep.colours)


@pytest.mark.skipif(not REAL.is_dir(), reason="no photos here")
def test_real_photos_are_read():
    files = Files(folder_entries(REAL), "photos")
    assert len(files) >= 5
    for index in range(len(files)):
        hr = to_float(files.example(index).hr)
        assert hr.min() >= 0
        assert hr.max() <= 1
        assert hr.std() > 0.05


def test_what_is_cached_changes_nothing_and_stays_bounded(tmp_path):
    entries = folder_entries(make_folder(tmp_path, 6))
    without, few = Files(entries, "x", cache=0), Files(entries, "x", cache=2)
    for index in (0, 1, 2, 0, 0, 5, 4, 1):
        assert torch.equal(without.example(index).hr, few.example(index).hr)
        assert len(few._kept) <= 2
    assert few._bytes == 2 * 3 * 40 * 48
    assert len(without._kept) == 0


# folders


def test_folders_are_searched_to_their_bottom(tmp_path):
    make_folder(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("no picture")
    assert names(folder_entries(tmp_path)) == ["0/00.png", "0/02.png", "1/01.png", "1/03.png"]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        folder_entries(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        folder_entries(tmp_path / "none")
    with pytest.raises(UserError, match="no pictures there"):
        Files([], "x")


def test_damaged_files_are_replaced_and_too_many_stop(tmp_path):
    entries = folder_entries(make_folder(tmp_path, 4))
    whole = entries[1].hr.read_bytes()
    entries[1].hr.write_bytes(whole[: len(whole) // 2])
    files = Files(entries, "x", max_bad_share=0.25)
    for _ in range(2):
        with pytest.raises(Damaged):
            files.example(1)
    assert torch.equal(readable(files, 1).hr, files.example(2).hr)
    entries[3].hr.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"2 of 4 images .*domain.data.max_bad_share=0.25"):
        files.example(3)


def test_where_nothing_can_be_read_training_stops(tmp_path):
    entries = folder_entries(make_folder(tmp_path, 2))
    for entry in entries:
        entry.hr.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(TrainingError, match="none of the 2 pictures"):
        readable(Files(entries, "x", max_bad_share=1.0), 0)


# lists


def test_a_list_means_what_people_write(tmp_path):
    for name in ("a.png", "b c.png", "d, e.png", "sub/f.png", "g (1,2,3) 1.png"):
        write(tmp_path / "data" / name, noise(4, 4))
    lines = [
        "\ufeff# a comment", "", "a.png", "  b c.png  ", "b c.png (480,480,3) 1", "d, e.png", '"d, e.png" (4,4,3)',
        "sub/f.png 7", "g (1,2,3) 1.png", str(tmp_path / "data" / "a.png"),
    ]  # fmt: skip
    (tmp_path / "list.txt").write_text("\r\n".join(lines), encoding="utf-8")
    found = list_entries(tmp_path / "list.txt", tmp_path / "data")
    wanted = ["a.png", "b c.png", "b c.png", "d, e.png", "d, e.png", "sub/f.png", "g (1,2,3) 1.png", "a.png"]
    assert names(found) == wanted
    assert all(entry.lq is None and entry.hr.is_file() for entry in found)


def test_a_lists_paths_start_at_its_folder_or_at_the_root(tmp_path):
    write(tmp_path / "here" / "a.png", noise(4, 4))
    (tmp_path / "here" / "list.txt").write_text("a.png\n")
    assert list_entries(tmp_path / "here" / "list.txt")[0].hr == tmp_path / "here" / "a.png"
    with pytest.raises(UserError, match=r"1 of 1 pictures are missing, the first: line 1: no file 'a.png'"):
        list_entries(tmp_path / "here" / "list.txt", tmp_path)
    with pytest.raises(UserError, match="no folder"):
        list_entries(tmp_path / "here" / "list.txt", tmp_path / "none")


@pytest.mark.parametrize("between", [", ", ",", " ", "\t"])
def test_pairs_in_one_list(tmp_path, between):
    make_pairs(tmp_path, hr="good ones", lr="lr")
    lines = [between.join((f"good ones/0{i}.png", f"lr/0{i}.png")) for i in range(4)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    found = list_entries(tmp_path / "list.txt")
    assert [entry.lq for entry in found] == [tmp_path / f"lr/0{i}.png" for i in range(4)]
    assert Files(found, "list", scale=4).example(3).lq.shape == (3, 10, 12)
    (tmp_path / "list.txt").write_text("\n".join([*lines, "good ones/00.png"]))
    with pytest.raises(UserError, match=r"4 lines are pairs, but good ones/00\.png is alone"):
        list_entries(tmp_path / "list.txt")


def test_missing_files_of_a_list_are_refused_or_left_out(tmp_path, caplog):
    make_folder(tmp_path, 4)
    lines = ["0/00.png", "0/02.png", "1/01.png", "1/99.png", "0/00.png, 1/98.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"2 of 5 .*line 4: no file '1/99.png'.*max_bad_share=0.01"):
        list_entries(tmp_path / "list.txt")
    with caplog.at_level(logging.WARNING):
        assert len(list_entries(tmp_path / "list.txt", max_bad_share=0.5)) == 3
    assert "left out" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no picture in it"),
        (b"# nothing\n\n", "no picture in it"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"x" * 20_000, "20000 characters are no path"),
        (b"a\x00b.png", "no file"),
        (b"a" * 5000, "no file"),
        (b", ,, ", "no file"),
    ],
)
def test_lists_that_are_none_are_refused(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list_entries(tmp_path / "list.txt")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is a folder"):
        list_entries(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        list_entries(tmp_path / "none.txt")


# paired folders


@pytest.mark.parametrize(
    ("hr", "lr", "name"),
    [
        ("HR", "LR", "{}"),
        ("gt", "lq", "{}"),
        ("test_HR", "test_LR", "{}"),
        ("GT", "LR4x", "{}"),
        ("HR", "LR/X4", "{}x4"),
        ("DIV2K_train_HR", "DIV2K_train_LR_bicubic/X4", "{}x4"),
    ],
)
def test_pairs_are_found_by_the_names_of_data_sets(tmp_path, hr, lr, name):
    make_pairs(tmp_path, hr, lr, name)
    for path in (tmp_path, tmp_path / hr):
        files = Files(pair_entries(path, 4), "x", scale=4)
        assert len(files) == 4
        for index in range(4):
            example = files.example(index)
            assert torch.equal(example.lq, example.hr[:, ::4, ::4])


def test_pairs_are_found_in_one_folder_by_their_ends(tmp_path):
    for i in range(3):
        write(tmp_path / "Canon" / f"{i}_HR.png", noise(8, 8, i))
        write(tmp_path / "Canon" / f"{i}_LR4.png", shrunk(noise(8, 8, i), 4))
    found = pair_entries(tmp_path, 4)
    assert names(found) == [f"Canon/{i}_HR.png" for i in range(3)]
    assert [entry.lq.name for entry in found] == [f"{i}_LR4.png" for i in range(3)]


def test_pairs_by_a_template_in_two_folders_of_any_names(tmp_path):
    make_pairs(tmp_path, "fine", "poor", "low-{}")
    found = pair_entries(tmp_path / "fine", 4, tmp_path / "poor", "low-{}")
    assert [entry.lq.name for entry in found] == [f"low-0{i}.png" for i in range(4)]
    with pytest.raises(UserError, match=r"4 of 4 .*has no partner '00' in .*domain.data.template"):
        pair_entries(tmp_path / "fine", 4, tmp_path / "poor")


def test_partners_that_are_missing_are_named(tmp_path, caplog):
    make_pairs(tmp_path, count=5)
    (tmp_path / "LR" / "02.png").unlink()
    with pytest.raises(UserError, match=r"1 of 5 .*02\.png has no partner '02' in .*LR"):
        pair_entries(tmp_path, 4)
    with caplog.at_level(logging.WARNING):
        assert len(pair_entries(tmp_path, 4, max_bad_share=0.2)) == 4
    assert "left out" in caplog.text
    (tmp_path / "HR" / "03.png").unlink()
    with caplog.at_level(logging.WARNING):
        assert len(pair_entries(tmp_path, 4, max_bad_share=0.3)) == 3
    assert "without a good one, such as" in caplog.text


def test_folders_that_are_no_pairs_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        pair_entries(tmp_path / "none", 4)
    with pytest.raises(UserError, match="is a file"):
        pair_entries(write(tmp_path / "other" / "a.png", noise(4, 4)), 4)
    with pytest.raises(UserError, match="no two folders such as"):
        pair_entries(tmp_path, 4)
    for part in ("train", "valid"):
        make_pairs(tmp_path, f"{part}_HR", f"{part}_LR")
    with pytest.raises(UserError, match=r"several sets of pairs .*train_HR, valid_HR"):
        pair_entries(tmp_path, 4)
    write(tmp_path / "valid_LR" / "00.jpg", noise(4, 4))
    write(tmp_path / "valid_LR" / "00.bmp", noise(4, 4))
    assert pair_entries(tmp_path / "valid_HR", 4)[0].lq.suffix == ".png"
    (tmp_path / "valid_LR" / "00.png").unlink()
    with pytest.raises(UserError, match="are both named like"):
        pair_entries(tmp_path / "valid_HR", 4)


def test_sizes_that_do_not_fit_are_refused_in_one_line(tmp_path):
    entries = pair_entries(make_pairs(tmp_path), 4)
    with pytest.raises(UserError, match=r"00\.png has 48x40 pixels and .*00\.png 12x10: not 2 times") as caught:
        Files(entries, "x", scale=2)
    assert "\n" not in str(caught.value)
    write(tmp_path / "LR" / "03.png", noise(10, 11))
    with pytest.raises(UserError, match=r"48x40 pixels and .* 11x10: not 4 times"):
        Files(entries, "x", scale=4)


@pytest.mark.parametrize("size", [(11, 12), (12, 11)])
def test_good_pictures_need_not_be_multiples_of_the_scale(tmp_path, size):
    pixels = noise(46, 45)
    hr, lq = write(tmp_path / "h.png", pixels), write(tmp_path / "l.png", shrunk(pixels, 4)[: size[0], : size[1]])
    example = Files([Entry(hr, lq, "h.png")], "x", scale=4).example(0)
    assert tuple(example.hr.shape[1:]) == tuple(4 * side for side in example.lq.shape[1:])
    assert torch.equal(example.lq, example.hr[:, ::4, ::4])


def test_a_pair_turned_by_its_camera_fits(tmp_path):
    pixels = noise(40, 48)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "h.png", exif=exif)
    lq = write(tmp_path / "l.png", shrunk(pixels, 4))
    example = Files([Entry(tmp_path / "h.png", lq, "h")], "x", scale=4).example(0)
    assert torch.equal(example.lq, example.hr[:, ::4, ::4])


# opening


def test_opening_gives_what_the_settings_ask_for(tmp_path):
    train, held = open_examples(config(), (4,), Shipped())
    assert [train.name(i) for i in range(2)] == ["a", "b"]
    assert (len(held), held.scale) == (1, 0)
    make_folder(tmp_path / "data", 10)
    train, held = open_examples(config(source="folder", path=str(tmp_path / "data")), (2, 4), Shipped())
    assert (len(train), len(held)) == (9, 1)
    make_pairs(tmp_path / "pairs", count=6)
    settings = {"source": "pairs", "path": str(tmp_path / "pairs"), "held_out": 0.5}
    train, held = open_examples(config(**settings), (4,), Shipped())
    assert (len(train), len(held), train.scale, held.scale) == (3, 3, 4, 4)
    with pytest.raises(UserError, match="one scale"):
        open_examples(config(**settings), (2, 4), Shipped())
    (tmp_path / "list.txt").write_text("pairs/HR/00.png, pairs/LR/00.png\npairs/HR/01.png, pairs/LR/01.png\n")
    listed = config(source="list", path=str(tmp_path / "list.txt"))
    assert [len(part) for part in open_examples(listed, (4,), Shipped())] == [1, 1]
    with pytest.raises(UserError, match="one scale"):
        open_examples(listed, (2, 4), Shipped())


def test_a_folder_is_learnt_beside_the_photos_and_measured_on_never(tmp_path):
    make_folder(tmp_path / "more", 3)
    alone, held = open_examples(config(), (4,), Shipped())
    train, same = open_examples(config(also=str(tmp_path / "more")), (2, 4), Shipped())
    files, _ = open_examples(config(source="folder", path=str(tmp_path / "more"), held_out=0.3), (4,), Shipped())
    assert len(train) == len(alone) + 3
    assert same.identity == held.identity
    make_folder(tmp_path / "fewer", 2)
    again, fewer = (open_examples(config(also=str(tmp_path / n)), (4,), Shipped())[0] for n in ("more", "fewer"))
    assert again.identity == train.identity
    assert len({each.identity for each in (train, alone, files, fewer)}) == 4  # a run goes on with its own data only
    for index in range(len(alone)):
        assert train.name(index) == alone.name(index)
        assert torch.equal(train.example(index).hr, alone.example(index).hr)
    names = [train.name(len(alone) + index) for index in range(3)]
    assert names == sorted(names)
    for index, name in enumerate(names):
        pixels = np.asarray(Image.open(tmp_path / "more" / name))
        assert torch.equal(train.example(len(alone) + index).hr, torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    with pytest.raises(IndexError):
        train.name(len(train))
    with pytest.raises(UserError, match="nowhere"):
        open_examples(config(also=str(tmp_path / "nowhere")), (4,), Shipped())


def test_pictures_held_out_are_never_trained_on(tmp_path):
    make_folder(tmp_path / "a", 4)
    make_folder(tmp_path / "b", 2)
    settings = {"source": "folder", "path": str(tmp_path / "a"), "held_out_path": str(tmp_path / "b")}
    assert [len(part) for part in open_examples(config(**settings), (4,), Shipped())] == [4, 2]
    with pytest.raises(UserError, match="is trained on as well"):
        open_examples(config(**{**settings, "held_out_path": str(tmp_path / "a" / "0")}), (4,), Shipped())


def test_the_split_depends_on_names_alone(tmp_path):
    entries = [Entry(tmp_path / f"{i}", None, f"d/{i:03d}_s{j:03d}.png") for i in range(40) for j in range(3)]
    train, held = split(entries, 0.1, "x")
    assert (len(train), len(held)) == (108, 12)  # parts of a picture stay together
    assert {e.name[:5] for e in train}.isdisjoint({e.name[:5] for e in held})
    again, same = split(entries[::-1], 0.1, "x")
    assert set(names(same)) == set(names(held))
    assert names(again) == names(train)[::-1]
    # the same in every process, and however many more are held out
    assert sorted({name[:5] for name in names(held)}) == ["d/007", "d/010", "d/017", "d/026"]
    assert set(names(held)) < set(names(split(entries, 0.3, "x")[1]))
    with pytest.raises(UserError, match="one picture is too few"):
        split(entries[:3], 0.1, "x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "folder"}, "path belongs to"),
        ({"path": "x"}, "path belongs to"),
        ({"source": "folder", "path": "x", "also": "y"}, "also is learnt beside"),
        ({"held_out_path": "x"}, "held out already"),
        ({"source": "folder", "path": "x", "root": "y"}, "root belongs to"),
        ({"source": "folder", "path": "x", "lr_path": "y"}, "lr_path belongs to"),
        ({"source": "folder", "path": "x", "template": "{}"}, "template belongs to"),
        ({"source": "pairs", "path": "x", "template": "x4"}, "template must hold"),
        ({"source": "pairs", "path": "x", "held_out_lr_path": "y"}, "needs held_out_path"),
        ({"source": "pairs", "path": "x", "degradation": "resshift"}, "degraded already"),
        ({"source": "pairs", "path": "x", "sharpen": True}, "sharpen: good pictures of pairs"),
        ({"degradation": "resshif"}, "did you mean 'resshift'"),
        ({"crop": 0}, "crop must lie"),
        ({"held_out": 0}, "held_out must be"),
        ({"min_gradient": 1}, "min_gradient must be"),
        ({"tries": 0}, "tries must lie"),
        ({"max_bad_share": 2}, "max_bad_share must be"),
        ({"cache_pictures": -1}, "cache_pictures must lie"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        config(**settings)


def test_photos_differ_by_what_they_show():
    assert photos(2).identity == photos(2).identity != photos(3).identity
    with pytest.raises(UserError, match="no photos"):
        Photos([])
