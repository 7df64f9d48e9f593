"""Networks of orbits: joint attention, angles, files; SVD's spatio-temporal U-Net with every frame told its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.core.models.files import quiet
from fewstep.core.models.tiny import tiny_vae
from fewstep.core.rng import Rng
from fewstep.threed.orbit.convention import AUGMENTATION, orbit_condition
from fewstep.threed.orbit.network import OrbitUNet, view_angles
from fewstep.threed.orbit.video import VideoBackbone, VideoOrbits


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(views: int = 3) -> OrbitUNet:
    return OrbitUNet.make(8, 4, views, widths=(16, 16), heads=2).eval()


def condition(batch: int = 2, views: int = 3) -> dict[str, Tensor]:
    return orbit_condition(torch.linspace(0, 20, batch), views) | {"image": normal(batch, 8, 4, 4, seed=1)}


def test_views_of_a_sample_see_each_other_and_samples_do_not() -> None:
    network, x, cond = small(), normal(2, 3, 8, 4, 4), condition()
    with torch.no_grad():
        out = network(x, torch.zeros(2), cond)
        changed = x.clone()
        changed[0, 2] += 1
        again = network(changed, torch.zeros(2), cond)
    assert out.shape == x.shape
    assert not torch.allclose(out[0, 0], again[0, 0], atol=1e-5)
    assert torch.allclose(out[1], again[1], atol=1e-5)


def test_angles_and_picture_and_noise_level_are_read() -> None:
    network, x, cond = small(), normal(2, 3, 8, 4, 4), condition()
    with torch.no_grad():
        out = network(x, torch.zeros(2), cond)
        for name in ("image", "azimuth", "polar"):
            other = network(x, torch.zeros(2), cond | {name: cond[name] + 0.3})
            assert not torch.allclose(out, other, atol=1e-5), name
        assert not torch.allclose(out, network(x, torch.ones(2), cond), atol=1e-5)
        turned = network(x, torch.zeros(2), cond | {"azimuth": cond["azimuth"] + 2 * torch.pi})
    assert torch.allclose(out, turned, atol=1e-4)
    assert not network.null(cond)["image"].any()
    assert view_angles(cond["azimuth"], cond["polar"]).shape == (2, 3, 8)


def test_a_network_saved_is_the_same_and_other_numbers_of_views_are_refused(tmp_path: Path) -> None:
    network, x, cond = small(), normal(2, 3, 8, 4, 4), condition()
    network.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(OrbitUNet.load(tmp_path)(x, torch.zeros(2), cond), network(x, torch.zeros(2), cond))
    with pytest.raises(UserError, match="4 views, and this network was made for 3"):
        network(normal(2, 4, 8, 4, 4), torch.zeros(2), cond)
    (tmp_path / "fewstep_views.json").write_text('{"views": "many"}')
    with pytest.raises(UserError, match="'views' must be a number of views"):
        OrbitUNet.load(tmp_path)
    with pytest.raises(UserError, match=r"no fewstep_views\.json"):
        OrbitUNet.load(tmp_path / "none")


def tiny_svd() -> Any:
    from diffusers import UNetSpatioTemporalConditionModel

    with Rng(0, 0, ()).network_noise("svd"):
        return UNetSpatioTemporalConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            block_out_channels=(64, 64),  # norms of 32 groups: single channels would lose what they are told
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            layers_per_block=1,
            cross_attention_dim=16,
            num_attention_heads=2,
            num_frames=3,
        ).eval()


def frames() -> tuple[Tensor, dict[str, Tensor]]:
    cond = orbit_condition(torch.tensor([10.0]), 3)
    cond |= {"image": normal(1, 4, 8, 8, seed=1), "image_embeds": normal(1, 1, 16, seed=2)}
    return normal(1, 3, 4, 8, 8), cond


def test_frames_with_equal_angles_are_diffusers_own_prediction() -> None:
    unet = tiny_svd()
    x, cond = frames()
    cond["azimuth"] = torch.full((1, 3), 0.7)
    told = torch.tensor([[AUGMENTATION, float(cond["polar"][0, 0]), 0.7]])
    joined = torch.cat([x, cond["image"][:, None].expand(-1, 3, -1, -1, -1)], 2)
    with torch.no_grad():
        theirs = unet(joined, torch.tensor([0.3]), cond["image_embeds"], told).sample
        ours = VideoBackbone(unet)(x, torch.tensor([0.3]), cond)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_where_frames_do_not_mix_each_is_predicted_as_in_a_clip_of_its_own_angles() -> None:
    unet = tiny_svd()
    for part in unet.modules():
        if type(part).__name__ == "AlphaBlender":  # nothing of the branch over time
            part.mix_factor.data.fill_(-50.0 if part.switch_spatial_to_temporal_mix else 50.0)
    for weight in unet.add_embedding.parameters():
        weight.data.mul_(10)  # random weights hardly tell angles apart
    network = VideoBackbone(unet)
    x, cond = frames()
    with torch.no_grad():
        out = network(x, torch.tensor([0.3]), cond)
        for frame in range(3):
            alike = cond | {"azimuth": cond["azimuth"][:, frame : frame + 1].expand(-1, 3)}
            same = network(x, torch.tensor([0.3]), alike)
            assert torch.allclose(out[:, frame], same[:, frame], atol=1e-5), frame
            assert not torch.allclose(out[:, frame - 1], same[:, frame - 1], atol=1e-5), frame


def svd_folder(folder: Path) -> Path:
    from diffusers import EulerDiscreteScheduler
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with quiet():
        tiny_svd().save_pretrained(folder / "unet", safe_serialization=True)
        EulerDiscreteScheduler(
            prediction_type="v_prediction", timestep_type="continuous", sigma_min=0.002, sigma_max=700.0
        ).save_pretrained(folder / "scheduler")
        tiny_vae().save_pretrained(folder / "vae", safe_serialization=True)
        looks = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
            projection_dim=16,
        )
        CLIPVisionModelWithProjection(looks).save_pretrained(folder / "image_encoder", safe_serialization=True)
    parts = {
        "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    }
    index = {"_class_name": "StableVideoDiffusionPipeline", **parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_stock_folder_is_read_and_conditions_pictures(tmp_path: Path) -> None:
    orbits = VideoOrbits.open(svd_folder(tmp_path))
    denoiser = orbits.denoiser()
    assert (denoiser.process.t_min, denoiser.process.t_max) == (0.002, 700.0)
    rgb = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cond = orbits.condition(rgb, orbits.vae()) | orbit_condition(torch.tensor([10.0]), 3)
    assert cond["image"].shape == (1, 4, 8, 8)
    assert cond["image_embeds"].shape == (1, 1, 16)
    with torch.no_grad():
        x0 = denoiser.x0(normal(1, 3, 4, 8, 8), torch.tensor([2.0]), cond)
        null = denoiser.x0(normal(1, 3, 4, 8, 8), torch.tensor([2.0]), denoiser.null(cond))
    assert x0.shape == (1, 3, 4, 8, 8)
    assert not torch.allclose(x0, null)


def test_folders_of_other_kinds_are_refused(tmp_path: Path) -> None:
    parts = {"unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableVideoDiffusionPipeline", **parts}))
    with pytest.raises(UserError, match="its unet is UNet2DConditionModel; orbits need a UNetSpatioTemporal"):
        VideoOrbits.open(tmp_path)
    custom = {"unet": ["sv3d", "SV3DUNet"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableVideoDiffusionPipeline", **custom}))
    with pytest.raises(UserError, match="custom code is never run"):
        VideoOrbits.open(tmp_path)
