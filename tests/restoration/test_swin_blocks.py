"""Windows of Swin layers against attention written out, and what may see what."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from fewstep.restoration.models.swin_blocks import (
    ResidualBlock,
    SwinBlock,
    SwinLayer,
    WindowAttention,
    relative_index,
    shifted_mask,
    unwindows,
    windows,
)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(shifted, side=4, width=16):
    with torch.random.fork_rng():
        torch.random.set_rng_state(torch.Generator().manual_seed(0).get_state())
        made = SwinBlock(width, 2, side, mlp_ratio=2.0, dropout=0.0, shifted=shifted).double()
        made.attention.bias.data.copy_(noise(*made.attention.bias.shape, seed=9))
    return made.requires_grad_(False)


def reached(made, height, width, at):
    """Where the output changes when one position of the input does."""
    x = noise(1, height, width, 16)
    moved = x.clone()
    moved[0, at[0], at[1]] += noise(16, seed=1)
    return (made(moved) - made(x)).abs().amax(-1)[0] > 1e-12


def test_windows_and_back():
    x = noise(2, 8, 12, 3)
    assert torch.equal(windows(x, 4)[1, 4].view(4, 4, 3), x[1, 4:8, 4:8])
    assert torch.equal(unwindows(windows(x, 4), 4, 8, 12), x)


def test_pairs_of_the_same_offset_share_a_bias():
    side = 3
    index = relative_index(side, torch.device("cpu"))
    offsets = {}
    for i in range(side**2):
        for j in range(side**2):
            offset = (i // side - j // side, i % side - j % side)
            assert offsets.setdefault(offset, int(index[i, j])) == int(index[i, j])
    assert len(set(offsets.values())) == len(offsets) == (2 * side - 1) ** 2


def test_attention_is_that_written_out():
    side, heads, width = 3, 2, 8
    with torch.random.fork_rng():
        made = WindowAttention(width, heads, side).double().requires_grad_(False)
    x, size = noise(1, 2, side**2, width), width // heads
    mask = torch.rand((2, side**2, side**2), generator=torch.Generator().manual_seed(3)) < 0.7
    mask |= torch.eye(side**2, dtype=torch.bool)
    found = made(x, mask)
    for n in range(2):
        q, k, v = made.to_qkv(x[0, n]).chunk(3, 1)
        parts = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            rows = []
            for i in range(side**2):
                logits = []
                for j in range(side**2):
                    offset = (i // side - j // side + side - 1) * (2 * side - 1) + i % side - j % side + side - 1
                    logit = float(q[i, part] @ k[j, part]) / math.sqrt(size) + float(made.bias[offset, head])
                    logits.append(logit if mask[n, i, j] else -math.inf)
                rows.append(torch.tensor(logits, dtype=torch.float64).softmax(0) @ v[:, part])
            parts.append(torch.stack(rows))
        assert_close(found[0, n], made.to_out(torch.cat(parts, 1)), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("shifted", [False, True])
def test_moving_a_picture_by_a_window_moves_the_result(shifted):
    made, x = block(shifted), noise(1, 16, 16, 16)
    inner = made(x)[:, 4:12, 4:12]
    moved = made(x.roll((4, 4), (1, 2)))[:, 8:16, 8:16]
    assert_close(moved[:, :4, :4], inner[:, :4, :4], atol=1e-12, rtol=1e-12)
    if not shifted:
        assert_close(made(x.roll((4, 8), (1, 2))), made(x).roll((4, 8), (1, 2)), atol=1e-12, rtol=1e-12)
    assert not torch.allclose(made(x.roll((1, 1), (1, 2))), made(x).roll((1, 1), (1, 2)))


def test_a_window_sees_itself_only():
    seen = reached(block(False), 8, 12, (1, 6))
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[0:4, 4:8] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize(
    ("at", "rows", "columns"),
    [
        ((0, 0), slice(0, 2), slice(0, 2)),  # a corner sees its own half windows, not the other side
        ((3, 5), slice(2, 6), slice(2, 6)),
        ((7, 5), slice(6, 8), slice(2, 6)),
        ((7, 11), slice(6, 8), slice(10, 12)),
        ((1, 7), slice(0, 2), slice(6, 10)),
    ],
)
def test_shifted_windows_do_not_reach_across_borders(at, rows, columns):
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[rows, columns] = True
    assert torch.equal(reached(block(True), 8, 12, at), expected)


def test_along_an_axis_of_one_window_nothing_is_shifted():
    made = block(True)
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[:, 2:6] = True
    assert torch.equal(reached(made, 4, 8, (3, 3)), expected)
    x = noise(1, 4, 4, 16)
    assert torch.equal(made(x), block(False)(x))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (12, 16)])
def test_a_mask_is_that_of_the_actual_size(height, width):
    mask = shifted_mask(height, width, 4, (2, 2), torch.device("cpu"))
    place = torch.arange(height * width).view(height, width)
    parts = windows(place.roll((-2, -2), (0, 1))[None, ..., None], 4)[0, ..., 0]
    rows, columns = parts // width, parts % width
    near = ((rows[:, :, None] - rows[:, None]).abs() < 4) & ((columns[:, :, None] - columns[:, None]).abs() < 4)
    assert torch.equal(mask, near)


def test_a_layer_is_the_identity_until_its_projection_is_trained():
    options = {"heads": 2, "depth": 2, "side": 4, "mlp_ratio": 2.0, "dropout": 0.0, "patch_norm": True}
    with torch.random.fork_rng():
        made, x = SwinLayer(8, 16, **options).double(), noise(1, 8, 8, 8)
    assert torch.equal(made(x), x)
    made(x).square().sum().backward()
    assert made.unembed.weight.grad.any()
    with torch.no_grad():
        made.unembed.weight.copy_(noise(8, 16, 1, 1))
        assert not torch.allclose(made(x), x)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_a_residual_block_is_its_shortcut_until_it_is_trained(scale_shift):
    with torch.random.fork_rng():
        made = ResidualBlock(32, 64, 8, dropout=0.0, scale_shift=scale_shift).double()
    x, told = noise(2, 32, 4, 4), noise(2, 8)
    assert torch.equal(made(x, told), made.shortcut(x))
    with torch.no_grad():
        made.conv2.weight.copy_(noise(64, 64, 3, 3))
        base = made(x, told)
        assert not torch.allclose(made(x, told + 1), base)
        # FiLM with scale -1 and no shift leaves the bias of what follows: silu(0) = 0
        if scale_shift:
            made.time_proj.weight.zero_()
            made.time_proj.bias.copy_(torch.cat([-torch.ones(64), torch.zeros(64)]))
            assert_close(made(x, told), made.shortcut(x))
