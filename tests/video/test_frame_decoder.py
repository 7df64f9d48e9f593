"""Frames decoded one by one: the autoencoder's own pixels, with gradient to the latents and none to its weights."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.data.problem import Decoder
from fewstep.core.models.loading import Teacher
from fewstep.core.models.settings import ModelConfig
from fewstep.core.rng import Rng
from fewstep.video.frame_decoder import FrameDecoder


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(Teacher.find("tiny:wan"), ModelConfig(), "cpu")


def latents(decoder: Decoder, frames: int) -> torch.Tensor:
    channels, _, height, width = decoder.teacher.shape
    return Rng.for_batch(0, 0, frames).normal("latents", (channels, height, width))


def test_a_frame_is_what_a_clip_of_one_frame_decodes_to(decoder: Decoder) -> None:
    x = latents(decoder, 3)
    found = FrameDecoder(decoder, recompute=False)(x)
    assert torch.equal(found, decoder.decode(x[:, :, None])[:, :, 0])
    assert found.shape == (3, 3, decoder.teacher.size.height, decoder.teacher.size.width)


def test_recomputing_changes_neither_frames_nor_gradients(decoder: Decoder) -> None:
    x = latents(decoder, 2)
    found = []
    for recompute in (False, True):
        leaf = x.clone().requires_grad_()
        frames = FrameDecoder(decoder, recompute=recompute)(leaf)
        torch.autograd.backward(frames.square().sum())
        assert leaf.grad is not None
        assert leaf.grad.abs().sum() > 0
        found.append((frames.detach(), leaf.grad))
    torch.testing.assert_close(found[1], found[0])
    assert all(p.grad is None and not p.requires_grad for p in decoder.ready().vae.parameters())


def test_it_holds_no_parameters_of_its_own(decoder: Decoder) -> None:
    frames = FrameDecoder(decoder, recompute=False)
    assert not list(frames.parameters())
    assert not frames.state_dict()
