"""Teachers of every kind through the command line: Stable Diffusion, diffusers U-Nets, Swin on latents, decoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from restoration.model_bed import restoration

from fewstep.core.models.tiny import seeded, tiny_vae
from fewstep.restoration.data import photos
from fewstep.restoration.model import load_model
from fewstep.restoration.restorer import Restorer

PHOTOS = ("domain.data.source=photos", "domain.data.path=", "domain.data.degradation=bicubic-matlab")
QUICK = (
    "train.steps=2", "train.batch=2", "train.eval_every=0", "train.preview_every=0", "train.checkpoint_every=0",
    "train.precision=fp32", "optim.warmup=0",
)  # fmt: skip
SWIN = (
    "domain.network.kind=swin", "domain.network.swin.image_size=16", "domain.network.swin.lq_size=16",
    "domain.network.swin.model_channels=32", "domain.network.swin.channel_mult=[1,1]",
    "domain.network.swin.num_res_blocks=1", "domain.network.swin.attention_resolutions=[16]",
    "domain.network.swin.swin_embed_dim=32", "domain.network.swin.num_head_channels=16",
    "domain.network.swin.window_size=4",
)  # fmt: skip


def picture(height: int = 12, width: int = 20) -> torch.Tensor:
    """Return a part of a photo, "1 3 h w" in [0, 1]."""
    return photos.photo("coffee")[None, :, 50 : 50 + height, 60 : 60 + width]


def restored(model: Path, scale: int = 4) -> torch.Tensor:
    made = Restorer.load(str(model))(picture(), scale)
    assert made.shape == (1, 3, 12 * scale, 20 * scale)
    assert bool(made.isfinite().all())
    return made


def test_stable_diffusion_is_trained_distilled_and_loads_in_stock_diffusers(tmp_path: Path) -> None:
    from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

    teacher = tmp_path / "teacher"
    settings = (*PHOTOS, *QUICK, "domain.data.crop=32", "train.sample_steps=[2]")
    assert restoration("train", "--config", "teacher-stable", "--out", teacher, *settings) == 0
    assert restoration("export", teacher) == 0
    unet = UNet2DConditionModel.from_pretrained(teacher / "export" / "unet")
    assert (unet.config.in_channels, unet.config.out_channels) == (8, 4)
    settings = (*PHOTOS, *QUICK, "domain.data.crop=32", f"domain.teacher={teacher / 'export'}")
    for config, own in (("vsd-stable", ()), ("tad-sr-stable", ("recipe.teacher_steps=2",))):
        student = tmp_path / config
        assert restoration("train", "--config", config, "--out", student, *settings, *own) == 0
        assert restoration("export", student) == 0
        pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(student / "export", use_safetensors=True)
        assert pipe.unet.config.in_channels == 8
        model = load_model(str(student / "export"))
        assert (model.scales, len(model.plan.times if model.plan else ())) == ((4,), 1)
        restored(student)


def test_a_diffusers_unet_loads_in_stock_diffusers(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    run = tmp_path / "run"
    settings = (*QUICK, "domain.data.crop=32", "domain.network.widths=[8,16]", "train.sample_steps=[2]")
    assert restoration("train", "--config", "teacher-unet-photos", "--out", run, *settings) == 0
    assert restoration("export", run) == 0
    unet = UNet2DModel.from_pretrained(run / "export" / "unet")
    model = load_model(str(run))
    x, y = torch.randn(1, 48, 8, 8), torch.randn(1, 48, 8, 8)
    stock = unet(torch.cat([x, y], 1), torch.tensor([7.0])).sample
    ours = model.denoiser.backbone(x, torch.tensor([7.0]), {"anchor": y})
    assert torch.allclose(stock, ours, atol=1e-5)
    made = Restorer(model, name="unet", steps=2)(picture(17, 23), 4)  # sides that cannot be halved
    assert made.shape == (1, 3, 68, 92)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random autoencoder of factor 2 in a folder."""
    folder = tmp_path_factory.mktemp("autoencoder") / "kl"
    with seeded(1):
        tiny_vae().save_pretrained(folder, safe_serialization=True)
    return folder


def test_latents_are_trained_on_and_their_decoder_is_tuned(tmp_path: Path, autoencoder: Path) -> None:
    teacher, student, decoder = (tmp_path / name for name in ("teacher", "student", "decoder"))
    small = ("domain.data.crop=32", "domain.network.local.widths=[8,12]", "domain.network.local.blocks=1")
    space = ("domain.space.kind=kl", f"domain.space.path={autoencoder}", "domain.space.factor=2")
    settings = (*QUICK, *small, *space, "domain.scales=[4]", "train.sample_steps=[2]", "domain.process.steps=4")
    assert restoration("train", "--config", "teacher-photos", "--out", teacher, *settings) == 0
    assert restoration("export", teacher) == 0
    settings = (*QUICK, "domain.data.crop=32", "domain.scales=[4]", f"domain.teacher={teacher}", "domain.noise=0.25")
    assert restoration("train", "--config", "sinsr-photos", "--out", student, *settings) == 0
    assert restoration("export", student) == 0
    before = restored(student)
    settings = (*QUICK, "domain.data.crop=32", f"domain.teacher={student}", "optim.lr=1e-2")
    assert restoration("train", "--config", "decoder-latents", "--out", decoder, *settings) == 0
    assert restoration("export", decoder) == 0
    assert not torch.allclose(restored(decoder), before, atol=1e-3)
    models = [load_model(str(run)) for run in (student, decoder)]
    assert [model.noise for model in models] == [0.25, 0.25]
    networks = [model.denoiser.backbone.state_dict() for model in models]
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


def test_a_decoder_needs_latents_a_student_and_its_own_recipe(tmp_path: Path, autoencoder: Path, capsys) -> None:
    out = ("--out", tmp_path / "run", *QUICK, "domain.data.crop=24")
    assert restoration("train", "--config", "decoder-latents", *out, "domain.teacher=photos") == 2
    assert "is no student" in capsys.readouterr().err
    assert restoration("train", "--config", "decoder-latents", *out, "domain.teacher=photos-student") == 2
    assert "no decoder to tune" in capsys.readouterr().err
    assert restoration("train", "--config", "sinsr-photos", *out, "domain.student=decoder") == 2
    assert "recipe 'decoder'" in capsys.readouterr().err


def test_swin_on_latents_is_trained_and_restores_any_size(tmp_path: Path) -> None:
    from diffusers import VQModel

    with seeded(0):
        made = VQModel(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            num_vq_embeddings=32,
            mid_block_add_attention=False,
        )
        made.save_pretrained(tmp_path / "vq", safe_serialization=True)
    run = tmp_path / "run"
    settings = (*PHOTOS, *QUICK, *SWIN, "domain.data.crop=64", f"domain.space.path={tmp_path / 'vq'}")
    assert restoration("train", "--config", "teacher-resshift", "--out", run, *settings, "train.sample_steps=[2]") == 0
    assert restoration("export", run) == 0
    assert (run / "export" / "autoencoder" / "config.json").is_file()
    assert Restorer.load(str(run)).steps == 15
    made = Restorer.load(str(run), steps=2)(picture(), 4)
    assert made.shape == (1, 3, 48, 80)
    assert bool(made.isfinite().all())


def test_prepared_targets_are_trained_on(tmp_path: Path, capsys) -> None:
    targets, run = tmp_path / "targets", tmp_path / "run"
    data = ("domain.data.crop=24", "domain.scales=[4]")
    assert restoration("prepare-targets", "--out", targets, "-n", "6", "--batch", "3", *data) == 0
    assert "recipe.target=prepared" in capsys.readouterr().out
    settings = (*QUICK, *data, f"domain.targets={targets}")
    assert restoration("train", "--config", "tad-sr-photos", "--out", run, *settings, "recipe.target=prepared") == 0
    assert restoration("train", "--config", "tad-sr-photos", "--out", tmp_path / "other", *settings) == 2
    assert "set recipe.target to prepared" in capsys.readouterr().err
