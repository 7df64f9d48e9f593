"""Two experts in one network: layers that act while they are asked, and routing by time."""

from __future__ import annotations

import copy

import pytest
import torch
from core.model_bed import encoded, teacher
from core.tiny_loop import mlp_teacher
from torch import nn
from torch.testing import assert_close

from fewstep.core.denoiser import Backbone, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.networks.backbone import ExtensibleBackbone
from fewstep.core.networks.experts import ExpertBackbone, ExpertConfig, ExpertLayers, RoutedExperts, TwoExperts
from fewstep.core.networks.freezing import trainable_copy
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.prediction import Kind
from fewstep.core.process import CosineVP
from fewstep.core.recipe import RoleSpec

VIDEO = ["wan", "hunyuan-video", "cogvideox", "ltx"]
SMALL = ExpertConfig(rank=2, alpha=3.0)


def family(name: str) -> tuple[NetworkDenoiser, tuple]:
    """A trainable network of a family in float64, and what to call it with."""
    found = teacher(name)
    source = found.denoiser(encoded(name).null)
    denoiser = source.with_backbone(trainable_copy(source.backbone).double())
    x = torch.randn(2, *found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = denoiser.process.round(denoiser.process.unit_to_time(torch.tensor([0.7, 0.3], dtype=torch.float64)))
    cond = {key: value.double() if value.is_floating_point() else value for key, value in encoded(name).cond.items()}
    return denoiser, (x, t, cond)


def attached(backbone: Backbone, config: ExpertConfig = SMALL, seed: int = 0, moved: float = 0.0) -> ExpertLayers:
    layers = ExpertLayers(config, seed)
    layers.attach(backbone)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(moved * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layers


class Convolutions(Backbone):
    """Convolutions of every kind, one of them strided, one grouped."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv3d(2, 4, 3, stride=(1, 2, 2), padding=1)
        self.conv_out = nn.ConvTranspose3d(4, 2, (3, 4, 4), stride=(1, 2, 2), padding=1)
        self.depthwise = nn.Conv3d(4, 4, 1, groups=4)
        self.second = nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0), padding_mode="circular")

    def forward(self, x, time, cond):
        return self.conv_out(self.second(self.depthwise(self.first(x))).tanh())


# ---------------------------------------------------------------- the layers


@pytest.mark.parametrize("name", VIDEO)
def test_untrained_layers_change_no_bit_and_trained_ones_leave_the_network_as_it_was(name):
    denoiser, (x, t, cond) = family(name)
    with torch.no_grad():
        before = denoiser.predict(x, t, cond).value
        layers = attached(denoiser.backbone)
        experts = TwoExperts(denoiser, layers)
        assert torch.equal(experts.second().predict(x, t, cond).value, before)
        moved = attached(denoiser.backbone, moved=0.1)
        other = experts.second(moved).predict(x, t, cond).value
        assert (other - before).abs().max() > 1e-4
        assert torch.equal(experts.predict(x, t, cond).value, before)


@pytest.mark.parametrize("name", VIDEO)
def test_the_embedding_and_the_output_are_private_and_attention_is_adapted(name):
    layers = attached(family(name)[0].backbone)
    assert len(layers.private) >= 3
    assert any(key.endswith("to_q") for key in layers.down)
    assert not any(key.startswith(tuple(layers.private)) for key in layers.down)


@pytest.mark.parametrize("make", [lambda: family("wan"), None])
def test_the_merged_network_is_the_second_expert(make):
    if make is None:
        backbone = Convolutions().double()
        x, t, cond = torch.randn(2, 2, 3, 6, 6, dtype=torch.float64), torch.tensor([0.5, 0.5]).double(), {}
        denoiser = NetworkDenoiser(backbone, CosineVP(), Plain(Kind.V))
    else:
        denoiser, (x, t, cond) = make()
    layers = attached(denoiser.backbone, moved=0.1)
    with torch.no_grad():
        wanted = TwoExperts(denoiser, layers).second().predict(x, t, cond).value
        made = denoiser.with_backbone(layers.merged(denoiser.backbone))
        assert_close(made.predict(x, t, cond).value, wanted, rtol=1e-10, atol=1e-10)
        assert (wanted - denoiser.predict(x, t, cond).value).abs().max() > 1e-3


def test_a_lora_student_has_a_second_expert_too():
    source = mlp_teacher(CosineVP(), 3)
    roles = build_roles(source, (RoleSpec("student"),), RolesConfig(mode="lora", rank=2), 0)
    student = roles["student"]
    with torch.no_grad():
        for parameter in student.backbone.parameters():
            parameter.add_(0.1)
    x, t = torch.ones(2, 3), torch.tensor([0.3, 0.7]).double()
    before = student.predict(x, t, {}).value
    layers = attached(student.backbone, ExpertConfig(rank=2, private="none"), moved=0.2)
    second = TwoExperts(student, layers).second()
    assert torch.equal(student.predict(x, t, {}).value, before)
    made = student.with_backbone(layers.merged(student.backbone))
    assert_close(made.predict(x, t, {}).value, second.predict(x, t, {}).value)
    assert (second.predict(x, t, {}).value - before).abs().max() > 1e-2


def test_an_error_inside_puts_the_network_back():
    denoiser, _ = family("wan")
    layers = attached(denoiser.backbone, moved=0.1)
    names = [name for name, _ in denoiser.backbone.named_parameters()]
    values = list(denoiser.backbone.parameters())

    def fail() -> None:
        with layers.acting(denoiser.backbone):
            assert denoiser.backbone.network.proj_out is layers.private["proj_out"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names == [name for name, _ in denoiser.backbone.named_parameters()]
    assert all(a is b for a, b in zip(values, denoiser.backbone.parameters(), strict=True))
    assert not any(part._forward_hooks for part in denoiser.backbone.modules())


def test_following_takes_the_present_weights():
    denoiser, _ = family("wan")
    layers = attached(denoiser.backbone)
    with torch.no_grad():
        for parameter in denoiser.backbone.parameters():
            parameter.mul_(1.5)
    layers.follow(denoiser.backbone)
    own = layers.private["proj_out"].weight
    assert torch.equal(own, denoiser.backbone.network.proj_out.weight)
    assert own is not denoiser.backbone.network.proj_out.weight


@pytest.mark.parametrize("name", ["wan", "hunyuan-video"])
def test_gradients_are_the_same_where_activations_are_recomputed(name):
    found = []
    for again in (False, True):
        denoiser, (x, t, cond) = family(name)
        layers = attached(denoiser.backbone, moved=0.1)
        denoiser.backbone.requires_grad_(False)
        denoiser.backbone.train()
        if again:
            denoiser.backbone.network.enable_gradient_checkpointing()
        value = TwoExperts(denoiser, layers).second().predict(x, t, cond).value
        denoiser.predict(x, t, cond)  # another expert in between
        value.square().mean().backward()
        found.append({key: p.grad for key, p in layers.named_parameters()})
    assert found[0].keys() == found[1].keys()
    assert sum(float(g.abs().sum()) for g in found[0].values() if g is not None) > 0
    for key, gradient in found[0].items():
        assert (gradient is None) == (found[1][key] is None), key
        if gradient is not None:
            assert_close(found[1][key], gradient, rtol=1e-10, atol=1e-12)


def test_recomputation_that_cannot_be_followed_is_refused():
    source = family("wan")[0]
    roles = build_roles(source, (RoleSpec("student"),), RolesConfig(mode="lora", rank=2, checkpointing=True), 0)
    student = roles["student"]
    layers = attached(student.backbone)
    with pytest.raises(UserError, match="checkpoint"), layers.acting(student.backbone):
        pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ("to_x",)}, "no layer of this network is called to_x"),
        ({"private": ("proj_uot",)}, "no module 'proj_uot'.*proj_out"),
    ],
)
def test_names_the_network_does_not_have_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        attached(family("wan")[0].backbone, ExpertConfig(**options))


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="rank"):
        ExpertConfig(rank=0)
    with pytest.raises(UserError, match="alpha"):
        ExpertConfig(alpha=0.0)


# ---------------------------------------------------------------- routing


def test_every_sample_of_a_mixed_batch_goes_to_its_own_expert():
    denoiser, (x, _, cond) = family("wan")
    experts = TwoExperts(denoiser, attached(denoiser.backbone, moved=0.1))
    experts.layers.started = True
    routed = RoutedExperts(experts, experts.second(), 0.6)
    with torch.no_grad():
        for t in ([0.9, 0.3], [0.3, 0.9], [0.9, 0.7], [0.2, 0.6]):
            time = torch.tensor(t, dtype=torch.float64)
            made = routed.predict(x, time, cond).value
            for i, each in enumerate(t):
                expert = experts if each > 0.6 else experts.second()
                alone = {key: value[i : i + 1] for key, value in cond.items()}
                wanted = expert.predict(x[i : i + 1], time[i : i + 1], alone).value
                assert_close(made[i : i + 1], wanted, rtol=1e-9, atol=1e-9)


def test_the_cut_is_the_second_expert_s_even_after_float32():
    denoiser = mlp_teacher(CosineVP(), 2)
    experts = TwoExperts(denoiser, attached(denoiser.backbone, ExpertConfig(rank=1), moved=1.0))
    experts.layers.started = True
    x, cut = torch.ones(1, 2), 0.9817629179331306
    routed = RoutedExperts(experts, experts.second(), cut)
    for t in (torch.tensor([cut], dtype=torch.float64), torch.tensor([cut], dtype=torch.float32)):
        assert torch.equal(routed.predict(x, t, {}).value, experts.second().predict(x, t, {}).value)
    above = torch.tensor([cut + 1e-4], dtype=torch.float64)
    assert torch.equal(routed.predict(x, above, {}).value, experts.predict(x, above, {}).value)


def test_layers_that_have_not_started_are_left_out():
    denoiser = mlp_teacher(CosineVP(), 2)
    experts = TwoExperts(denoiser, attached(denoiser.backbone, ExpertConfig(rank=1), moved=1.0))
    routed, x, t = RoutedExperts(experts, experts.second(), 0.5), torch.ones(1, 2), torch.tensor([0.2]).double()
    assert torch.equal(routed.predict(x, t, {}).value, denoiser.predict(x, t, {}).value)
    experts.layers.started = True
    assert not torch.equal(routed.predict(x, t, {}).value, denoiser.predict(x, t, {}).value)


def test_experts_that_predict_different_things_are_refused():
    first, second = mlp_teacher(CosineVP(), 2), mlp_teacher(CosineVP(), 2, kind=Kind.X0)
    routed = RoutedExperts(first, second, 0.5)
    with pytest.raises(UserError, match="V and X0"):
        routed.predict(torch.ones(2, 2), torch.tensor([0.2, 0.8]).double(), {})


def test_copies_and_saved_states_are_complete():
    backbone = mlp_teacher(CosineVP(), 2).backbone
    layers = attached(backbone, ExpertConfig(rank=1), moved=1.0)
    again = attached(backbone, ExpertConfig(rank=1), seed=1)
    again.load_state_dict(copy.deepcopy(layers.state_dict()))
    x, t = torch.ones(1, 2), torch.tensor([0.2])
    assert isinstance(backbone, ExtensibleBackbone)
    assert torch.equal(ExpertBackbone(backbone, again)(x, t, {}), ExpertBackbone(backbone, layers)(x, t, {}))
