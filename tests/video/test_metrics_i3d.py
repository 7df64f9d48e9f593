"""I3D as an interface: the user's weights are read whole or refused, and borders are filled as the network needs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from video.clip_bed import discs

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.video.metrics.i3d import COUNTED, I3D, i3d_space, pool, same


@pytest.fixture(scope="module")
def state():
    with Rng(0, 0, (0,)).network_noise("i3d"):
        model = I3D()
    return {name: x for name, x in model.state_dict().items() if not name.endswith(COUNTED)}


def test_the_users_weights_are_what_runs_and_frames_become_squares(state, tmp_path, monkeypatch):
    def first(model: I3D, x: torch.Tensor) -> torch.Tensor:
        assert x.shape == (1, 3, 9, 224, 224)
        return x.mean((2, 3, 4)) @ model.logits["conv3d"].weight[:, :3, 0, 0, 0].T + model.logits["conv3d"].bias

    monkeypatch.setattr(I3D, "forward", first)
    file = tmp_path / "i3d.safetensors"
    save_file(state, file)
    space = i3d_space(file)
    clips = discs(2, frames=9)
    weight, bias = state["logits.conv3d.weight"][:, :3, 0, 0, 0], state["logits.conv3d.bias"]
    assert_close(space.extract(clips), clips.mean((2, 3, 4)) @ weight.T + bias, atol=1e-4, rtol=1e-4)
    assert space.name.startswith("i3d-")
    assert "i3d.safetensors (sha256" in space.protocol
    with pytest.raises(UserError, match="at least 9 frames"):
        space.extract(clips[:, :, :8])


def test_it_has_four_hundred_logits_and_a_head_of_zeros_leaves_their_bias(state):
    model = I3D().eval()
    head = {"logits.conv3d.weight": torch.zeros(400, 1024, 1, 1, 1), "logits.conv3d.bias": torch.arange(400.0)}
    model.load_state_dict(state | head, strict=False)
    with torch.no_grad():
        assert_close(model(torch.zeros(1, 3, 9, 224, 224)), torch.arange(400.0)[None])


def test_it_has_the_published_number_of_weights(state):
    """12.7 million with 400 classes, of which the normalisations' running moments are no parameters."""
    assert sum(x.numel() for name, x in state.items() if "running" not in name) == 12_697_264


@pytest.mark.parametrize("what", ["missing", "unknown", "shape", "text"])
def test_files_that_hold_something_else_are_refused(state, tmp_path, what):
    file = tmp_path / "weights.safetensors"
    changed = dict(state)
    if what == "missing":
        del changed["Mixed_4c.b1b.bn.bias"]
    elif what == "unknown":
        changed["extra.weight"] = torch.zeros(1)
    elif what == "shape":
        changed["logits.conv3d.bias"] = torch.zeros(600)
    if what == "text":
        file.write_text("weights", encoding="utf-8")
    else:
        save_file(changed, file)
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        i3d_space(file)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        i3d_space(tmp_path / "none.safetensors")


def test_borders_make_the_output_the_input_over_the_stride():
    for size, kernel, stride in ((9, 7, 2), (8, 3, 2), (7, 3, 1), (5, 2, 2), (4, 1, 1)):
        x = torch.rand(1, 1, size, size, size, generator=torch.Generator().manual_seed(0))
        assert pool(x, (kernel,) * 3, (stride,) * 3).shape[-1] == -(-size // stride)
        filled = same(x, (kernel,) * 3, (stride,) * 3)
        assert float(filled.sum()) == pytest.approx(float(x.sum()), rel=1e-5)
    assert same(torch.ones(1, 1, 4, 4, 4), (3, 3, 3), (2, 2, 2))[0, 0, 0, 0].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
