"""Feature taps and discriminators: what is caught, what learns, what stays."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from core.runs import build, config_of, go, newest
from torch import nn

from fewstep.core.denoiser import Backbone, Denoiser, NetworkDenoiser, Plain, Reprocessed
from fewstep.core.errors import UserError
from fewstep.core.networks.discriminator import (
    DiscriminatorConfig,
    SampleDiscriminator,
    make_discriminator,
)
from fewstep.core.networks.freezing import freeze
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.taps import features, tapped
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.prediction import Kind
from fewstep.core.process import EDM, VP, RectifiedFlow, TrigFlow
from fewstep.core.recipe import Actors, Phase, RoleSpec
from fewstep.core.training.cast import Cast

SHAPE, T = (2, 8, 8), torch.tensor([10.0, 700.0])
COND = {"label": torch.tensor([0, 2])}


def trunk(**settings):
    net = UNet2DBackbone.make(2, 8, widths=(8, 16), num_classes=3, **settings).eval()
    return NetworkDenoiser(net, VP.linear(), Plain(Kind.EPS))


def vectors():
    return NetworkDenoiser(MLPBackbone(5, width=16, depth=2, num_classes=3).eval(), VP.linear(), Plain(Kind.EPS))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hooks(module):
    return sum(len(part._forward_hooks) for part in module.modules())


def test_features_are_the_outputs_of_the_modules():
    net, x = trunk(), noise(2, *SHAPE)
    names = ("unet.down_blocks.1", "unet.mid_block")
    down, middle = features(net, names, x, T, COND)
    assert down.shape == (2, 16, 4, 4), "the first tensor of what a block returns"
    state = {}
    net.backbone.unet.mid_block.register_forward_hook(lambda m, a, out: state.update(out=out))
    net.predict(x, T, COND)
    assert torch.equal(middle, state["out"])


class Streams(nn.Module):
    """Returns two streams, as blocks with one for the prompt do."""

    def forward(self, x):
        return None, x + 1


def test_a_tap_names_one_of_several_outputs():
    root, x = nn.Sequential(Streams()), noise(2, 3)
    with tapped(root, ("0:1",)) as caught:
        root(x)
    assert torch.equal(caught["0:1"], x + 1)
    for name, message in (("0:2", "no tensor"), ("0:x", "after the colon"), ("1:1", "no module '1'")):
        with pytest.raises(UserError, match=message), tapped(root, (name,)):
            root(x)


def test_the_forward_ends_at_the_last_feature():
    net, ran = trunk(), []
    net.backbone.unet.conv_out.register_forward_hook(lambda *a: ran.append(1))
    features(net, ("unet.mid_block",), noise(2, *SHAPE), T, COND)
    assert not ran
    features(net, ("unet.mid_block", "unet.up_blocks.1"), noise(2, *SHAPE), T, COND)
    assert not ran
    with tapped(net.backbone, ("unet.mid_block",)) as caught:
        net.predict(noise(2, *SHAPE), T, COND)
    assert ran
    assert caught.keys() == {"unet.mid_block"}


def test_hooks_are_gone_after_success_exception_and_misspelling():
    net, x = trunk(), noise(2, *SHAPE)
    features(net, ("unet.mid_block",), x, T, COND)
    with pytest.raises(UserError, match="label"):
        features(net, ("unet.mid_block",), x, T, {})
    with pytest.raises(UserError, match=r"unet\.mid_block"):
        features(net, ("unet.conv_in", "unet.mid_blok"), x, T, COND)
    with pytest.raises(ZeroDivisionError), tapped(net.backbone, ("unet.mid_block",)):
        raise ZeroDivisionError
    assert hooks(net.backbone) == 0


def test_no_graph_is_kept_alive():
    net, x = trunk(), noise(2, *SHAPE).requires_grad_()
    found = features(net, ("unet.mid_block",), x, T, COND)
    alive = weakref.ref(found[0])
    del found
    gc.collect()
    assert alive() is None


def test_gradients_pass_a_frozen_trunk_to_the_input_and_stop_at_its_weights():
    net, x = trunk(), noise(2, *SHAPE).requires_grad_()
    freeze(net.backbone)
    discriminator = make_discriminator(net, DiscriminatorConfig(width=16), SHAPE, COND, seed=0)
    discriminator.logits(x, T, COND).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.backbone.parameters())
    assert all(p.grad is not None for p in discriminator.parameters())


def test_a_module_that_does_not_run_is_named():
    class Lazy(Backbone):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x, time, cond):
            return self.used(x)

    net = NetworkDenoiser(Lazy(), VP.linear(), Plain(Kind.EPS))
    with pytest.raises(UserError, match="'unused' did not run"):
        features(net, ("unused",), noise(2, 5), T, {})


def test_a_trunk_under_another_process_gives_its_features():
    inner = NetworkDenoiser(MLPBackbone(5, width=16, depth=2), RectifiedFlow(), Plain(Kind.FLOW))
    net = Reprocessed(inner, TrigFlow(sigma_data=1.0))
    discriminator = make_discriminator(net, DiscriminatorConfig(width=16), (5,), {}, seed=0)
    assert discriminator.logits(noise(2, 5), torch.tensor([0.3, 1.2]), {}).shape == (2,)


class Video(Backbone):
    """Maps with frames as an axis, or folded into the batch; and tokens."""

    def __init__(self):
        super().__init__()
        self.frames, self.folded, self.tokens = (
            nn.Conv3d(2, 8, 3, padding=1),
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Linear(2, 8),
        )

    def forward(self, x, time, cond):
        b, c, f, h, w = x.shape
        self.frames(x)
        self.folded(x.transpose(1, 2).reshape(b * f, c, h, w))
        self.tokens(x.flatten(2).transpose(1, 2))
        return x


@pytest.mark.parametrize("name", ["frames", "folded", "tokens"])
@pytest.mark.parametrize("head", ["learned", "mean"])
def test_videos_and_tokens_have_heads_and_samples_do_not_mix(name, head):
    net = NetworkDenoiser(Video(), VP.linear(), Plain(Kind.EPS))
    config = DiscriminatorConfig(width=16, taps=(name,), head=head)
    discriminator = make_discriminator(net, config, (2, 3, 4, 4), {}, seed=0)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter += 0.1  # the conditioning on time starts at zero
    x = noise(2, 2, 3, 4, 4)
    both, t = discriminator.patch_logits(x, T, {}), T
    assert both.shape == (2, 3 * 16)
    alone = torch.cat([discriminator.patch_logits(x[i : i + 1], t[i : i + 1], {}) for i in range(2)])
    torch.testing.assert_close(both, alone)


@pytest.mark.parametrize("make", [trunk, vectors])
@pytest.mark.parametrize("taps", ["bottleneck", "blocks"])
@pytest.mark.parametrize("spectral", [False, True])
def test_logits_are_per_sample_and_depend_on_sample_time_and_label(make, taps, spectral):
    net = make()
    shape = SHAPE if make is trunk else (5,)
    config = DiscriminatorConfig(width=16, taps=taps, spectral_norm=spectral)
    d = make_discriminator(net, config, shape, COND, seed=0).eval()
    x = noise(2, *shape)
    logits = d(x, T, COND)
    assert logits.shape == (2,)
    torch.testing.assert_close(d.logits(x.flip(0), T.flip(0), {"label": COND["label"].flip(0)}), logits.flip(0))
    others = [d.logits(x + 0.1, T, COND), d.logits(x, T + 90, COND), d.logits(x, T, {"label": 2 - COND["label"]})]
    assert all(not torch.allclose(other, logits) for other in others)
    assert torch.equal(d.log_ratio(x, T, COND), logits)
    assert d.patch_logits(x, T, COND).shape[0] == 2


def test_heads_of_different_resolution_weigh_the_same():
    d = make_discriminator(trunk(), DiscriminatorConfig(width=16, taps="blocks"), SHAPE, COND, seed=0)
    x = noise(2, *SHAPE)
    heads = d.head_logits(x, T, COND)
    assert {len(h[0]) for h in heads} == {16, 64}
    torch.testing.assert_close(d.logits(x, T, COND), sum(h.mean(1) for h in heads) / len(heads))


def test_head_time_and_label_conditioning_can_be_left_out():
    config = DiscriminatorConfig(width=16, time=False, label=False)
    d = make_discriminator(trunk(), config, SHAPE, COND, seed=0)
    assert not [name for name, _ in d.named_parameters() if "conditioning" in name]
    d = make_discriminator(trunk(), DiscriminatorConfig(width=16), SHAPE, COND, seed=0)
    conditioning = d.heads[0].conditioning
    assert conditioning.label.num_embeddings == 4
    assert all(value.abs().sum() == 0 for value in conditioning.film(torch.rand(2))), "FiLM starts as the identity"


def test_mean_head_is_the_channel_mean_and_has_no_parameters():
    net, x = trunk(), noise(2, *SHAPE)
    d = make_discriminator(net, DiscriminatorConfig(head="mean"), SHAPE, COND, seed=0)
    assert not list(d.parameters())
    (middle,) = features(net, ("unet.mid_block",), x, T, COND)
    torch.testing.assert_close(d.patch_logits(x, T, COND), middle.mean(1).flatten(1))


def test_spectral_norm_bounds_the_layers_and_moves_in_train_mode_only():
    d = make_discriminator(trunk(), DiscriminatorConfig(width=16, spectral_norm=True), SHAPE, COND, seed=0)
    x, layer = noise(2, *SHAPE), d.heads[0].out
    d.eval()
    before = {k: v.clone() for k, v in d.state_dict().items()}
    d.logits(x, T, COND)
    assert all(torch.equal(v, before[k]) for k, v in d.state_dict().items())
    d.train()
    for _ in range(30):
        d.logits(x, T, COND)
    d.eval()
    assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_construction_is_a_function_of_the_seed():
    before = torch.get_rng_state()
    first, second, other = (
        make_discriminator(trunk(), DiscriminatorConfig(width=16), SHAPE, COND, seed=s).state_dict() for s in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["heads.0.first.weight"], other["heads.0.first.weight"])


def test_the_state_holds_heads_only():
    d = make_discriminator(trunk(), DiscriminatorConfig(width=16), SHAPE, COND, seed=0)
    assert all(name.startswith("heads.") for name in d.state_dict())


@pytest.mark.parametrize("process", [VP.linear(), EDM(), RectifiedFlow(), TrigFlow()])
def test_sample_discriminator_is_finite_over_the_whole_clock(process):
    d = SampleDiscriminator(process, 3, labels=4)
    t = process.unit_to_time(torch.linspace(0, 1, 6))
    c = process.coefficients(t)
    x = (noise(6, 3) * (c.alpha + c.sigma)[:, None].float()).requires_grad_()
    out = d.logits(x, t, {"label": torch.arange(6) % 4})
    out.sum().backward()
    assert bool(out.isfinite().all())
    assert bool(x.grad.isfinite().all())
    with pytest.raises(UserError, match="label"):
        d.logits(x, t, {})


def test_a_teacher_without_network_can_be_judged_on_samples():
    class Exact(Denoiser):
        process = VP.linear()

        def predict(self, x_t, t, cond):
            raise NotImplementedError

    with pytest.raises(UserError, match="no network"):
        make_discriminator(Exact(), DiscriminatorConfig(), (5,), {}, seed=0)
    d = make_discriminator(Exact(), DiscriminatorConfig(source="samples"), (5,), {}, seed=0)
    assert d.logits(noise(2, 5), T, {}).shape == (2,)
    assert make_discriminator(vectors(), DiscriminatorConfig(source="samples"), (5,), COND, 0).conditioning.label


def test_wrong_settings_are_user_errors():
    for wrong in ({"width": 12}, {"taps": ()}):
        with pytest.raises(UserError):
            DiscriminatorConfig(**wrong)
    plain = NetworkDenoiser(Video(), VP.linear(), Plain(Kind.EPS))
    with pytest.raises(UserError, match="taps"):
        make_discriminator(plain, DiscriminatorConfig(), (2, 3, 4, 4), {}, seed=0)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_discriminator_without_parameters_goes_through_a_run(mode, tmp_path):
    """SiDA: nothing of its own to train, and the fake score learns from it."""
    without = config_of(recipe="sid")
    overrides = ("recipe.adversarial.weight=0.1", "domain.roles.discriminator.head=mean", f"domain.roles.mode={mode}")
    config = config_of(*overrides, "train.checkpoint_every=3", recipe="sid")
    assert not list(build(config)[1].actors.roles["discriminator"].parameters())
    assert go(config, tmp_path / "run")[0].steps == 6
    assert any("fake_score" in name for name in newest(tmp_path / "run"))
    assert "discriminator" not in build(without)[1].actors.roles


def test_a_phase_that_trains_nothing_is_named():
    actors = Actors({"empty": nn.Identity()}, VP.linear(), (1,))
    with pytest.raises(UserError, match="'idle'"):
        Cast(actors, (RoleSpec("empty", "module"),), (Phase("idle", ("empty",)),))
