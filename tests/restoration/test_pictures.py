"""Pictures come back in the mode and depth they had; damaged ones are refused in one line."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps
from torch.testing import assert_close

from fewstep.core.data.reading import MAX_PIXELS
from fewstep.core.errors import UserError
from fewstep.restoration.pictures.deep import SIGNATURE
from fewstep.restoration.pictures.picture import COLOURS, Picture
from fewstep.restoration.pictures.reading import Header, read_header, read_picture, upright
from fewstep.restoration.pictures.writing import write_picture

_FOLDERS = [folder / "shared" / "data" for folder in Path(__file__).resolve().parents[3:]]  # a worktree lies deeper
PHOTOS = next((folder for folder in _FOLDERS if folder.exists()), _FOLDERS[0])
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def drawn(mode: str, bits: int = 8, height: int = 13, width: int = 9) -> Picture:
    """A picture of every value of its depth, at random."""
    most = 2**bits - 1
    generator = torch.Generator().manual_seed(bits)
    channels = COLOURS[mode] + mode.endswith("A")
    x = torch.randint(0, most + 1, (channels, height, width), generator=generator).float() / most
    return Picture(colours=x[: COLOURS[mode]], alpha=x[-1:] if mode.endswith("A") else None, mode=mode, bits=bits)


def same(a: Picture, b: Picture) -> None:
    assert (a.mode, a.bits) == (b.mode, b.bits)
    assert torch.equal(a.colours, b.colours)
    assert (a.alpha is None) == (b.alpha is None)
    if a.alpha is not None and b.alpha is not None:
        assert torch.equal(a.alpha, b.alpha)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, bits: int, colour: int, content: bytes, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return SIGNATURE + head + b"".join(more) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(13, 9), (1, 1), (1, 7), (7, 1)])
def test_png_keeps_every_value_of_every_mode_and_depth(tmp_path, mode, bits, size):
    picture = drawn(mode, bits, *size)
    write_picture(tmp_path / "a.png", picture)
    same(read_picture(tmp_path / "a.png"), picture)
    assert read_header(tmp_path / "a.png") == Header(mode, bits, size)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_deep_picture_of_many_bands_keeps_every_value(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.restoration.pictures.deep.BAND_BYTES", 1000)
    picture = drawn("RGBA", 16, 64, 48)
    write_picture(tmp_path / "a.png", picture)
    same(read_picture(tmp_path / "a.png"), picture)


def test_a_deep_gray_picture_is_what_pillow_reads(tmp_path):
    picture = drawn("L", 16)
    write_picture(tmp_path / "a.png", picture)
    with Image.open(tmp_path / "a.png") as opened:
        assert_close(torch.from_numpy(np.asarray(opened).astype(np.float32)) / 65535, picture.colours[0])


@pytest.mark.parametrize(("mode", "bits"), [("L", 8), ("LA", 8), ("RGB", 8), ("RGBA", 8), ("L", 16)])
def test_tiff_keeps_every_value(tmp_path, mode, bits):
    write_picture(tmp_path / "a.tif", drawn(mode, bits))
    same(read_picture(tmp_path / "a.tif"), drawn(mode, bits))


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_stays_cmyk(tmp_path, suffix):
    flat = Picture(colours=torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1).expand(3, 16, 16), mode="CMYK")
    write_picture(tmp_path / f"a{suffix}", flat)
    found = read_picture(tmp_path / f"a{suffix}")
    assert found.mode == read_header(tmp_path / f"a{suffix}").mode == "CMYK"
    assert_close(found.colours, flat.colours, atol=2.5 / 255, rtol=0)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_keep_flat_colours(tmp_path, suffix):
    flat = Picture(colours=torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1).expand(3, 16, 16), mode="RGB")
    write_picture(tmp_path / f"a{suffix}", flat)
    assert_close(read_picture(tmp_path / f"a{suffix}").colours, flat.colours, atol=2.5 / 255, rtol=0)


def test_palettes_black_and_white_and_keyed_colours_become_plain_modes(tmp_path):
    x = np.array([[0, 1], [2, 0]], dtype=np.uint8)
    palette = Image.fromarray(x, "L").convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "t.png", transparency=0)
    Image.fromarray(x > 0).save(tmp_path / "1.png")
    colours, keyed, bilevel = (read_picture(tmp_path / name) for name in ("p.png", "t.png", "1.png"))
    assert (colours.mode, keyed.mode, bilevel.mode) == ("RGB", "RGBA", "L")
    assert [read_header(tmp_path / name).mode for name in ("p.png", "t.png", "1.png")] == ["RGB", "RGBA", "L"]
    assert_close(colours.colours[:, 0, 1] * 255, torch.tensor([40.0, 50.0, 60.0]))
    assert_close(keyed.alpha, torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
    assert_close(bilevel.colours, torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))


def test_a_keyed_colour_of_16_bits_is_compared_with_16_bits(tmp_path):
    pixels = np.array([[0, 1, 2], [0, 1, 3]], dtype=">u2").tobytes()  # equal in their high bytes
    key = chunk(b"tRNS", struct.pack(">HHH", 0, 1, 3))
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, b"\0" + pixels, key))
    found = read_picture(tmp_path / "a.png")
    assert (found.mode, found.bits) == ("RGBA", 16)
    assert read_header(tmp_path / "a.png") == Header("RGBA", 16, (1, 2))
    assert_close(found.alpha, torch.tensor([[[1.0, 0.0]]]))


def test_an_interlaced_deep_picture_is_read(tmp_path):
    """One pixel fills the first pass of Adam7, so its scan line is that of the plain file."""
    data = bytearray(png(1, 1, 16, 6, b"\0" + struct.pack(">HHHH", 1, 300, 65535, 513)))
    data[28] = 1
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    found = read_picture(tmp_path / "a.png")
    assert_close(found.colours.flatten() * 65535, torch.tensor([1.0, 300.0, 65535.0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_applies_it(orientation):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(array)
    image.getexif()[0x0112] = orientation
    expected = np.array(ImageOps.exif_transpose(image))
    assert torch.equal(upright(torch.from_numpy(array)[None], orientation)[0], torch.from_numpy(expected))


@pytest.mark.parametrize(("suffix", "bits"), [(".png", 8), (".png", 16), (".jpg", 8), (".webp", 8)])
def test_exif_and_profile_are_kept_and_the_orientation_is_used_up(tmp_path, suffix, bits):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    picture = replace(drawn("RGB", bits), exif=exif.tobytes(), icc=ICC)
    write_picture(tmp_path / f"a{suffix}", picture)
    found = read_picture(tmp_path / f"a{suffix}")
    assert found.size == read_header(tmp_path / f"a{suffix}").size == (9, 13), "turned by a quarter"
    assert found.icc == ICC
    write_picture(tmp_path / f"b{suffix}", found)
    again = read_picture(tmp_path / f"b{suffix}")
    assert again.size == (9, 13)
    kept = Image.Exif()
    kept.load(again.exif)
    assert dict(kept) == {0x010F: "a camera"}


def test_damaged_exif_data_does_not_make_a_picture_unreadable(tmp_path):
    write_picture(tmp_path / "a.jpg", replace(drawn("RGB"), exif=b"Exif\0\0nothing of the kind"))
    assert read_picture(tmp_path / "a.jpg").exif is None


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(3 * 24 * 24, dtype=np.uint32).reshape(24, 24, 3).astype(np.uint8)).save(file, format=kind)
    return file.getvalue()


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
def test_damaged_files_are_refused_or_read_but_never_crash(tmp_path, kind):
    whole, path = encoded(kind), tmp_path / "a.img"
    path.write_bytes(whole)
    assert read_picture(path).size == (24, 24), "told by content, whatever the name"
    path.write_bytes(whole[: len(whole) // 2])
    refused(path)
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 200), 3):
            broken[at] = rng.integers(256)
        path.write_bytes(broken)
        try:
            read_picture(path)
        except UserError:
            continue


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_a_truncated_deep_picture_is_refused(tmp_path, mode):
    path = tmp_path / "a.png"
    write_picture(path, drawn(mode, 16))
    whole = path.read_bytes()
    for end in (1, 20, 30, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:end])
        refused(path)


def test_files_that_are_no_pictures_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert "is empty" in refused(tmp_path / "empty.png")
    assert "not an image" in refused(tmp_path / "text.png")
    assert "not an image" in refused(tmp_path / "page.png"), "no interpreter is started"
    assert "No such file" in refused(tmp_path / "missing.png")
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize("bits", [8, 16])
def test_image_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch, bits):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("unpacked"))
    for side in (int(MAX_PIXELS**0.5) + 1, 6000, 100_000):
        (tmp_path / "a.png").write_bytes(png(side, side, bits, 2, b""))
        line = refused(tmp_path / "a.png")
        assert "claims" in line
        assert "DOS" not in line


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_headers_tell_the_size_that_reading_gives(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (6, 4)).save(tmp_path / f"a.{suffix}", exif=exif)
    size = read_picture(tmp_path / f"a.{suffix}").size
    assert read_header(tmp_path / f"a.{suffix}").size == size == ((6, 4) if orientation >= 5 else (4, 6))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("more", [{}, {"tile": (16, 16)}, {"predictor": True}, {"orientation": 6}])
def test_a_colour_tiff_of_16_bits_keeps_every_value(tmp_path, mode, order, compression, more):
    picture, turn = drawn(mode, 16, 40, 52), more.get("orientation", 1)
    parts = [picture.colours] if picture.alpha is None else [picture.colours, picture.alpha]
    pixels = (torch.cat(parts) * 65535).round().permute(1, 2, 0).numpy().astype(np.uint16)
    settings = {key: value for key, value in more.items() if key != "orientation" and (compression or key == "tile")}
    alpha = ["unassalpha"] if mode == "RGBA" else None
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", byteorder=order, compression=compression, extrasamples=alpha,
        extratags=[(0x0112, 3, 1, turn, True)] if turn > 1 else [], **settings,
    )  # fmt: skip
    found, header = read_picture(tmp_path / "a.tif"), read_header(tmp_path / "a.tif")
    assert (header.mode, header.bits, header.size) == (found.mode, found.bits, found.size)
    turned = [upright(part, turn) for part in parts]
    same(found, replace(picture, colours=turned[0], alpha=turned[1] if alpha else None))


@pytest.mark.parametrize(
    ("channels", "settings"),
    [
        (3, {"planarconfig": "separate"}),
        (3, {"planarconfig": "separate", "compression": "zlib"}),
        (4, {"extrasamples": ["assocalpha"]}),
        (4, {"extrasamples": ["assocalpha"], "compression": "zlib"}),
        (4, {"photometric": "separated"}),
    ],
)
def test_unusual_tiffs_of_16_bits_are_refused_rather_than_cut_to_8_or_mixed_up(tmp_path, channels, settings):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    apart = settings.get("planarconfig") == "separate"
    tifffile.imwrite(
        tmp_path / "a.tif", np.moveaxis(pixels, 2, 0) if apart else pixels, **{"photometric": "rgb", **settings}
    )
    assert "16-bit PNG" in refused(tmp_path / "a.tif")


def test_a_colour_tiff_of_16_bits_that_is_cut_short_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 52, 3), dtype=np.uint16)
    for compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression=compression)
        (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:2000])
        assert "cannot be read" in refused(tmp_path / "a.tif")


def test_what_a_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    cases = [("a.jpg", drawn("RGBA")), ("a.jpg", drawn("RGB", 16)), ("a.png", drawn("CMYK")), ("a.xyz", drawn("RGB"))]
    nan = replace(drawn("RGB"), colours=torch.full((3, 2, 2), float("nan")))
    for name, picture in [*cases, ("a.png", nan), ("missing/a.png", drawn("RGB"))]:
        with pytest.raises(UserError, match=name):
            write_picture(tmp_path / name, picture)
    assert list(tmp_path.iterdir()) == []


def test_values_are_clamped_and_rounded(tmp_path):
    x = torch.tensor([-1.0, 0.4999 / 255, 0.5001 / 255, 2.0]).view(1, 1, 4)
    write_picture(tmp_path / "a.png", Picture(colours=x, mode="L"))
    assert_close(read_picture(tmp_path / "a.png").colours.flatten() * 255, torch.tensor([0.0, 0.0, 1.0, 255.0]))


def test_a_picture_of_parts_that_contradict_each_other_is_refused():
    for change in ({"mode": "RGBA"}, {"mode": "L"}, {"mode": "P"}, {"bits": 10}, {"alpha": torch.ones(1, 13, 9)}):
        with pytest.raises(ValueError, match="mode"):
            replace(drawn("RGB"), **change)
    with pytest.raises(ValueError, match="alpha of shape"):
        replace(drawn("RGBA"), alpha=torch.ones(1, 2, 2))


@pytest.mark.parametrize(
    ("name", "mode", "bits"),
    [
        ("photo_00003.png", "RGB", 8),
        ("photo_00017_gray.png", "L", 8),
        ("photo_children-alpha.png", "RGBA", 8),
        ("photo_tree_alpha_16bit.png", "RGBA", 16),
    ],
)
def test_real_photos_come_back_as_they_were(tmp_path, name, mode, bits):
    if not (PHOTOS / name).exists():
        pytest.skip(f"no {PHOTOS / name}")
    picture = read_picture(PHOTOS / name)
    assert (picture.mode, picture.bits) == (mode, bits)
    assert bits == 8 or len(picture.colours.unique()) > 256
    write_picture(tmp_path / name, picture)
    found = read_picture(tmp_path / name)
    same(found, picture)
    assert found.icc == picture.icc
