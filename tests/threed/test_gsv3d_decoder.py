"""The decoder to Gaussians: its 14 numbers, splats at a known depth, tokens of all views, and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from threed.orbit_bed import RADIUS, BallDecoder, photographs
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.threed.cameras import Camera
from fewstep.threed.gaussians.harmonics import to_rgb
from fewstep.threed.gaussians.ply import read_ply, write_ply
from fewstep.threed.metrics.pictures import psnr
from fewstep.threed.orbit.convention import orbit_condition
from fewstep.threed.orbit.decoder import DecoderConfig, GaussianDecoder, activate, pluecker
from fewstep.threed.orbit.pixels import to_latents
from fewstep.threed.orbit.supervision import OrbitGeometry, render_clouds

GEOMETRY = OrbitGeometry(size=16)
SMALL = DecoderConfig(width=16, layers=1, heads=2)


def cameras(views: int = 3, batch: int = 1, size: int = 16) -> Camera:
    cond = orbit_condition(torch.full((batch,), 15.0), views)
    return OrbitGeometry(size=size).cameras(cond["azimuth"], cond["polar"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_numbers_are_split_and_activated_as_lgm_does_and_survive_a_ply(tmp_path: Path) -> None:
    raw = 2 * normal(3, 4, 4, 14)
    cloud = activate(raw, cameras(), DecoderConfig(position="world"))
    flat = raw.reshape(-1, 14)
    write_ply(tmp_path / "cloud.ply", cloud)
    for found in (cloud, read_ply(tmp_path / "cloud.ply")):
        assert torch.allclose(found.means, flat[:, :3].clamp(-1, 1), atol=1e-5)
        assert torch.allclose(found.opacities, flat[:, 3].sigmoid(), atol=1e-5)
        assert torch.allclose(found.scales, 0.1 * torch.nn.functional.softplus(flat[:, 4:7]), atol=1e-5)
        assert torch.allclose(found.rotations, flat[:, 7:11] / flat[:, 7:11].norm(dim=-1, keepdim=True), atol=1e-5)
        assert torch.allclose(to_rgb(found.harmonics[:, 0]), 0.5 * flat[:, 11:].tanh() + 0.5, atol=1e-5)


def test_depths_put_splats_onto_the_rays_of_their_pixels_and_shifts_stay_within_a_pixel() -> None:
    camera, raw = cameras(), torch.zeros(3, 8, 8, 14)
    raw[..., 0] = normal(3, 8, 8)
    means = activate(raw, camera, SMALL).means.reshape(3, 64, 3)
    seen = camera.resized(8, 8)
    centres = torch.cartesian_prod(torch.arange(8) + 0.5, torch.arange(8) + 0.5).flip(-1)
    for view in range(3):
        at, _ = seen.select(view, view + 1).project(means[view])
        assert torch.allclose(at[0], centres, atol=1e-3)
        far = (means[view] - camera.position[view]).norm(dim=-1)
        expected = SMALL.near + (SMALL.far - SMALL.near) * raw[view, ..., 0].sigmoid().flatten()
        assert torch.allclose(far, expected, atol=1e-4)
    raw[..., 1], raw[..., 2] = 50.0, -50.0
    at, _ = seen.select(0, 1).project(activate(raw, camera, SMALL).means.reshape(3, 64, 3)[0])
    # the ray of a pixel off the middle is longer than its depth: a shift is a little less than a pixel
    assert torch.allclose(at[0] - centres, torch.tensor([1.0, -1.0]).expand(64, 2), atol=0.05)


def test_a_ray_has_the_same_pluecker_coordinates_from_any_of_its_points() -> None:
    camera = cameras()
    rays = pluecker(camera)
    origins, directions = camera.rays()
    moved = torch.linalg.cross(origins + 1.7 * directions, directions)
    assert torch.allclose(rays[..., :3], moved, atol=1e-5)
    assert torch.allclose((rays[..., :3] * rays[..., 3:]).sum(-1), torch.zeros(3, 16, 16), atol=1e-6)


def test_splats_at_the_true_depth_render_the_orbit_they_were_made_of() -> None:
    geometry = OrbitGeometry(size=64)
    cond = orbit_condition(torch.tensor([15.0]), 8)
    camera = geometry.cameras(cond["azimuth"], cond["polar"])
    true = photographs(camera)
    (cloud,) = BallDecoder(geometry).gaussians(to_latents(true.rgb), camera)
    shown = [1, 4]
    some = Camera(camera.world_to_camera[shown], camera.intrinsics[shown], 64, 64)
    made = render_clouds([cloud], some)
    assert float(psnr(made.rgb[0], true.rgb[0, shown]).min()) > 25
    # inside: four pixels or more from the silhouette
    inside = torch.nn.functional.max_pool2d(1 - true.alpha[0, shown], 9, 1, 4) == 0
    off = (made.depth[0] - true.depth[0, shown]).abs()[inside]
    assert float(off.mean()) < 0.01 * RADIUS


def test_every_view_attends_to_all_and_a_subset_gives_fewer_splats() -> None:
    decoder = GaussianDecoder(SMALL)
    latents, camera = normal(2, 3, 48, 4, 4), cameras(batch=2)
    raw = decoder(latents, camera)
    assert raw.shape == (2, 3, 8, 8, 14)
    assert raw.dtype == torch.float32
    changed = latents.clone()
    changed[0, 2] += 1
    again = decoder(changed, camera)
    assert not torch.allclose(raw[0, 0], again[0, 0], atol=1e-5)  # another view
    assert torch.allclose(raw[1], again[1], atol=1e-6)  # another sample
    chosen = GaussianDecoder(DecoderConfig(width=16, layers=1, heads=2, views=(0, 2))).gaussians(latents, camera)
    assert [len(cloud) for cloud in chosen] == [128, 128]
    whole = GaussianDecoder(SMALL).gaussians(latents, camera)
    assert torch.equal(chosen[1].means, torch.cat([whole[1].means[:64], whole[1].means[128:]]))


def test_the_head_is_in_single_precision_inside_autocast() -> None:
    decoder, camera = GaussianDecoder(SMALL), cameras()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = decoder(normal(1, 3, 48, 4, 4), camera)
    assert raw.dtype == torch.float32


def test_a_saved_decoder_is_the_same_and_what_is_none_is_refused(tmp_path: Path) -> None:
    decoder, latents, camera = GaussianDecoder(SMALL, seed=3), normal(1, 3, 48, 4, 4), cameras()
    decoder.save(tmp_path)
    assert torch.equal(GaussianDecoder.load(tmp_path)(latents, camera), decoder.eval()(latents, camera))
    (tmp_path / "config.json").write_text('{"width": 32}')
    with pytest.raises(UserError, match="cannot be read as a decoder of Gaussians"):
        GaussianDecoder.load(tmp_path)
    with pytest.raises(UserError, match="latents of 12 channels, the decoder 48"):
        decoder(normal(1, 3, 12, 4, 4), camera)
    with pytest.raises(UserError, match="3 cameras for 1 x 4 views"):
        decoder(normal(1, 4, 48, 4, 4), camera)
