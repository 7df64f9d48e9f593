"""`fewstep restoration upscale` with a network: tiles leave no trace, and results are fixed by the seed."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from restoration.model_bed import restoration, small_model, written_model
from torch.testing import assert_close

from fewstep.restoration.cli.upscaling import upscale_arguments
from fewstep.restoration.pictures.picture import Picture
from fewstep.restoration.pictures.reading import read_picture
from fewstep.restoration.pictures.writing import write_picture
from fewstep.restoration.restorer import Restorer
from fewstep.restoration.upscaling import UpscaleConfig, upscale


def photo(mode: str = "RGB", bits: int = 16) -> Picture:
    x = torch.rand(4, 150, 131, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    return Picture(colours=x[:3], alpha=x[3:] if mode == "RGBA" else None, mode=mode, bits=bits)


@pytest.mark.parametrize("scale", [3, 4])
def test_tiles_of_a_local_network_leave_no_trace(scale):
    restorer = Restorer(small_model(student=True), noise=1)
    side = 4 * restorer.reach(scale) + 3 * restorer.multiple(scale)
    whole = upscale(photo(), restorer, UpscaleConfig(scale=scale, tile=0))
    tiled = upscale(photo(), restorer, UpscaleConfig(scale=scale, tile=side))
    assert tiled.tiles > whole.tiles == 1
    assert_close(tiled.raster.picture().colours, whole.raster.picture().colours, atol=2.1 / 65535, rtol=0)


def test_the_command_enlarges_with_a_folder_of_a_model(tmp_path, capsys):
    model = written_model(tmp_path / "model", small_model((2, 4), student=True))
    source = tmp_path / "a.png"
    write_picture(source, photo("RGBA"))
    args = ("upscale", source, "--model", model, "-s", 2, "--tile", 100)
    assert restoration(*args, "-o", tmp_path / "b.png", "--device", "cpu") == 0
    assert restoration(*args, "-o", tmp_path / "c.png") == 0
    assert restoration(*args, "-o", tmp_path / "d.png", "--seed", 1) == 0
    b, c, d = ((tmp_path / name).read_bytes() for name in ("b.png", "c.png", "d.png"))
    assert b == c != d
    found = read_picture(tmp_path / "b.png")
    assert (found.mode, found.bits, found.size) == ("RGBA", 16, (300, 262))
    capsys.readouterr()
    assert restoration("upscale", source, "--model", model, "-s", 8, "-o", tmp_path / "e.png") == 2
    assert "was made for 2, 4" in capsys.readouterr().err
    assert not (tmp_path / "e.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are measured in kilobytes, as Linux does")
def test_memory_grows_with_the_integers_of_the_result(tmp_path):
    """In a process of its own: twice the picture takes its integers and Pillow's copy more, and nothing in float32."""
    import subprocess

    code = (
        "import resource, sys, torch; from pathlib import Path; from restoration.restorer_bed import StandIn, nearest\n"
        "from fewstep.restoration.pictures.picture import Picture\n"
        "from fewstep.restoration.pictures.writing import write_picture\n"
        "from fewstep.restoration.upscaling import UpscaleConfig, upscale\n"
        "height = int(sys.argv[1]); x = torch.rand(3, 1, 1024).expand(3, height, 1024)\n"
        "picture = Picture(colours=x, mode='RGB')\n"
        "done = upscale(picture, StandIn(nearest, radius=4), UpscaleConfig(scale=4, tile=256))\n"
        "write_picture(Path(sys.argv[2]), done.raster)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    tests = str(Path(__file__).resolve().parents[1])
    peaks = []
    for height in (256, 1024):
        line = f"import sys; sys.path.insert(0, {tests!r})\n{code}"
        args = [sys.executable, "-c", line, str(height), str(tmp_path / "a.png")]
        peaks.append(int(subprocess.run(args, capture_output=True, text=True, check=True).stdout))
    more = (1024 - 256) * 1024 * 16 * 3
    # Pillow's copy has 4 bytes for 3; a copy in float32 would make it 5 times as much
    assert peaks[1] - peaks[0] < 3.5 * more


def test_the_options_are_parsed():
    parser = ArgumentParser()
    upscale_arguments(parser)
    args = parser.parse_args(["a", "b", "--tile", "auto", "-o", "c"])
    assert (args.inputs, args.tile, args.scale, args.model) == ([Path("a"), Path("b")], None, 4, "photos-student")
    assert parser.parse_args(["a", "--tile", "0"]).tile == 0
