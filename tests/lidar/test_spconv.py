"""spconv's kernels on our kernel maps give what plain torch gives; without spconv there is a line that says so."""

from __future__ import annotations

import gc
import importlib.util
import sys

import pytest
import torch
from lidar.test_sparse import generator, occupied
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.unet import NetworkConfig
from fewstep.lidar.sparse.backend import find_backend, using_backend
from fewstep.lidar.sparse.ops import convolve
from fewstep.lidar.sparse.sites import Pairs
from fewstep.lidar.sparse.spconv import SpconvBackend

installed = importlib.util.find_spec("spconv") is not None
needs_spconv = pytest.mark.skipif(not installed, reason="spconv is not installed")
DEVICES = ("cpu", pytest.param("cuda", marks=[pytest.mark.gpu]))


def maps(device: str) -> dict[str, Pairs]:
    sites = occupied(0.2, 1)
    sites = type(sites)(sites.keys.to(device))
    _, down = sites.coarser
    return {"same": sites.neighbours, "down": down, "up": down.reverse()}


def test_absence_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("spconv", "spconv.pytorch", "spconv.pytorch.ops", "spconv.core"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install spconv-cu126") as caught:
        find_backend("spconv")
    assert "\n" not in str(caught.value)


@needs_spconv
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("which", ["same", "down", "up"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_convolution_and_gradients(which: str, dtype: torch.dtype, device: str) -> None:
    backend, pairs = SpconvBackend(), maps(device)[which]
    x = torch.randn(pairs.rows_in, 5, generator=generator(1)).to(device, dtype).requires_grad_(True)
    kernel = torch.randn(len(pairs.reads), 5, 7, generator=generator(2)).to(device, dtype).requires_grad_(True)
    weights = torch.randn(pairs.rows_out, 7, generator=generator(3)).to(device, dtype)
    results: list[tuple[Tensor, ...]] = []
    for made in (backend.convolve(x, kernel, pairs), convolve(x, kernel, pairs)):
        grads = torch.autograd.grad((made.square() * weights).sum(), (x, kernel), create_graph=True)
        twice = torch.autograd.grad(grads[0].square().sum() + grads[1].square().sum(), (x, kernel))
        results.append((made, *grads, *twice))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.detach().abs().max()))


@needs_spconv
@pytest.mark.gpu
def test_half_precision_is_close() -> None:
    for pairs in maps("cuda").values():
        x = torch.randn(pairs.rows_in, 16, generator=generator(1)).cuda().half()
        kernel = torch.randn(len(pairs.reads), 16, 8, generator=generator(2)).cuda().half()
        wanted = convolve(x.double(), kernel.double(), pairs)
        found = SpconvBackend().convolve(x, kernel, pairs).double()
        assert (found - wanted).abs().max() < 1e-2 * wanted.abs().max()


@needs_spconv
def test_no_pairs_and_no_rows() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    for pairs in (Pairs((nothing,) * 8, (nothing,) * 8, 3, 2), Pairs((nothing,) * 27, (nothing,) * 27, 0, 0, 13)):
        kernel = torch.randn(len(pairs.reads), 5, 7)
        out = SpconvBackend().convolve(torch.randn(pairs.rows_in, 5), kernel, pairs)
        assert torch.equal(out, torch.zeros(pairs.rows_out, 7))
    one = torch.zeros(1, dtype=torch.int64)
    alone = Pairs((nothing,) * 13 + (one,) + (nothing,) * 13, (nothing,) * 13 + (one,) + (nothing,) * 13, 1, 1, 13)
    x, kernel = torch.randn(1, 5), torch.randn(27, 5, 7)
    torch.testing.assert_close(SpconvBackend().convolve(x, kernel, alone), x @ kernel[13])


@needs_spconv
def test_a_table_is_made_once_and_goes_with_its_map() -> None:
    backend, pairs = SpconvBackend(), maps("cpu")["down"]
    table, _ = backend._table(pairs)
    assert backend._table(pairs)[0] is table
    assert backend._table(pairs.reverse())[0] is not table
    assert torch.equal(backend._table(pairs.reverse())[0], table.flip(0))
    assert len(backend._tables) == 2
    others = pairs._replace(adds=tuple(rows.flip(0) for rows in pairs.adds))  # shares what tables are found by
    assert torch.equal(backend._table(others)[0][0], table[0])
    assert not torch.equal(backend._table(others)[0][1], table[1])
    del pairs, others
    gc.collect()
    assert len(backend._tables) == 0


@needs_spconv
def test_a_whole_network_is_the_same() -> None:
    config = NetworkConfig(resolution=0.25, channels=(4, 4, 6, 8, 10), up_channels=(8, 6, 4, 4), time_width=8)
    backbone = LidarBackbone(config, seed=1).train()
    x = torch.randn(2, 300, 3, generator=generator(1)) * 2
    cond = {"scan": x[:, ::10]}
    results = []
    for name in ("torch", "spconv"):
        backbone.zero_grad()
        with using_backend(find_backend(name)):
            out = backbone(x, torch.tensor([3.0, 700.0]), cond)
            out.square().mean().backward()
        grads = [weight.grad.clone() for weight in backbone.parameters() if weight.grad is not None]
        results.append([out.detach(), *grads])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()) + 1e-6)
