"""A user's picture on its way in, the mesh on its way out, and models as folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from threed.orbit_bed import PROCESS
from torch import Tensor

from fewstep.core.denoiser import NetworkDenoiser
from fewstep.core.errors import UserError
from fewstep.core.recipe import StepPlan
from fewstep.threed.image_to_3d import ImageTo3D, generate, load_image_to_3d
from fewstep.threed.orbit.decoder import DecoderConfig, GaussianDecoder
from fewstep.threed.orbit.network import OrbitUNet
from fewstep.threed.orbit.pixels import prepare, read_picture, to_latents, to_pixels
from fewstep.threed.orbit.reading import KarrasV
from fewstep.threed.orbit.supervision import OrbitGeometry


def disc(height: int = 64, width: int = 64, radius: float = 20.0, row: float = 32.0, column: float = 32.0) -> Tensor:
    """A red disc with alpha."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    alpha = ((y - row) ** 2 + (x - column) ** 2 < radius**2).float()
    return torch.stack([torch.ones_like(alpha), torch.zeros_like(alpha), torch.zeros_like(alpha), alpha])


def test_latents_lose_nothing() -> None:
    rgb = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = to_latents(rgb)
    assert latents.shape == (2, 5, 48, 4, 4)
    assert torch.allclose(to_pixels(latents), rgb, atol=1e-6)


def test_a_picture_is_put_over_white_and_made_smaller_by_area() -> None:
    picture = disc()
    made = prepare(picture, 32)
    over = picture[:3] * picture[3] + 1 - picture[3]
    assert torch.allclose(made, over.unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2)), atol=1e-6)


def test_fitting_forgets_where_and_how_large_the_object_was() -> None:
    first = prepare(disc(120, 200, 25, 40, 150), 32, fit=True)
    second = prepare(disc(300, 240, 50, 200, 100), 32, fit=True)
    assert float((first - second).abs().mean()) < 0.01
    covered = first[1] < 0.5
    columns = covered.any(0).nonzero()[:, 0]
    assert abs(float(columns.float().mean()) - 15.5) <= 0.5
    assert abs(len(columns) / 32 - 0.7) < 0.05


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.ones(3, 64, 64), "no picture of four channels"),
        (torch.zeros(4, 64, 64), "nothing in it, its alpha is 0"),
        (torch.ones(4, 64, 64), "no background, its alpha is 1 everywhere"),
        (disc(64, 80), "80x64 pixels are not square"),
        (disc(16, 16, 5, 8, 8), "16x16 pixels are too few"),
        (disc() * torch.nan, "not finite"),
    ],
)
def test_pictures_nothing_can_be_made_of_are_refused(picture: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(picture, 32)


def test_files_without_alpha_and_files_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.png")
    with pytest.raises(UserError, match=r"plain\.png: no alpha; cut the object out"):
        read_picture(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"text\.png: cannot be read as a picture"):
        read_picture(tmp_path / "text.png")
    with pytest.raises(UserError, match=r"none\.png: no such file"):
        read_picture(tmp_path / "none.png")
    values = (disc().movedim(0, -1) * 255).round().byte().numpy()
    Image.fromarray(values, "RGBA").save(tmp_path / "disc.png")
    assert torch.allclose(read_picture(tmp_path / "disc.png"), disc(), atol=1 / 255)


def model(size: int = 16, views: int = 4) -> ImageTo3D:
    network = OrbitUNet.make(48, size // 4, views, widths=(16, 16), heads=2)
    decoder = GaussianDecoder(DecoderConfig(width=16, layers=1, heads=2))
    student = NetworkDenoiser(network.eval(), PROCESS, KarrasV())
    return ImageTo3D(student, StepPlan((80.0, 2.0)), decoder.eval(), OrbitGeometry(size=size), views)


def test_a_model_saved_and_loaded_makes_the_same_gaussians(tmp_path: Path) -> None:
    made, picture = model(), prepare(disc(), 16)[None]
    made.save(tmp_path)
    again = load_image_to_3d(str(tmp_path))
    assert again.plan == made.plan
    assert torch.allclose(again.gaussians(picture)[0].means, made.gaussians(picture)[0].means, atol=1e-6)
    made.save(tmp_path / "half", half=True)
    halved = load_image_to_3d(str(tmp_path / "half")).gaussians(picture)[0]
    assert torch.allclose(halved.means, made.gaussians(picture)[0].means, atol=0.05)


def test_wrong_settings_are_one_line() -> None:
    made, picture = model(), prepare(disc(), 16)[None]
    assert len(made.gaussians(picture)[0]) == 4 * 8 * 8
    with pytest.raises(UserError, match="elevation 95: must lie between"):
        generate(disc(), model=model(), elevation_deg=95)
    with pytest.raises(UserError, match="no model 'nowhere' from pictures to 3D"):
        load_image_to_3d("nowhere")
