"""Roles: who trains, who does not, who acts, and that the teacher never moves."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.core.denoiser import Backbone, Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.networks.adapters import AdapterView, lora_state, merge, save_lora
from fewstep.core.networks.discriminator import DiscriminatorConfig
from fewstep.core.networks.freezing import freeze, thaw, trainable_copy
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.prediction import Kind
from fewstep.core.process import VP
from fewstep.core.recipe import RoleSpec

STUDENT = RoleSpec("student", ema=True)
FAKE = RoleSpec("fake_score")
TEACHER = RoleSpec("teacher", init="frozen")
SPECS = (STUDENT, TEACHER, FAKE)
T = torch.tensor([10.0, 700.0])
COND = {"label": torch.tensor([0, 2])}
LORA = RolesConfig(mode="lora", rank=4)


def unet(**settings):
    return UNet2DBackbone.make(2, 8, widths=(8, 16), attention=(False, True), num_classes=3, **settings).eval()


def mlp(**settings):
    return MLPBackbone(5, width=16, depth=2, num_classes=3, **settings).eval()


def teacher_of(make, **settings):
    return NetworkDenoiser(make(**settings), VP.linear(), Plain(Kind.EPS))


def inputs(make, seed=0):
    shape = (2, 2, 8, 8) if make is unet else (2, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def digest(tensors):
    sums = hashlib.sha256()
    for tensor in tensors:
        sums.update(tensor.detach().numpy().tobytes())
    return sums.hexdigest()


def stir(module, seed=0, size=0.1):
    """Move every parameter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


BOTH = pytest.mark.parametrize("make", [unet, mlp])
MODES = pytest.mark.parametrize("config", [RolesConfig(), LORA], ids=["full", "lora"])


@BOTH
@MODES
def test_at_the_start_every_role_is_the_teacher_exactly(make, config):
    x = inputs(make)
    before = teacher_of(make).x0(x, T, COND)
    roles = build_roles(teacher_of(make), SPECS, config, seed=1)
    assert list(roles) == ["student", "teacher", "fake_score"]
    for role in roles.values():
        assert torch.equal(role.x0(x, T, COND), before)


@BOTH
@MODES
@pytest.mark.parametrize("trained", ["student", "fake_score"])
def test_an_optimizer_step_changes_the_trained_role_only(make, config, trained):
    roles, x = build_roles(teacher_of(make), SPECS, config, seed=1), inputs(make)
    stir(roles["fake_score"].backbone, 1, 0.02)  # no two roles alike, no zero factors
    stir(roles["student"].backbone, 2, 0.02)
    before = {name: role.x0(x, T, COND).detach() for name, role in roles.items()}
    optimizer = torch.optim.SGD(roles[trained].backbone.parameters(), lr=0.1)
    roles[trained].x0(x, T, COND).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in used_parameters(roles[trained].backbone))
    optimizer.step()
    for name, role in roles.items():
        assert torch.equal(role.x0(x, T, COND), before[name]) == (name != trained)
        if name != trained:
            assert all(p.grad is None for p in role.backbone.parameters())


def used_parameters(backbone):
    # convolution biases in front of a norm, and class rows not asked for, have no gradient; weights and factors do
    return [p for n, p in backbone.named_parameters() if n.endswith("weight") and p.ndim > 1 and "embedding" not in n]


@BOTH
@MODES
def test_teacher_is_frozen_and_roles_have_parameters_of_their_own(make, config):
    roles = build_roles(teacher_of(make), SPECS, config, seed=1)
    assert all(not p.requires_grad for p in roles["teacher"].backbone.parameters())
    student, fake = (set(map(id, roles[name].backbone.parameters())) for name in ("student", "fake_score"))
    assert student
    assert fake
    assert not student & fake
    assert all(p.requires_grad for name in ("student", "fake_score") for p in roles[name].backbone.parameters())
    if config is LORA:
        assert not list(roles["teacher"].backbone.parameters())
        assert not roles["student"].backbone.state_dict().keys() - {
            key for key in roles["student"].backbone.state_dict() if "lora_" in key
        }


def views_over(make, **settings):
    roles = build_roles(teacher_of(make, **settings), SPECS, LORA, seed=1)
    stir(roles["student"].backbone, 2)
    stir(roles["fake_score"].backbone, 3)
    return roles


@BOTH
def test_the_teacher_is_bit_identical_after_hundreds_of_switches(make):
    x = inputs(make)
    untouched = teacher_of(make).x0(x, T, COND)
    weights = digest(make().network.parameters())
    roles = views_over(make)
    everyone = [role.backbone for role in roles.values()]
    roles["student"].backbone.requires_grad_(False)
    base = roles["teacher"].backbone.network
    flags = {name: parameter.requires_grad for name, parameter in base.named_parameters()}
    time = torch.rand(2, generator=torch.Generator().manual_seed(0))
    for i in range(201):
        with torch.set_grad_enabled(i % 2 == 0):
            everyone[i % 3](x, time, COND)
    assert {name: parameter.requires_grad for name, parameter in base.named_parameters()} == flags
    assert any(flags.values())
    assert not all(flags.values())
    assert torch.equal(roles["teacher"].x0(x, T, COND), untouched)
    # and the network the caller gave acts as the teacher, too
    assert torch.equal(roles["teacher"].backbone.inner(x, T, COND), roles["teacher"].backbone(x, T, COND))
    assert digest(p for n, p in base.named_parameters() if "lora_" not in n) == weights


def test_switches_survive_exceptions_and_nesting():
    roles, x = views_over(mlp), inputs(mlp)
    student, fake, teacher = (roles[name].backbone for name in ("student", "fake_score", "teacher"))
    expected = student(x, T, COND), fake(x, T, COND), teacher(x, T, COND)
    with pytest.raises(UserError):
        student(x, T, {})
    assert student.shared.active is None
    inside = []

    def look(module, args, output):
        if not inside:  # the fake's own forward comes by here as well
            inside.append(None)
            inside[0] = fake(x, T, COND)  # another role runs in the middle of the student's forward

    handle = student.network.blocks[0].register_forward_hook(look)
    outer = student(x, T, COND)
    handle.remove()
    assert torch.equal(outer, expected[0])
    assert torch.equal(inside[0], expected[1])
    assert torch.equal(teacher(x, T, COND), expected[2])


def gradients(roles, x, checkpointing):
    network = roles["student"].backbone.network
    if checkpointing:
        network.enable_gradient_checkpointing()
    loss = roles["student"].x0(x, T, COND).square().mean()
    fake = roles["fake_score"].x0(x, T, COND).square().mean()
    with torch.no_grad():
        roles["teacher"].x0(x, T, COND)
    with roles["fake_score"].backbone.shared.acting("fake_score"):  # another role acts while the graph is recomputed
        loss.backward()
    fake.backward()
    network.disable_gradient_checkpointing()
    return [p.grad for name in ("student", "fake_score") for p in roles[name].backbone.parameters()]


def test_recomputed_activations_see_the_right_adapter():
    x = inputs(unet)
    plain = gradients(views_over(unet), x, checkpointing=False)
    recomputed = gradients(views_over(unet), x, checkpointing=True)
    assert sum(g is not None for g in plain) > 20
    for a, b in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_checkpointing_that_cannot_be_followed_is_refused():
    class Own(Backbone):
        def __init__(self):
            super().__init__()
            self.layer, self.gradient_checkpointing = nn.Linear(5, 5), True

        def forward(self, x, time, cond):
            return self.layer(x)

    roles = build_roles(NetworkDenoiser(Own(), VP.linear(), Plain(Kind.EPS)), SPECS, LORA, seed=0)
    with pytest.raises(UserError, match="checkpointing"):
        roles["student"].x0(inputs(mlp), T, {})
    with torch.no_grad():
        roles["student"].x0(inputs(mlp), T, {})


def test_checkpointing_by_configuration():
    config = RolesConfig(mode="lora", rank=4, checkpointing=True)
    roles = build_roles(teacher_of(unet), SPECS, config, seed=1)
    assert roles["student"].backbone.network.is_gradient_checkpointing
    with pytest.raises(UserError, match="checkpointing"):
        build_roles(teacher_of(mlp), SPECS, config, seed=1)


@BOTH
def test_merged_network_is_the_view(make):
    roles, x = views_over(make), inputs(make)
    for name, role in roles.items():
        merged = merge(role.backbone)
        torch.testing.assert_close(merged(x, T, COND), role.backbone(x, T, COND), rtol=1e-5, atol=1e-6)
        assert type(merged) is type(make())
        assert [n for n, _ in merged.named_parameters()] == [n for n, _ in make().named_parameters()]
        assert all(p.requires_grad for p in merged.parameters())
        assert name != "teacher" or torch.equal(merged(x, T, COND), role.backbone(x, T, COND))


def test_merged_network_forgets_checkpointing_through_the_views():
    roles, x = views_over(unet), inputs(unet)
    roles["student"].backbone.network.enable_gradient_checkpointing()
    roles["student"].backbone(x, T, COND)
    merged = merge(roles["student"].backbone)
    assert not merged.unet.is_gradient_checkpointing
    merged.unet.enable_gradient_checkpointing()
    merged(x, T, COND).sum().backward()


@BOTH
def test_state_of_a_view_is_its_adapter(make):
    roles, x = views_over(make), inputs(make)
    state = copy.deepcopy(roles["student"].backbone.state_dict())
    assert sum(v.numel() for v in state.values()) < sum(p.numel() for p in make().parameters())
    again = build_roles(teacher_of(make), SPECS, LORA, seed=9)
    again["student"].backbone.load_state_dict(state)
    assert torch.equal(again["student"].x0(x, T, COND), roles["student"].x0(x, T, COND))
    assert torch.equal(again["fake_score"].x0(x, T, COND), again["teacher"].x0(x, T, COND))


def test_saved_view_is_a_stock_diffusers_unet(tmp_path):
    from diffusers import UNet2DModel

    roles, x = views_over(unet), inputs(unet)
    roles["student"].backbone.save(tmp_path)
    stock = UNet2DModel.from_pretrained(tmp_path).eval()
    expected = roles["student"].backbone(x, T, COND)
    torch.testing.assert_close(stock(x, T, class_labels=COND["label"]).sample, expected, rtol=1e-5, atol=1e-6)


class ConditionUNet(Backbone):
    """A text-conditioned diffusers UNet of minimal size, as a domain would wrap it."""

    def __init__(self):
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.unet = UNet2DConditionModel(
            sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8, norm_num_groups=4, attention_head_dim=4,
        )  # fmt: skip

    def forward(self, x, time, cond):
        return self.unet(x, time, cond["text"]).sample


@pytest.mark.slow
def test_lora_file_loads_in_stock_diffusers_without_this_package(tmp_path):
    base = ConditionUNet().eval()
    base.unet.save_pretrained(tmp_path / "unet")
    targets = ("to_q", "to_k", "to_v", "to_out.0", "conv1")
    config = RolesConfig(mode="lora", rank=4, alpha=10.0, targets=targets)
    roles = build_roles(NetworkDenoiser(base, VP.linear(), Plain(Kind.EPS)), SPECS, config, seed=0)
    view = roles["student"].backbone
    stir(view)
    x, text = inputs(unet), torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    expected = view(x, T, {"text": text}).detach()
    assert not torch.allclose(expected, roles["teacher"].backbone(x, T, {"text": text}))
    state = {
        k.replace("unet.unet.", "unet."): v for k, v in lora_state(view).items()
    }  # the wrapper is part of the path
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors")
    save_file({"x": x, "text": text, "t": T}, tmp_path / "in.safetensors")
    code = (
        "import sys, torch; sys.modules['fewstep'] = None\n"
        "from diffusers import UNet2DConditionModel; from safetensors.torch import load_file, save_file\n"
        f"folder = {str(tmp_path)!r}; unet = UNet2DConditionModel.from_pretrained(folder + '/unet').eval()\n"
        "unet.load_lora_adapter(folder, weight_name='pytorch_lora_weights.safetensors', prefix='unet')\n"
        "i = load_file(folder + '/in.safetensors')\n"
        "save_file({'y': unet(i['x'], i['t'], i['text']).sample.detach()}, folder + '/out.safetensors')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["y"], expected, rtol=1e-4, atol=1e-5)


def test_lora_file_has_the_names_of_the_layers(tmp_path):
    roles = views_over(unet)
    save_lora(roles["student"].backbone, tmp_path / "lora.safetensors")
    names = set(load_file(tmp_path / "lora.safetensors"))
    assert "unet.mid_block.attentions.0.to_q.lora_A.weight" in names
    with pytest.raises(UserError, match="teacher"):
        lora_state(roles["teacher"].backbone)
    extended = build_roles(teacher_of(unet), (RoleSpec("student", extras=("guidance",)),), LORA, seed=0)
    with pytest.raises(UserError, match="merged"):
        lora_state(extended["student"].backbone)


EXTRAS = COND | {"guidance": torch.tensor([1.0, 5.0])}


@BOTH
@MODES
def test_extra_inputs_belong_to_the_student(make, config):
    specs = (RoleSpec("student", extras=("guidance",)), TEACHER, FAKE)
    x, plain = inputs(make), teacher_of(make)
    before = plain.x0(x, T, COND)
    roles = build_roles(plain, specs, config, seed=1)
    student = roles["student"].backbone
    assert torch.equal(roles["student"].x0(x, T, EXTRAS), before)
    names = [name for name, _ in student.named_parameters() if name.startswith("extra_inputs.")]
    assert len(names) == 4
    stir(student)
    assert torch.equal(roles["teacher"].x0(x, T, EXTRAS), before)
    assert torch.equal(roles["fake_score"].x0(x, T, COND), before)
    low, high = roles["student"].x0(x, T, EXTRAS), roles["student"].x0(x, T, EXTRAS | {"guidance": torch.ones(2)})
    assert not torch.allclose(low[1], high[1])
    torch.testing.assert_close(merge(student)(x, T, EXTRAS), student(x, T, EXTRAS), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="guidance"):
        roles["student"].x0(x, T, COND)


def test_a_teacher_with_extra_inputs_keeps_its_own():
    source = mlp().with_extras(("guidance",), seed=1)
    stir(source.extra_inputs)
    specs = (RoleSpec("student", extras=("guidance", "end_time")), TEACHER)
    cond = EXTRAS | {"end_time": torch.zeros(2)}
    teacher, x = NetworkDenoiser(source, VP.linear(), Plain(Kind.EPS)), inputs(mlp)
    before = teacher.x0(x, T, EXTRAS)
    roles = build_roles(teacher, specs, LORA, seed=1)
    assert torch.equal(roles["student"].x0(x, T, cond), before), "the student starts from the teacher's embeddings"
    stir(roles["student"].backbone)
    assert torch.equal(roles["teacher"].x0(x, T, EXTRAS), before)


def test_modes_can_differ_by_role():
    config = RolesConfig(mode="lora", rank=2, overrides={"fake_score": "full"})
    roles = build_roles(teacher_of(mlp), SPECS, config, seed=0)
    assert isinstance(roles["student"].backbone, AdapterView)
    assert isinstance(roles["fake_score"].backbone, MLPBackbone)
    assert not any("lora" in name for name, _ in roles["fake_score"].backbone.named_parameters())
    with pytest.raises(UserError, match="fake_score"):
        build_roles(teacher_of(mlp), SPECS, RolesConfig(overrides={"fake": "lora"}), seed=0)


def test_adapters_are_a_function_of_the_seed_and_of_the_role():
    first, second, other = (
        build_roles(teacher_of(mlp), SPECS, LORA, seed=s)["student"].backbone.state_dict() for s in (1, 1, 2)
    )
    key = next(name for name in first if "lora_A" in name)
    assert torch.equal(first[key], second[key])
    assert not torch.equal(first[key], other[key])
    roles = build_roles(teacher_of(mlp), SPECS, LORA, seed=1)
    assert not torch.equal(first[key], roles["fake_score"].backbone.state_dict()[key])


def test_building_roles_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    specs = (*SPECS, RoleSpec("discriminator", "discriminator", features_of="teacher"))
    build_roles(teacher_of(unet), specs, LORA, seed=1, shape=(2, 8, 8), cond=COND)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_teacher_cannot_give_is_a_user_error():
    class Exact(Denoiser):
        process = VP.linear()

        def predict(self, x_t, t, cond):
            raise NotImplementedError

    with pytest.raises(UserError, match="network"):
        build_roles(Exact(), SPECS, RolesConfig(), seed=0)
    with pytest.raises(UserError, match="network"):
        build_roles(Exact(), SPECS, LORA, seed=0)
    assert isinstance(build_roles(Exact(), (TEACHER,), RolesConfig(), seed=0)["teacher"], Exact)
    with pytest.raises(UserError, match="fresh"):
        build_roles(teacher_of(mlp), (RoleSpec("student", init="fresh"),), RolesConfig(), seed=0)
    with pytest.raises(UserError, match=r"nowhere"):
        build_roles(teacher_of(mlp), SPECS, RolesConfig(mode="lora", targets=("nowhere",)), seed=0)
    once = teacher_of(mlp)
    build_roles(once, SPECS, LORA, seed=0)
    with pytest.raises(UserError, match="already"):
        build_roles(once, SPECS, LORA, seed=0)
    specs = (TEACHER, RoleSpec("discriminator", "discriminator", features_of="teacher"))
    with pytest.raises(UserError, match="discriminator"):
        build_roles(teacher_of(mlp), specs, RolesConfig(), seed=0)
    specs = (TEACHER, RoleSpec("discriminator", "discriminator", features_of="fake"))
    with pytest.raises(UserError, match="fake"):
        build_roles(teacher_of(mlp), specs, RolesConfig(), seed=0, shape=(5,), cond=COND)
    for wrong in ({"rank": 0}, {"alpha": -1.0}, {"dropout": 1.0}):
        with pytest.raises(UserError):
            RolesConfig(**wrong)


def test_fresh_and_module_roles_are_built_from_the_seed():
    def fresh(seed):
        return teacher_of(mlp, seed=seed)

    specs = (
        RoleSpec("student", init="fresh", extras=("guidance",)),
        RoleSpec("weight", "module", build=lambda seed: nn.Linear(1, 1, device="cpu")),
    )
    roles = build_roles(teacher_of(mlp), specs, RolesConfig(), seed=3, fresh=fresh)
    assert not torch.equal(roles["student"].x0(inputs(mlp), T, EXTRAS), teacher_of(mlp).x0(inputs(mlp), T, COND))
    assert isinstance(roles["weight"], nn.Linear)


@pytest.mark.parametrize("trunk", ["teacher", "fake_score"])
@MODES
def test_discriminator_roles_own_their_heads_only(trunk, config):
    specs = (*SPECS, RoleSpec("discriminator", "discriminator", features_of=trunk))
    config = RolesConfig(mode=config.mode, rank=4, discriminator=DiscriminatorConfig(width=16))
    roles = build_roles(teacher_of(unet), specs, config, seed=1, shape=(2, 8, 8), cond=COND)
    heads = set(map(id, roles["discriminator"].parameters()))
    assert heads
    assert not heads & {id(p) for p in roles[trunk].backbone.parameters()}
    x = inputs(unet).requires_grad_()
    roles["discriminator"].logits(x, T, COND).sum().backward()
    assert x.grad.abs().sum() > 0
    got = [p.grad is not None for p in roles[trunk].backbone.parameters()]
    assert any(got) == (trunk == "fake_score"), (
        "the trained trunk learns from the discriminator, the frozen one does not"
    )
    assert all(p.grad is None for p in roles["student"].backbone.parameters())


def test_moving_a_view_moves_the_base_once():
    roles = views_over(mlp)
    ids = [id(p) for p in roles["student"].backbone.parameters()]
    roles["student"].backbone.double()
    assert [id(p) for p in roles["student"].backbone.parameters()] == ids
    x = inputs(mlp).double()
    for role in roles.values():
        assert role.backbone(x, T.double(), COND).dtype == torch.float64


def test_adapter_dropout_follows_the_view_and_base_dropout_stays_off():
    config = RolesConfig(mode="lora", rank=4, dropout=0.5)
    roles = build_roles(teacher_of(mlp, dropout=0.5), SPECS, config, seed=0)
    stir(roles["student"].backbone)
    x = inputs(mlp)
    roles["student"].backbone.eval()
    assert torch.equal(roles["student"].x0(x, T, COND), roles["student"].x0(x, T, COND))
    teacher = roles["teacher"].x0(x, T, COND)
    roles["student"].backbone.train()
    roles["teacher"].backbone.train()
    roles["teacher"].backbone.network.train()
    assert not torch.equal(roles["student"].x0(x, T, COND), roles["student"].x0(x, T, COND))
    assert torch.equal(roles["teacher"].x0(x, T, COND), teacher)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.layer = nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 5)

    def forward(self, x):
        return self.layer(self.drop(self.norm(x)))


def test_frozen_means_no_gradients_no_statistics_no_dropout():
    net = freeze(Noisy())
    outer = nn.ModuleList([net])
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before, state = net(x), copy.deepcopy(net.state_dict())
    outer.train()
    net.train()
    net.norm.train()
    assert torch.equal(net(x), before)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    net(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
    clone = trainable_copy(net).train()
    clone(x)
    assert not torch.equal(clone.norm.running_mean, net.norm.running_mean)
    assert all(p.requires_grad for p in clone.parameters())
    assert not net.norm.training
    same = copy.deepcopy(net)
    assert same.train() is same, "a copy of a frozen module refers to itself"
    assert thaw(net).training


def test_a_frozen_module_can_be_saved_and_moved(tmp_path: Path):
    net = freeze(mlp())
    net.save(tmp_path)
    assert net.to(torch.float64)(inputs(mlp).double(), T.double(), COND).dtype == torch.float64
