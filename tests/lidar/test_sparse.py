"""Sparse convolution equals dense convolution where there are voxels, forward and backward, whatever the occupancy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.lidar.sparse import blocks, ops
from fewstep.lidar.sparse.backend import TorchBackend, find_backend, using_backend
from fewstep.lidar.sparse.layers import ConvNorm, ResidualBlock, SparseConv, VoxelNorm
from fewstep.lidar.sparse.ops import convolve
from fewstep.lidar.sparse.sites import HALF, Sites, pack, voxelise

SIDE, BATCH = 8, 3  # cubes of the dense twin; coordinates run from -4 to 3


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def occupied(share: float, seed: int, stride: int = 1) -> Sites:
    """Return random voxels of ``stride`` in a cube of SIDE strides, the first and the last corner among them."""
    cells = torch.rand(BATCH, SIDE, SIDE, SIDE, generator=generator(seed)) < share
    cells[0, 0, 0, 0] = cells[-1, -1, -1, -1] = True
    places = cells.nonzero()
    keys = pack((places[:, 1:] - SIDE // 2) * stride, places[:, 0])
    return Sites(keys.sort().values, stride)


def dense(features: Tensor, sites: Sites) -> Tensor:
    """Return the features in cubes "b c x y z", zero where there is no voxel."""
    out = features.new_zeros(BATCH, SIDE, SIDE, SIDE, features.shape[1])
    x, y, z = (sites.coords // sites.stride + SIDE // 2).unbind(1)
    return out.index_put((sites.sample, x, y, z), features).permute(0, 4, 1, 2, 3)


def at(cubes: Tensor, sites: Sites, origin: int = SIDE // 2) -> Tensor:
    x, y, z = (sites.coords // sites.stride + origin).unbind(1)
    return cubes[sites.sample, :, x, y, z]


def dense_kernel(kernel: Tensor, edge: int) -> Tensor:
    """Return a kernel "k ci co", x fastest, as torch's "co ci x y z"."""
    z_y_x = kernel.view(edge, edge, edge, *kernel.shape[1:])
    return z_y_x.permute(4, 3, 2, 1, 0)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("stride", [1, 4])
def test_three_cubed_kernel_is_dense_convolution_at_the_voxels(share: float, stride: int) -> None:
    sites = occupied(share, 1, stride)
    x = torch.randn(len(sites), 5, generator=generator(2), dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(27, 5, 4, generator=generator(3), dtype=torch.float64, requires_grad=True)
    out = convolve(x, kernel, sites.neighbours)
    wanted = at(torch.nn.functional.conv3d(dense(x, sites), dense_kernel(kernel, 3), padding=1), sites)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-10)
    weights = torch.randn(out.shape, generator=generator(4), dtype=torch.float64)
    found = torch.autograd.grad((out * weights).sum(), (x, kernel))
    expected = torch.autograd.grad((wanted * weights).sum(), (x, kernel))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("stride", [1, 2])
def test_two_cubed_kernel_is_dense_convolution_of_stride_two(share: float, stride: int) -> None:
    sites = occupied(share, 5, stride)
    coarse, pairs = sites.coarser
    x = torch.randn(len(sites), 3, generator=generator(6), dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(8, 3, 4, generator=generator(7), dtype=torch.float64, requires_grad=True)
    out = convolve(x, kernel, pairs)
    cubes = torch.nn.functional.conv3d(dense(x, sites), dense_kernel(kernel, 2), stride=2)
    wanted = at(cubes, coarse, SIDE // 4)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-10)
    # a coarse voxel exists exactly where one of its eight corners does
    assert set(map(tuple, coarse.coords.tolist())) == {
        tuple((torch.div(c, 2 * stride, rounding_mode="floor") * 2 * stride).tolist()) for c in sites.coords
    }
    weights = torch.randn(out.shape, generator=generator(8), dtype=torch.float64)
    found = torch.autograd.grad((out * weights).sum(), (x, kernel))
    torch.testing.assert_close(found, torch.autograd.grad((wanted * weights).sum(), (x, kernel)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("share", [0.05, 0.6])
def test_transposed_convolution_is_the_adjoint_and_the_dense_one(share: float) -> None:
    sites = occupied(share, 9)
    coarse, pairs = sites.coarser
    kernel = torch.randn(8, 3, 4, generator=generator(10), dtype=torch.float64)
    x = torch.randn(len(sites), 3, generator=generator(11), dtype=torch.float64)
    y = torch.randn(len(coarse), 4, generator=generator(12), dtype=torch.float64)
    back = convolve(y, kernel.transpose(1, 2), pairs.reverse())
    assert ((convolve(x, kernel, pairs) * y).sum() - (x * back).sum()).abs() < 1e-10
    half = SIDE // 2
    cubes = y.new_zeros(BATCH, 4, half, half, half)
    i, j, k = (coarse.coords // 2 + half // 2).unbind(1)
    cubes[coarse.sample, :, i, j, k] = y
    wanted = torch.nn.functional.conv_transpose3d(cubes, dense_kernel(kernel, 2), stride=2)
    torch.testing.assert_close(back, at(wanted, sites), rtol=0, atol=1e-10)


def test_gradients_of_gradients() -> None:
    sites = occupied(0.03, 13)
    x = torch.randn(len(sites), 2, generator=generator(14), dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(27, 2, 2, generator=generator(15), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: convolve(a, b, sites.neighbours), (x, kernel))
    assert torch.autograd.gradgradcheck(lambda a, b: convolve(a, b, sites.neighbours), (x, kernel))
    _, pairs = sites.coarser
    small = torch.randn(8, 2, 3, generator=generator(16), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a, b: convolve(a, b, pairs), (x, small))


@pytest.mark.parametrize("products", [5, 60, 1 << 20])
def test_blocks_of_any_size_hold_the_same_sums(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PRODUCTS", products)
    sites = occupied(0.1, 27)
    _, down = sites.coarser
    alone = Sites(sites.keys[:1]).neighbours  # a centre and nothing else
    for pairs in (sites.neighbours, sites.neighbours.reverse(), down, down.reverse(), alone):
        x = torch.randn(pairs.rows_in, 3, generator=generator(28), dtype=torch.float64)
        grad = torch.randn(pairs.rows_out, 4, generator=generator(29), dtype=torch.float64)
        kernel = torch.randn(len(pairs.reads), 3, 4, generator=generator(30), dtype=torch.float64)
        torch.testing.assert_close(ops._by_blocks(x, kernel, pairs), ops._by_elements(x, kernel, pairs))
        rows = zip(pairs.reads, pairs.adds, strict=True)
        wanted = torch.stack([x[reads].T @ grad[adds] for reads, adds in rows])
        torch.testing.assert_close(ops._weight_gradient(x, grad, pairs), wanted)
    assert (len(sites.neighbours.blocks) > 1) == (products < 100)


def test_neighbour_offsets_are_counted_x_first() -> None:
    sites = Sites(pack(torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]), torch.zeros(4)).sort().values)
    row = {tuple(c): i for i, c in enumerate(sites.coords.tolist())}
    for k, offset in ((14, (1, 0, 0)), (16, (0, 1, 0)), (22, (0, 0, 1))):
        reads, adds = sites.neighbours.reads[k], sites.neighbours.adds[k]
        assert (row[offset], row[0, 0, 0]) in set(zip(reads.tolist(), adds.tolist(), strict=True))


def test_voxels_round_average_and_slice() -> None:
    points = torch.tensor([[0.024, 0.0, 0.0], [-0.024, 0.01, 0.0], [0.026, 0.0, 0.0], [0.024, 0.0, 0.0], [-1.0, 0, 0]])
    voxels = voxelise(points, torch.tensor([0, 0, 0, 0, 1]), 0.05)
    assert voxels.sites.coords.tolist() == [[0, 0, 0], [1, 0, 0], [-20, 0, 0]]
    mean = voxels.mean(points)
    torch.testing.assert_close(mean[0], points[[0, 1, 3]].mean(0))  # duplicates count as often as they occur
    assert torch.equal(voxels.slice(mean)[0], voxels.slice(mean)[1])


def test_a_batch_is_its_clouds_apart() -> None:
    points = torch.randn(2, 400, 3, generator=generator(17), dtype=torch.float64)
    torch.manual_seed(0)
    block = ResidualBlock(3, 6).double().eval()
    for part in block.modules():
        if isinstance(part, VoxelNorm):
            torch.nn.init.uniform_(part.running_mean)

    def run(clouds: Tensor) -> Tensor:
        sample = torch.arange(len(clouds)).repeat_interleave(400)
        voxels = voxelise(clouds.flatten(0, 1), sample, 0.3)
        out = block(voxels.mean(clouds.flatten(0, 1)), voxels.sites.neighbours)
        return voxels.slice(out).view(len(clouds), 400, 6)

    together = run(points)
    torch.testing.assert_close(together, torch.cat([run(points[:1]), run(points[1:])]), rtol=0, atol=1e-10)
    order = torch.randperm(400, generator=generator(18))
    torch.testing.assert_close(run(points[:, order]), together[:, order], rtol=0, atol=1e-10)


def test_shifting_by_whole_voxels_moves_nothing() -> None:
    points = torch.randn(300, 3, generator=generator(19), dtype=torch.float64)
    sample = torch.zeros(300, dtype=torch.long)
    kernel = torch.randn(27, 1, 2, generator=generator(20), dtype=torch.float64)

    def run(shift: float) -> Tensor:
        voxels = voxelise(points + shift, sample, 0.25)
        ones = torch.ones(len(voxels.sites), 1, dtype=torch.float64)
        return voxels.slice(convolve(ones, kernel, voxels.sites.neighbours))

    torch.testing.assert_close(run(0.0), run(-500.0), rtol=0, atol=1e-10)


def test_a_single_voxel_trains_on_running_statistics() -> None:
    norm = VoxelNorm(4).train()
    x = torch.randn(1, 4, generator=generator(21))
    assert torch.equal(norm(x), norm.eval()(x))
    many = torch.randn(9, 4, generator=generator(22))
    torch.testing.assert_close(norm.train()(many).mean(0), torch.zeros(4), rtol=0, atol=1e-6)


def test_half_precision_adds_up_in_full() -> None:
    sites = occupied(1.0, 23)
    conv = SparseConv(8, 8, 27)
    x = torch.randn(len(sites), 8, generator=generator(24))
    exact = conv(x, sites.neighbours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = conv(x, sites.neighbours)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().max() < 0.03 * exact.abs().max()


def test_bounds_and_bad_points_are_refused() -> None:
    with pytest.raises(UserError, match="from the origin"):
        pack(torch.tensor([[HALF, 0, 0]]), torch.zeros(1))
    with pytest.raises(UserError, match="not finite"):
        voxelise(torch.tensor([[float("nan"), 0, 0]]), torch.zeros(1, dtype=torch.long), 0.05)
    with pytest.raises(UserError, match="from the origin"):
        voxelise(torch.tensor([[5e5, 0, 0]]), torch.zeros(1, dtype=torch.long), 0.05)


def test_backends_are_found_by_name_and_used_where_asked() -> None:
    with pytest.raises(UserError, match="did you mean 'torch'"):
        find_backend("torh")

    class Recording(TorchBackend):
        calls = 0

        def convolve(self, x: Tensor, weight: Tensor, pairs: object) -> Tensor:
            self.calls += 1
            return super().convolve(x, weight, pairs)  # type: ignore[arg-type]

    recording, sites = Recording(), occupied(0.1, 25)
    layer, x = ConvNorm(3, 4, 27), torch.randn(len(sites), 3, generator=generator(26))
    with using_backend(recording):
        layer(x, sites.neighbours)
    layer(x, sites.neighbours)
    assert recording.calls == 1
