"""The decoder's tuning: what moves and what stays, its losses, a decoder that learns a student's own latents."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep.core.denoiser import Backbone, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.prediction import Kind
from fewstep.core.process import VP
from fewstep.core.recipe import Actors, Batch, StepPlan
from fewstep.core.rng import Rng
from fewstep.core.training.cast import Cast
from fewstep.restoration.losses import detail_loss, laplacian_bands
from fewstep.restoration.models.decoding import decoder_parts, pictures_of, tunable
from fewstep.restoration.models.patches import PatchConfig, PatchDiscriminator
from fewstep.restoration.recipes.decoder import Decoder, DecoderConfig

PROCESS, SIDE = VP.scaled_linear(), 8
SMALL = PatchConfig(width=8, layers=2)


class Autoencoder(nn.Module):
    """Twice smaller latents of two channels, a codebook nobody moves, a decoder with dropout."""

    def __init__(self) -> None:
        super().__init__()
        with Rng(0, 0, ()).network_noise("autoencoder"):
            self.encoder, self.scale = nn.Conv2d(3, 2, 2, 2), nn.Parameter(torch.ones(()))
            self.quantize = nn.Embedding(4, 2)
            self.post_quant_conv = nn.Conv2d(2, 2, 1)
            self.decoder = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2, 3, 3, padding=1), nn.Dropout(0.1))

    def encode(self, pixels):
        return self.encoder(pixels)

    def decode(self, z):
        return self.decoder(self.post_quant_conv(self.scale * z + 0 * self.quantize.weight.sum()))


class Net(Backbone):
    """Says the anchor, off by one half and by noise."""

    def __init__(self) -> None:
        super().__init__()
        with Rng(1, 0, ()).network_noise("net"):
            self.layer = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x, time, cond):
        return 0.1 * self.layer(torch.cat([x, cond["anchor"]], 1)) - cond["anchor"] - 0.5


class Bed:
    """A frozen one-step student, an autoencoder to tune, a discriminator, and the recipe."""

    def __init__(self, **settings) -> None:
        self.space = Autoencoder()
        self.student = NetworkDenoiser(Net(), PROCESS, Plain(Kind.V))
        self.tuned = tunable(self.space)
        self.latents: list[torch.Tensor] = []
        plan = StepPlan((999.0,), mode="deterministic")
        generate = pictures_of(self.student, plan, self._decode, (2, SIDE // 2, SIDE // 2))
        config = DecoderConfig(**({"adversarial_start": 0, "discriminator": SMALL} | settings))
        roles = {"student": self.tuned}
        for spec in Decoder.role_specs(config)[1:]:
            roles[spec.name] = spec.build(0)
        actors = Actors(roles, PROCESS, (3, SIDE, SIDE), generate)
        self.recipe = Decoder(config, actors)
        self.phases = Decoder.phases(config)
        self.cast = Cast(actors, Decoder.role_specs(config), self.phases)

    def _decode(self, z):
        self.latents.append(z)
        return self.tuned.decode(z)

    def batch(self, n: int = 4, seed: int = 0) -> Batch:
        coarse = torch.rand(n, 1, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        pixels = nn.functional.interpolate(coarse, scale_factor=2).expand(-1, 3, -1, -1)
        with torch.no_grad():
            return Batch(n, {"anchor": self.space.encode(pixels)}, pixels)

    def train(self, steps: int, lr: float = 1e-2) -> list[float]:
        optimizers = {p.name: torch.optim.Adam([w for _, w in self.cast.parameters(p.name)], lr) for p in self.phases}
        found = []
        for step in range(steps):
            for phase in self.phases:
                if phase.due(step):
                    self.cast.enter(phase.name)
                    rng = Rng.for_batch(0, step, 4).fork(phase.name)
                    with rng.network_noise("network"):
                        terms = self.recipe.loss(phase.name, self.batch(), rng, step)
                    optimizers[phase.name].zero_grad()
                    terms.total().mean().backward()
                    optimizers[phase.name].step()
            found.append(terms.terms["l1"].mean().item())
        return found


# ---------------------------------------------------------------- what moves


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_only_the_decoder_moves():
    bed = Bed()
    before = {name: snapshot(m) for name, m in (("student", bed.student.backbone), ("space", bed.tuned))}
    original = snapshot(bed.space)
    bed.train(3)
    assert all(torch.equal(v, before["student"][k]) for k, v in bed.student.backbone.state_dict().items())
    moved = {k for k, v in bed.tuned.state_dict().items() if not torch.equal(v, before["space"][k])}
    assert moved == {k for k in before["space"] if k.startswith(("decoder", "post_quant_conv"))}
    assert all(torch.equal(v, original[k]) for k, v in bed.space.state_dict().items())  # a copy was tuned


def test_no_gradient_goes_into_the_latents_or_past_them():
    bed = Bed(adversarial_weight=0.0)
    bed.cast.enter("student")
    bed.recipe.loss("student", bed.batch(), Rng.for_batch(0, 0, 4), 0).total().sum().backward()
    assert not bed.latents[0].requires_grad
    assert all(p.grad is None for p in bed.student.backbone.parameters())
    assert bed.tuned.encoder.weight.grad is bed.tuned.scale.grad is None
    assert bed.tuned.quantize.weight.grad is None
    assert bed.tuned.decoder[1].weight.grad.abs().sum() > 0
    bed.student.backbone.requires_grad_(True)  # whoever thaws it
    bed.recipe.loss("student", bed.batch(), Rng.for_batch(0, 0, 4), 0)
    assert not bed.latents[1].requires_grad


def test_each_phase_trains_its_own():
    bed = Bed()
    bed.recipe.loss("discriminator", bed.batch(), Rng.for_batch(0, 0, 4), 0).total().sum().backward()
    assert all(p.grad is None for p in bed.tuned.parameters())
    assert all(p.grad is not None for p in bed.recipe.actors.module("discriminator").parameters())
    bed = Bed()
    bed.cast.enter("student")
    bed.recipe.loss("student", bed.batch(), Rng.for_batch(0, 0, 4), 0).total().sum().backward()
    assert all(p.grad is None for p in bed.recipe.actors.module("discriminator").parameters())


def test_the_frozen_parts_stay_in_eval_mode_and_the_decoder_follows():
    bed = Bed()
    for phase, training in (("student", True), ("discriminator", False)):
        bed.cast.enter(phase)
        assert bed.tuned.decoder[2].training is training
        assert not bed.tuned.encoder.training
    assert not bed.student.backbone.training


def test_every_step_decodes_the_student_from_fresh_noise():
    bed = Bed(adversarial_weight=0.0)
    for step in (0, 0, 1):
        bed.recipe.loss("student", bed.batch(), Rng.for_batch(0, step, 4), step)
    first, again, other = bed.latents
    assert torch.equal(first, again)
    assert (first - other).abs().min() > 0
    noise = Rng.for_batch(0, 1, 4).normal("decoder/noise", (2, 4, 4))
    t = torch.full((4,), 999.0, dtype=torch.float64)
    assert_close(other, bed.student.x0(noise, t, bed.batch().cond))  # the noisiest level, from unit noise
    assert (other - bed.space.encode(bed.batch().x0)).abs().mean() > 0.1  # and not the encoder's latents


def test_the_decoder_learns_to_see_through_the_students_latents():
    bed = Bed(adversarial_weight=0.0)
    found = bed.train(60)
    assert sum(found[-5:]) < 0.8 * sum(found[:5])


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_parts_of_diffusers_autoencoders_are_found(kind):
    import diffusers

    made = getattr(diffusers, kind)(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=2, layers_per_block=1, in_channels=3, out_channels=3
    )
    space = tunable(nn.ModuleDict({"model": made}))
    pixels = space["model"].decode(torch.zeros(1, 2, 4, 4)).sample
    pixels.sum().backward()
    touched = {name for name, p in space.named_parameters() if p.requires_grad}
    assert touched == {n for n, p in space.named_parameters() if ".decoder." in n or ".post_quant_conv." in n}
    assert {name for name, p in space.named_parameters() if p.grad is not None} <= touched
    assert len(decoder_parts(space)) == 2


# ---------------------------------------------------------------- losses and settings


def test_terms_have_their_weights_and_start_when_told():
    bed = Bed(adversarial_start=5, l1_weight=2.0)
    early, late = (bed.recipe.loss("student", bed.batch(), Rng.for_batch(0, 5, 4), step) for step in (4, 5))
    assert set(early.terms) == {"l1", "detail"}
    assert dict(late.weights) == {"l1": 2.0, "detail": 1.0, "adversarial": 0.1}
    discriminator, truth = bed.recipe.actors.module("discriminator"), bed.batch().x0
    bed.cast.rest()
    terms = bed.recipe.loss("student", bed.batch(), Rng.for_batch(0, 5, 4), 5).terms
    made = bed.recipe.actors.generate(bed.batch(), Rng.for_batch(0, 5, 4))[0]
    assert_close(terms["l1"], (made - truth).abs().mean((1, 2, 3)))
    assert_close(terms["detail"], detail_loss(made, truth))
    assert_close(terms["adversarial"], -discriminator(made).mean(1))
    hinge = bed.recipe.loss("discriminator", bed.batch(), Rng.for_batch(0, 5, 4), 5).terms["discriminator"]
    real, fake = discriminator(truth), discriminator(made)
    assert_close(hinge, (1 - real).relu().mean(1) + (1 + fake).relu().mean(1))
    assert [p.name for p in bed.phases if p.due(4)] == ["student"]
    assert [p.name for p in bed.phases if p.due(5)] == ["discriminator", "student"]
    assert [s.name for s in Decoder.role_specs(DecoderConfig(adversarial_weight=0.0))] == ["student"]
    without = Bed(detail_weight=0.0, adversarial_weight=0.0)
    assert set(without.recipe.loss("student", without.batch(), Rng.for_batch(0, 0, 4), 9).terms) == {"l1"}


def test_pieces_of_a_batch_are_the_whole():
    bed = Bed()
    bed.cast.rest()
    batch, rng = bed.batch(), Rng.for_batch(0, 0, 4)
    for phase in ("discriminator", "student"):
        whole = bed.recipe.loss(phase, batch, rng, 0).total()
        parts = [bed.recipe.loss(phase, batch.select(*cut), rng.select(*cut), 0).total() for cut in ((0, 1), (1, 4))]
        assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 50), (8, 8), (37, 64)])
def test_the_discriminator_takes_pictures_of_any_size(height, width):
    made = PatchDiscriminator(PatchConfig(width=8))
    pixels = torch.rand(2, 3, height, width)
    assert made(pixels).shape == (2, max(height // 8, 1) * max(width // 8, 1))
    assert_close(made(pixels[:1]), made(pixels)[:1], rtol=1e-4, atol=1e-5)


def test_bands_see_detail_at_every_scale_and_no_offset():
    x = torch.rand(2, 3, 13, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert detail_loss(x + 0.3, x).abs().max() < 1e-12
    assert_close(detail_loss(3 * x, 0 * x), 3 * detail_loss(x, 0 * x))
    ramp = torch.arange(32, dtype=torch.float64).expand(1, 3, 32, 32)
    fine, coarse = laplacian_bands(ramp, 2)
    assert fine[..., 2:-2].abs().max() < 1e-12
    assert coarse[..., 2:-2].abs().max() < 1e-12
    sizes = []
    for period in (2, 8):  # a stripe pattern is in the band of its size
        stripes = ((torch.arange(32) // (period // 2)) % 2).double().expand(1, 3, 32, 32)
        sizes.append([band.abs().mean().item() for band in laplacian_bands(stripes, 3)])
    assert sizes[0][0] > 10 * sizes[0][2]
    assert sizes[1][2] > sizes[1][0]
    assert [tuple(b.shape[2:]) for b in laplacian_bands(torch.zeros(1, 3, 5, 1), 9)] == [(5, 1), (3, 1), (2, 1)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"l1_weight": -1.0}, "l1_weight must not be negative"),
        ({"l1_weight": 0.0, "detail_weight": 0.0}, "one of them must be positive"),
        ({"levels": 0}, "levels must be at least 1"),
        ({"adversarial_start": -1}, "adversarial_start"),
    ],
)
def test_bad_settings_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        DecoderConfig(**given)


def test_what_cannot_be_tuned_is_refused():
    for given in ({"width": 12}, {"width": 0}, {"layers": 0}, {"layers": 7}):
        with pytest.raises(UserError, match=rf"recipe\.discriminator\.{next(iter(given))}"):
            PatchConfig(**given)
    with pytest.raises(UserError, match=r"set domain\.student to decoder"):
        Decoder(DecoderConfig(adversarial_weight=0.0), Actors({"student": nn.Linear(1, 1)}, PROCESS, (1,)))
    with pytest.raises(UserError, match="Identity has no decoder to tune"):
        tunable(nn.Identity())
    bed = Bed(adversarial_weight=0.0)
    latents = Batch(4, bed.batch().cond, torch.zeros(4, 2, 4, 4))
    with pytest.raises(UserError, match="compares pictures"):
        bed.recipe.loss("student", latents, Rng.for_batch(0, 0, 4), 0)
    assert Decoder.plan(DecoderConfig(), PROCESS, 1).times == (999,)
