"""Pictures with captions: folders and archives say the same, and what is damaged is counted or refused."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tarfile

import pytest
import torch
from core.caption_bed import add, caption, make_archive, make_folder, png, truth
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core.data.captioned import Captioned, CaptionedFolder, open_captioned, open_data
from fewstep.core.data.damage import Damaged
from fewstep.core.data.tars import TarShards, find_archives
from fewstep.core.errors import TrainingError, UserError


def same(found, numbers):
    assert isinstance(found, Captioned)
    assert len(found) == len(numbers)
    for index in reversed(range(len(found))):  # in any order
        assert found.caption(index) == caption(numbers[index])
        assert torch.equal(found.picture(index), truth(numbers[index]))


# folders


@pytest.mark.parametrize("captions", [".txt", "metadata.jsonl", "metadata.csv"])
def test_a_folder_gives_pictures_with_their_captions(tmp_path, captions):
    same(open_captioned(make_folder(tmp_path / "data", 6, captions)), range(6))


def test_pictures_without_a_caption_are_refused_or_counted(tmp_path, caplog):
    root = make_folder(tmp_path / "data")
    (root / "4.txt").unlink()
    with pytest.raises(UserError, match=r"1 of 6 pictures are without a caption; the first, .*4\.png, has no caption"):
        open_captioned(root)
    with caplog.at_level(logging.WARNING):
        same(open_captioned(root, max_bad_share=0.2), [0, 1, 2, 3, 5])
    assert "left out" in caplog.text
    for text in root.glob("*.txt"):
        text.unlink()
    with pytest.raises(UserError, match="6 of 6"):
        open_captioned(root, max_bad_share=1.0)


def test_a_damaged_picture_is_counted_once_and_too_many_stop(tmp_path):
    root = make_folder(tmp_path / "data")
    for number in (1, 3):
        (root / f"{number}.png").write_bytes(png(number)[:60])
    found = CaptionedFolder(root, max_bad_share=0.2)
    for _ in range(2):
        with pytest.raises(Damaged):
            found.picture(1)
    assert found.bad.indices == {1}
    with pytest.raises(TrainingError, match=r"2 of 6 images cannot be read, more than max_bad_share=0\.2"):
        found.picture(3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"file_name": "../0.png", "text": "a"}, "leads out of"),
        ({"file_name": "/etc/passwd", "text": "a"}, "leads out of"),
        ({"file_name": "9.png", "text": "a"}, r"line 7: no file .*9\.png"),
        ({"text": "a"}, "no file_name"),
        ({"file_name": "0.png", "text": 3}, "must be text, found int"),
        ({"file_name": "0.png", "txt": "a"}, "no column text, caption or prompt, only txt"),
        (["0.png"], "must be a JSON object"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path, row, said):
    root = make_folder(tmp_path / "data", 6, "metadata.jsonl")
    table = root / "metadata.jsonl"
    table.write_text(f"{table.read_text()}\n{json.dumps(row)}")
    with pytest.raises(UserError, match=said) as caught:
        open_captioned(root)
    assert "\n" not in str(caught.value)


def test_a_caption_that_is_no_text_is_refused(tmp_path):
    root = make_folder(tmp_path / "data")
    (root / "2.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"2\.txt, line 1: not UTF-8"):
        open_captioned(root)
    (root / "2.txt").write_bytes(b"x" * 70_000)
    with pytest.raises(UserError, match="more than a caption's"):
        open_captioned(root)


def test_identity_says_which_pictures_they_are(tmp_path):
    root = make_folder(tmp_path / "data")
    before = open_captioned(root).identity
    assert open_captioned(make_folder(tmp_path / "moved")).identity == before
    (root / "0.png").write_bytes(png(7))
    assert open_captioned(root).identity != before


def test_a_path_means_prompts_a_folder_or_archives(tmp_path):
    (tmp_path / "a.txt").write_text("a fox")
    assert open_data(tmp_path / "a.txt") == ["a fox"]
    assert isinstance(open_data(make_folder(tmp_path / "data")), CaptionedFolder)
    assert isinstance(open_data(make_archive(tmp_path / "tars/0.tar", range(2))), TarShards)
    assert isinstance(open_data(tmp_path / "tars"), TarShards)
    with pytest.raises(UserError, match="this is not there"):
        open_data(tmp_path / "absent")
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(UserError, match="this is none of them"):
        open_data(tmp_path / "a.doc")


# archives


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("captions", [".txt", ".json"])
def test_archives_give_what_tarfile_and_pillow_give(tmp_path, captions, tar_format):
    for shard in range(3):
        make_archive(tmp_path / f"{shard:05d}.tar", range(2 * shard, 2 * shard + 2), captions, tar_format)
    for path in (tmp_path, tmp_path / "*.tar", f"{tmp_path}/{{00000..00002}}.tar"):
        same(TarShards(path), range(6))
    same(TarShards(f"{tmp_path}/{{00001..00002}}.tar"), range(2, 6))


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_keep_pairs_together(tmp_path, tar_format):
    name = "größe/" + "x" * 180
    with tarfile.open(tmp_path / "a.tar", "w", format=tar_format, encoding="utf-8") as tar:
        add(tar, f"{name}.png", png(1))
        add(tar, "0.png", png(0))
        add(tar, f"{name}.txt", caption(1).encode())
        add(tar, "0.txt", caption(0).encode())
    same(TarShards(tmp_path / "a.tar"), [1, 0])


def test_links_and_names_that_lead_elsewhere_are_ignored(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.png", "/1.png", "../2.png", "3.png", "._4.png"):
            add(tar, name, png(0))
        for name in ("0.txt", "/1.txt", "../2.txt"):
            add(tar, name, caption(0).encode())
        link = tarfile.TarInfo("3.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
        folder = tarfile.TarInfo("4.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    same(TarShards(tmp_path / "a.tar", max_bad_share=0.5), [0])


def test_truncated_archives_are_refused_or_counted(tmp_path, caplog):
    for shard in range(2):
        make_archive(tmp_path / f"{shard}.tar", range(2 * shard, 2 * shard + 2))
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:1500])
    with pytest.raises(UserError, match=r"1 of 2 archives are damaged.*0\.tar.*truncated.*copy it again"):
        TarShards(tmp_path)
    same(TarShards(tmp_path, max_bad_share=0.5), [2, 3])
    (tmp_path / "0.tar").write_bytes(whole[:700] + b"\xff" + whole[701:])  # inside a picture: the archive is whole
    found = TarShards(tmp_path, max_bad_share=0.5)
    assert len(found) == 4
    (tmp_path / "0.tar").write_bytes(b"\xff" + whole[1:])
    with pytest.raises(UserError, match="bad checksum"):
        TarShards(tmp_path)


def header(size: str, name: str = "0.png", kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that claims a size."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size.encode().ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize(
    "data",
    [
        header("77777777777"),
        header("77777777777", kind=tarfile.XHDTYPE),
        header("77777777777", kind=tarfile.GNUTYPE_LONGNAME),
        header("00000400000", kind=tarfile.GNUTYPE_LONGNAME) + bytes(2**18),
        header("00000000020", kind=tarfile.XHDTYPE) + b"99999 path=x\n".ljust(512, b"\0"),
        header("00000000024", kind=tarfile.XHDTYPE) + b"20 size=9999999999x\n".ljust(512, b"\0") + header("0"),
        header("00000000024", kind=tarfile.XHDTYPE) + b"20 size=99999999999\n".ljust(512, b"\0") + header("0"),
        b"not an archive",
    ],
)
def test_sizes_are_bounded_by_the_archive(tmp_path, data):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"1 of 1 archives are damaged") as caught:
        TarShards(tmp_path / "a.tar")
    assert "\n" not in str(caught.value)


def test_a_link_that_claims_a_size_has_no_data(tmp_path):
    """As tarfile reads it: what follows a link's header is the next header."""
    whole = make_archive(tmp_path / "a.tar", range(2)).read_bytes()
    (tmp_path / "a.tar").write_bytes(header("00000001000", "link.txt", tarfile.SYMTYPE) + whole)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames()[:2] == ["link.txt", "part/0000.png"]
    same(TarShards(tmp_path / "a.tar"), range(2))


def test_pictures_of_archives_without_a_usable_caption_are_counted(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(4):
            add(tar, f"{i}.png", png(i))
        add(tar, "0.txt", caption(0).encode())
        add(tar, "1.txt", b"caf\xe9")
        add(tar, "2.json", b"{}")
    with pytest.raises(UserError, match=r"3 of 4 pictures are without a caption; the first, .*a\.tar:1\.png"):
        TarShards(tmp_path / "a.tar", max_bad_share=0.5)
    same(TarShards(tmp_path / "a.tar", max_bad_share=0.75), [0])


def test_archives_that_are_not_there_are_named(tmp_path):
    make_archive(tmp_path / "0.tar", range(1))
    for path, said in [
        (f"{tmp_path}/{{0..1}}.tar", r"no archive .*1\.tar"),
        (f"{tmp_path}/{{1..0}}.tar", "empty"),
        (f"{tmp_path}/{{0..999999999}}.tar", "more than"),
        (f"{tmp_path}/x*.tar", "no archive there"),
    ]:
        with pytest.raises(UserError, match=said):
            find_archives(path)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        add(tar, "0.txt", b"x")
    with pytest.raises(UserError, match="no picture in"):
        TarShards(tmp_path / "b.tar")


@given(st.data())
def test_any_damage_is_read_around_or_refused(tmp_path_factory, data):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, "0.png", png(0)[:700])
        add(tar, "0.txt", b"a")
    whole = bytearray(buffer.getvalue()[:4096])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "fuzz.tar"
    file.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    with contextlib.suppress(UserError):
        assert len(TarShards(file, max_bad_share=0.9)) <= 1
