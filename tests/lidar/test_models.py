"""LiDiff's networks: their exact sizes, and what must not change what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided
from fewstep.lidar.models.backbone import LidarBackbone, time_features
from fewstep.lidar.models.files import load_denoiser, load_refiner, save_denoiser, save_refiner
from fewstep.lidar.models.refiner import Refiner
from fewstep.lidar.models.unet import NetworkConfig
from fewstep.lidar.process import scene_denoiser
from fewstep.lidar.sparse.layers import VoxelNorm

SMALL = NetworkConfig(resolution=0.25, channels=(4, 4, 6, 8, 10), up_channels=(8, 6, 4, 4), time_width=8)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def lively(module: nn.Module) -> nn.Module:
    """Give norms statistics other than those of unit noise, so that eval mode is not the identity."""
    generator = torch.Generator().manual_seed(5)
    for part in module.modules():
        if isinstance(part, VoxelNorm):
            part.running_mean.copy_(0.3 * torch.randn(part.num_features, generator=generator))
            part.running_var.copy_(0.5 + torch.rand(part.num_features, generator=generator))
    return module


@pytest.fixture(scope="module")
def backbone() -> LidarBackbone:
    made = LidarBackbone(SMALL, seed=1).double().eval()
    lively(made)
    return made


def clouds(n: int = 2, points: int = 300, seed: int = 0) -> tuple[Tensor, Tensor, Cond]:
    generator = torch.Generator().manual_seed(seed)
    scan = torch.randn(n, points // 10, 3, generator=generator, dtype=torch.float64) * torch.tensor([6.0, 6.0, 0.5])
    x = scan.repeat(1, 10, 1) + torch.randn(n, points, 3, generator=generator, dtype=torch.float64)
    return x, torch.tensor([3.0, 700.0, 999.0][:n], dtype=torch.float64), {"scan": scan}


def test_parameter_counts_to_the_unit() -> None:
    with torch.device("meta"):
        released = LidarBackbone(NetworkConfig())
        refiner = Refiner(NetworkConfig())
    assert count(released.encoder) == 8_497_952
    assert count(released.unet) == 24_174_515
    assert count(released) == 32_672_467
    assert count(refiner) == 21_722_926


def test_time_embedding_is_sines_then_cosines_of_unscaled_indices() -> None:
    start = time_features(torch.zeros(1), 96)
    assert torch.equal(start, torch.cat([torch.zeros(1, 48), torch.ones(1, 48)], 1).double())
    at = time_features(torch.tensor([7.0]), 96)[0]
    for i in (0, 1, 47):
        angle = torch.tensor(7.0 * 1e4 ** (-i / 47), dtype=torch.float64)
        torch.testing.assert_close(at[i], angle.sin())
        torch.testing.assert_close(at[48 + i], angle.cos())


@torch.no_grad()
def test_order_of_points_is_the_order_of_outputs(backbone: LidarBackbone) -> None:
    x, t, cond = clouds()
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(1))
    scan = cond["scan"][:, torch.randperm(30, generator=torch.Generator().manual_seed(2))]
    torch.testing.assert_close(
        backbone(x[:, order], t, {"scan": scan}), backbone(x, t, cond)[:, order], rtol=0, atol=1e-10
    )


@torch.no_grad()
def test_points_of_a_voxel_share_their_noise(backbone: LidarBackbone) -> None:
    x, t, cond = clouds()
    x[:, 1] = x[:, 0] = (x[:, 0] / 0.25).round() * 0.25
    x[:, 1] += 0.05
    out = backbone(x, t, cond)
    assert torch.equal(out[:, 0], out[:, 1])
    assert not torch.equal(out[:, 0], out[:, 2])


@torch.no_grad()
def test_a_batch_is_its_scenes_apart(backbone: LidarBackbone) -> None:
    x, t, cond = clouds()
    together = backbone(x, t, cond)
    for i in (0, 1):
        alone = backbone(x[i : i + 1], t[i : i + 1], {"scan": cond["scan"][i : i + 1]})
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-10)


@torch.no_grad()
def test_encoding_once_is_encoding_every_time(backbone: LidarBackbone) -> None:
    x, t, cond = clouds()
    cond = {"scan": cond["scan"].clone()}
    cond["scan"][1, 5:] = cond["scan"][1, :1]  # scans of different size, so that padding is there
    once = backbone.encode(cond)
    assert "scan" not in once
    torch.testing.assert_close(backbone(x, t, once), backbone(x, t, cond), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        backbone(x, t, backbone.null(once)), backbone(x, t, backbone.null(cond)), rtol=0, atol=1e-10
    )
    assert backbone.encode(once) is once
    denoiser = scene_denoiser(backbone)
    for scale in (0.0, 1.0, 3.0):
        torch.testing.assert_close(
            Guided(denoiser, scale).eps(x, t, once | {"anchor": x}),
            denoiser.eps(x, t, denoiser.null(cond)) * (1 - scale) + scale * denoiser.eps(x, t, cond),
            rtol=0,
            atol=1e-9,
        )


@torch.no_grad()
def test_the_scan_matters_and_its_absence_is_a_voxel_at_the_origin(backbone: LidarBackbone) -> None:
    x, t, cond = clouds()
    moved = {"scan": cond["scan"] + torch.tensor([0.5, 0.0, 0.0])}
    assert (backbone(x, t, moved) - backbone(x, t, cond)).abs().max() > 1e-6
    one = {"scan": torch.zeros(2, 1, 3, dtype=torch.float64)}
    torch.testing.assert_close(backbone(x, t, one), backbone(x, t, backbone.null(cond)), rtol=0, atol=1e-12)
    mixed = {"scan": torch.stack([cond["scan"][0], torch.zeros_like(cond["scan"][1])])}
    out = backbone(x, t, mixed)
    torch.testing.assert_close(out[0], backbone(x, t, cond)[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(out[1], backbone(x, t, backbone.null(cond))[1], rtol=0, atol=1e-10)


def test_missing_scans_leave_no_trace_in_the_statistics() -> None:
    made = LidarBackbone(SMALL, seed=1).train()
    lively(made)
    x, t, cond = clouds()
    before = {k: v.clone() for k, v in made.encoder.state_dict().items()}
    out = made(x.float(), t.float(), made.null({"scan": cond["scan"].float()}))
    out.square().mean().backward()
    assert all(torch.equal(v, before[k]) for k, v in made.encoder.state_dict().items())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in made.encoder.parameters())
    made(x.float(), t.float(), {"scan": cond["scan"].float()})
    assert any(not torch.equal(v, before[k]) for k, v in made.encoder.state_dict().items())


def test_gradients_reach_points_through_features_only(backbone: LidarBackbone) -> None:
    x, t, cond = clouds(1)
    x.requires_grad_(True)
    (grad,) = torch.autograd.grad(backbone(x, t[:1], cond)[0, :5].sum(), x)
    assert grad.isfinite().all()
    assert grad.abs().max() > 0
    step = 1e-6  # inside its voxel the output is smooth in a point; the voxel's mean moves
    with torch.no_grad():
        inner = ((x / 0.25) - (x / 0.25).round()).abs().amax(2) < 0.45
        index = int((inner[0] & (grad[0].abs().amax(1) > 1e-9)).nonzero()[0])
        moved = x.clone()
        moved[0, index, 0] += step
        difference = (backbone(moved, t[:1], cond)[0, :5].sum() - backbone(x, t[:1], cond)[0, :5].sum()) / step
    assert difference.item() == pytest.approx(grad[0, index, 0].item(), rel=1e-3, abs=1e-7)


def test_extra_inputs_change_nothing_until_trained(backbone: LidarBackbone) -> None:
    x, t, cond = clouds()
    told = backbone.with_extras(("guidance",), seed=3).double()
    given = dict(cond) | {"guidance": torch.tensor([1.0, 6.0], dtype=torch.float64)}
    assert torch.equal(told(x, t, given), backbone(x, t, cond))
    with pytest.raises(UserError, match="guidance"):
        told(x, t, cond)
    assert backbone.extra_inputs is None


def test_refined_points_stay_within_a_metre() -> None:
    refiner = Refiner(SMALL, up_factor=3, seed=2)
    with torch.no_grad():
        refiner.unet.head[2].weight.mul_(100)
    x, _, _ = clouds()
    out = refiner(x.float()).view(2, 300, 3, 3)
    offsets = out - x.float()[:, :, None]
    assert offsets.abs().max() <= 1 + 1e-5
    assert offsets.abs().max() > 0.9


def test_networks_survive_their_files(tmp_path: Path, backbone: LidarBackbone) -> None:
    x, t, cond = clouds()
    save_denoiser(backbone.float(), tmp_path / "d")
    again = load_denoiser(tmp_path / "d").double()
    torch.testing.assert_close(again(x, t, cond), backbone.double()(x, t, cond))
    refiner = Refiner(SMALL, up_factor=2, seed=2).eval()
    save_refiner(refiner, tmp_path / "r", half=True)
    torch.testing.assert_close(load_refiner(tmp_path / "r")(x.float()), refiner(x.float()), rtol=0, atol=0.02)


def test_files_that_disagree_are_refused_in_a_line(tmp_path: Path) -> None:
    save_denoiser(LidarBackbone(SMALL), tmp_path / "d")
    with pytest.raises(UserError, match="a refiner is wanted"):
        load_refiner(tmp_path / "d")
    weights = tmp_path / "d" / "model.safetensors"
    whole = weights.read_bytes()
    for damage in (whole[:100], b"", b"x" * 64):
        weights.write_bytes(damage)
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_denoiser(tmp_path / "d")
    weights.write_bytes(whole)
    description = (tmp_path / "d" / "model.json").read_text()
    (tmp_path / "d" / "model.json").write_text(description.replace('"time_width": 8', '"time_width": 10'))
    with pytest.raises(UserError, match=r"is not what model\.json describes"):
        load_denoiser(tmp_path / "d")
    (tmp_path / "d" / "model.json").write_text(description.replace('"time_width": 8', '"time_width": "x"'))
    with pytest.raises(UserError, match=r"model\.json"):
        load_denoiser(tmp_path / "d")
    with pytest.raises(UserError, match=r"no model\.json"):
        load_denoiser(tmp_path)
