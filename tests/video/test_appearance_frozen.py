"""Frozen image networks under the discriminator: what they see, what learns, and folders that do not do."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from core.tiny_loop import mlp_teacher
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from fewstep.core.data.source import EncodedTexts, TextSource
from fewstep.core.errors import UserError
from fewstep.core.models.tiny import CHARACTERS, clip_tokenizer, seeded
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.planning.plan import plan
from fewstep.core.process import VP
from fewstep.core.recipe import Actors, Batch
from fewstep.core.rng import Rng
from fewstep.core.training.config import load_config
from fewstep.video.appearance.augment import crop_frames
from fewstep.video.appearance.captions import CaptionEncoder, ToldCaptions, centred
from fewstep.video.appearance.discriminator import FrameDiscriminatorConfig
from fewstep.video.appearance.frozen import IMAGENET, frozen_backbone
from fewstep.video.domain import DOMAIN
from fewstep.video.recipes.appearance import Appearance, AppearanceConfig, frame_discriminator
from fewstep.video.recipes.motion_consistency import MotionConsistency, MotionConsistencyConfig

HEADS = FrameDiscriminatorConfig(head_width=8)
NAMES = ("dinov2", "clip")


@cache
def models() -> dict:
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

    small = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 32}
    spell = {"vocab_size": 2 * len(CHARACTERS) + 2, "max_position_embeddings": 16, "projection_dim": 12}
    ends = {"bos_token_id": 2 * len(CHARACTERS), "eos_token_id": 2 * len(CHARACTERS) + 1, "pad_token_id": 0}
    with seeded(0):
        vision = {**small, "image_size": 32, "patch_size": 8, "projection_dim": 12}
        clip = CLIPConfig(text_config={**small, **spell, **ends}, vision_config=vision, projection_dim=12)
        dino = Dinov2Config(**{**small, "mlp_ratio": 2}, image_size=56, patch_size=14)
        return {"dinov2": Dinov2Model(dino).eval(), "clip": CLIPModel(clip).eval()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    for name, model in models().items():
        model.save_pretrained(root / name)
    clip_tokenizer().save_pretrained(root / "clip")
    return {name: str(root / name) for name in NAMES}


def frames(n: int = 3, side: int = 40, seed: int = 0) -> torch.Tensor:
    return Rng(seed, 0, tuple(range(n))).normal("frames", (3, side, side)).tanh()


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_patch_tokens_after_the_blocks(folders, name):
    backbone = frozen_backbone(name, folders[name], (1, 3))
    seen = backbone.prepared(frames())
    model = models()[name] if name == "dinov2" else models()[name].vision_model
    with torch.no_grad():
        states = model(seen, output_hidden_states=True).hidden_states
        found = backbone(frames())
    assert backbone.channels == (16, 16)
    assert [tuple(x.shape) for x in found] == [(3, 16, 16)] * 2  # 4x4 patches
    for block, x in zip((1, 3), found, strict=True):
        assert_close(x, states[block + 1][:, 1:].transpose(1, 2))


def test_four_blocks_are_spread_evenly(folders):
    assert [name[-1] for name in frozen_backbone("dinov2", folders["dinov2"]).names] == ["0", "1", "2", "4"]
    with pytest.raises(UserError, match=r"\[5\] of 5 blocks"):
        frozen_backbone("clip", folders["clip"], (0, 5))


def test_frames_are_resized_by_area_and_normalised(folders):
    backbone = frozen_backbone("dinov2", folders["dinov2"])
    x = frames(side=112)
    pooled = torch.nn.functional.avg_pool2d(x, 2)
    mean, std = (torch.tensor(value).reshape(1, 3, 1, 1) for value in IMAGENET)
    assert_close(backbone.prepared(x), ((pooled + 1) / 2 - mean) / std)
    assert_close(backbone.prepared(pooled), backbone.prepared(x))
    with pytest.raises(UserError, match="colour"):
        backbone(x[:, :1])


@pytest.mark.parametrize("name", NAMES)
def test_heads_learn_frames_get_gradients_and_the_network_none(folders, name):
    config = AppearanceConfig(backbone=name, backbone_path=folders[name], discriminator=HEADS)
    discriminator, again = (frame_discriminator(config, seed=3).eval() for _ in range(2))
    assert torch.equal(again(frames(2)), discriminator(frames(2)))
    x = frames(4).requires_grad_()
    discriminator.train()
    torch.autograd.backward(discriminator(x).sum())
    assert bool(x.grad.any())
    assert all(bool(p.grad is not None) for p in discriminator.parameters())
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    backbone = discriminator.held[0]
    assert not backbone.training
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


def test_motion_consistency_judges_frames_by_it(folders):
    process, shape = VP.scaled_linear(), (3, 4, 8, 8)
    seen = AppearanceConfig(backbone="dinov2", backbone_path=folders["dinov2"], discriminator=HEADS)
    config = MotionConsistencyConfig(appearance=seen, guidance_scale=1.0, guidance_max=None)
    roles = build_roles(
        mlp_teacher(process, 3 * 4 * 8 * 8), MotionConsistency.role_specs(config), RolesConfig(), 0, shape=shape
    )
    recipe = MotionConsistency(config, Actors(roles, process, shape))
    rng = Rng.for_batch(0, 0, 2)
    images = rng.normal("images", (2, 3, 8, 8)).tanh()
    batch = Batch(2, {"images": images}, rng.normal("x0", shape))
    for phase, learns in (("student", "student"), ("discriminator", "discriminator")):
        terms = recipe.loss(phase, batch, rng.fork(phase), 0)
        torch.autograd.backward(terms.total().sum())
        assert any(p.grad is not None and bool(p.grad.any()) for p in recipe.actors.module(learns).parameters())
    assert "penalty" in terms.terms


@pytest.mark.parametrize(("share", "side"), [(0.0, 80), (1.0, 56)])
def test_frames_and_images_are_cropped_alike_at_a_share_of_the_steps(folders, share, side):
    config = AppearanceConfig(backbone="dinov2", backbone_path=folders["dinov2"], crop_share=share, augment=False)
    appearance = Appearance(config, Actors({"discriminator": frame_discriminator(config, 0)}, VP.scaled_linear(), (3,)))
    rng, x = Rng.for_batch(0, 0, 2), frames(2, 80)
    ours, theirs = (appearance.seen(x, None, stream, rng).frames for stream in ("real", "fake"))
    assert ours.shape == (2, 3, side, side)
    assert torch.equal(ours, theirs)


def test_a_crop_is_a_square_of_the_frame_anywhere_in_it():
    x = torch.arange(6 * 8).reshape(1, 1, 6, 8).float()
    assert torch.equal(crop_frames(x, 4, (0.0, 0.0)), x[:, :, :4, :4])
    assert torch.equal(crop_frames(x, 4, (0.999, 0.999)), x[:, :, 2:, 4:])
    assert crop_frames(x, 6, (0.5, 0.5)) is x
    places = {crop_frames(x, 5, (u, v))[0, 0, 0, 0].item() for u in (0.0, 0.6) for v in (0.0, 0.3, 0.6, 0.9)}
    assert places == {0, 1, 2, 3, 8, 9, 10, 11}


# ---------------------------------------------------------------- folders that do not do


def spoiled(source: str, out: Path, *, config: dict | None = None, weights: str = "") -> str:
    out.mkdir()
    found = json.loads((Path(source) / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(found | (config or {})))
    if weights == "pickled":
        (out / "pytorch_model.bin").write_bytes(b"x")
    elif weights == "cut off":
        (out / "model.safetensors").write_bytes((Path(source) / "model.safetensors").read_bytes()[:200])
    elif weights:
        tensors = load_file(Path(source) / "model.safetensors")
        kept = {name: x for name, x in tensors.items() if weights not in name}
        save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return str(out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"no safetensors there: download"),
        ({"weights": "pickled"}, "pickled"),
        ({"weights": "cut off"}, "cannot be read"),
        ({"weights": "layer.1.norm1"}, r"lacks 2 weights of a Dinov2Model"),
        ({"weights": "none", "config": {"hidden_size": 32}}, "cannot be read"),
        ({"weights": "none", "config": {"model_type": "vit"}}, r"holds a vit, and dinov2"),
        ({"weights": "none", "config": {"auto_map": {}}}, "never run"),
    ],
)
def test_a_folder_without_the_weights_is_one_line(folders, tmp_path, changes, message):
    path = spoiled(folders["dinov2"], tmp_path / "model", **changes)
    with pytest.raises(UserError, match=message) as error:
        frozen_backbone("dinov2", path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("recipe.appearance.backbone_path: ")
    assert path in str(error.value)


def test_a_path_that_is_nothing_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"recipe.appearance.backbone_path '.*' *: no such folder"):
        frozen_backbone("dinov2", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"holds no config.json"):
        frozen_backbone("clip", str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [{"backbone": "clip"}, {"backbone_path": "x"}, {"backbone_blocks": (1,)}, {"crop_share": 1.5}],
)
def test_settings_that_cannot_be(changes):
    with pytest.raises(UserError, match="appearance"):
        AppearanceConfig(**changes)


def bare(folder: str, tmp_path: Path) -> Path:
    """A model's configuration without its weights."""
    (tmp_path / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_shapes_need_no_weights(folders, name, tmp_path):
    known = frozen_backbone(name, folders[name])
    shapes = frozen_backbone(name, str(bare(folders[name], tmp_path)), shapes=True)
    assert [x.shape for x in shapes.parameters()] == [x.shape for x in known.parameters()]
    assert all(x.is_meta for x in shapes.parameters())
    assert (shapes.channels, shapes.side, shapes.names) == (known.channels, known.side, known.names)
    assert [x.shape for x in shapes(frames().to("meta"))] == [x.shape for x in known(frames())]


@pytest.mark.slow
def test_a_plan_counts_the_frozen_network(folders, tmp_path):
    own = frozen_backbone("dinov2", folders["dinov2"])
    data = ["domain.data.source=clips", f"domain.data.path={tmp_path}"]
    folder = bare(folders["dinov2"], tmp_path)
    told = ["recipe.appearance.backbone=dinov2", f"recipe.appearance.backbone_path={folder}"]
    found = plan(load_config("motion-consistency-modelscope-tiny", [*data, *told], domain=DOMAIN))
    role = next(role for role in found.roles if role.name == "discriminator")
    frozen = sum(x.numel() for x in (*own.parameters(), *own.buffers()))
    assert frozen <= role.parameters - role.trained < 1.1 * frozen + 2000  # the heads' spectral norms have vectors


# ---------------------------------------------------------------- captions


def test_captions_are_embedded_alike_alone_and_together(folders):
    encoder = CaptionEncoder(folders["clip"])
    together = encoder.encode(["a red disc", "a much longer caption than that", "a red disc"])
    assert together.shape == (3, encoder.width) == (3, 12)
    assert_close(together.square().mean(1), torch.ones(3))
    assert_close(together[0], together[2])
    assert_close(encoder.encode(["a red disc"])[0], together[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    assert encoder.encode([]).shape == (0, 12)


def test_batches_tell_each_clips_own_caption(folders):
    encoder = CaptionEncoder(folders["clip"])
    texts = EncodedTexts(["a", "b"], [0, 1, 1], {"prompt_embeds": torch.tensor([[0.0], [1.0]])}, None)
    source = TextSource(ToldCaptions(texts, encoder))
    batch = source.batch(Rng.for_batch(0, 0, 3), "cpu")
    known = centred(encoder.encode(["a", "b"]), [0, 1, 1])
    assert_close(batch.cond["caption"], known[batch.cond["prompt_embeds"][:, 0].long()])
    config = AppearanceConfig(
        backbone="clip",
        backbone_path=folders["clip"],
        discriminator=FrameDiscriminatorConfig(head_width=8, caption=encoder.width),
    )
    judge = partial(frame_discriminator(config, 0).eval(), frames(3))
    assert not torch.allclose(judge(batch.cond["caption"]), judge(batch.cond["caption"].flip(0)))
    with pytest.raises(UserError, match=r"domain\.captions: .* holds a dinov2"):
        CaptionEncoder(folders["dinov2"])
