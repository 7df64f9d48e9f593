"""Released weights: kernels read the voxels they should, whole networks survive the way there and back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.errors import UserError
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.files import load_denoiser, load_refiner
from fewstep.lidar.models.refiner import Refiner
from fewstep.lidar.models.released import DENOISERS, REFINER, denoiser_from, find_denoiser, refiner_from, to_released
from fewstep.lidar.models.unet import NetworkConfig
from fewstep.lidar.models.verb import convert, convert_arguments
from fewstep.lidar.sparse.layers import VoxelNorm
from fewstep.lidar.sparse.sites import Sites, pack

SMALL = NetworkConfig(resolution=0.25, channels=(4, 4, 6, 8, 10), up_channels=(8, 6, 4, 4), time_width=8)
EVEN = NetworkConfig(resolution=0.25, channels=(6, 6, 6, 6, 6), up_channels=(6, 6, 6, 6), time_width=4)
State = dict[str, Tensor]


def lively(module: nn.Module) -> None:
    """Give norms statistics other than those of unit noise, so that eval mode is not the identity."""
    generator = torch.Generator().manual_seed(5)
    for part in module.modules():
        if isinstance(part, (VoxelNorm, nn.BatchNorm1d)):
            part.running_mean.copy_(0.3 * torch.randn(part.num_features, generator=generator))
            part.running_var.copy_(0.5 + torch.rand(part.num_features, generator=generator))
            part.num_batches_tracked.fill_(3)


@pytest.fixture(scope="module")
def backbone() -> LidarBackbone:
    made = LidarBackbone(SMALL, seed=1).eval()
    lively(made)
    return made


def scene() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    scan = torch.randn(2, 20, 3, generator=generator) * torch.tensor([4.0, 4.0, 0.5])
    x = scan.repeat(1, 10, 1) + torch.randn(2, 200, 3, generator=generator)
    return x, torch.tensor([3.0, 700.0]), {"scan": scan}


def cube(stride: int = 1) -> Sites:
    """Return the voxels of a cube of four strides' edge."""
    places = torch.cartesian_prod(*[torch.arange(-2, 2)] * 3) * stride
    return Sites(pack(places, torch.zeros(64, dtype=torch.int64)).sort().values, stride)


def one_hot(like: Tensor, element: int) -> Tensor:
    kernel = torch.zeros_like(like)
    kernel[element, 0, 0] = 1
    return kernel


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("offset", [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, -1), (1, -1, 1)])
def test_an_element_of_a_kernel_reads_the_neighbour_at_its_offset(
    backbone: LidarBackbone, offset: tuple[int, int, int], stride: int
) -> None:
    state = to_released(backbone)
    x_fastest = [(x, y, z) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    state["partial_enc.stem.0.kernel"] = one_hot(state["partial_enc.stem.0.kernel"], x_fastest.index(offset))
    made = denoiser_from(state, resolution=0.25)
    sites = cube(stride)
    features = sites.coords.float() / stride + 10  # a voxel's feature says where it is
    out = made.encoder.stem.first.conv(features, sites.neighbours)[:, 0]
    reads = sites.coords // stride + torch.tensor(offset)
    inside = ((reads >= -2) & (reads < 2)).all(1)
    assert torch.equal(out, torch.where(inside, reads[:, 0] + 10.0, torch.tensor(0.0)))


@pytest.mark.parametrize("corner", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
def test_elements_of_two_cubed_kernels_are_the_corners_of_a_coarser_voxel(
    backbone: LidarBackbone, corner: tuple[int, int, int]
) -> None:
    state = to_released(backbone)
    element = [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)].index(corner)
    for name in ("model.stage1.0.net.0.kernel", "model.up4.0.net.0.kernel"):
        state[name] = one_hot(state[name], element)
    made = denoiser_from(state, resolution=0.25)
    fine = cube()
    coarse, pairs = fine.coarser
    features = torch.zeros(64, 4)
    features[:, 0] = torch.arange(64) + 1.0
    down = made.unet.down[0].reduce.conv(features, pairs)
    for voxel, found in zip(coarse.coords, down, strict=True):
        child = (fine.coords == voxel + torch.tensor(corner)).all(1)
        assert found[0] == features[child, 0]
    parents = torch.zeros(len(coarse), 4)
    parents[:, 0] = torch.arange(len(coarse)) + 1.0
    up = made.unet.up[3].expand.conv(parents, pairs.reverse())[:, 0]
    for voxel, found in zip(fine.coords, up, strict=True):
        parent = (coarse.coords == voxel - torch.tensor(corner)).all(1)
        assert found == (parents[parent, 0] if parent.any() else 0)


@torch.no_grad()
@pytest.mark.parametrize("prefix", DENOISERS)
@pytest.mark.parametrize("config", [SMALL, EVEN], ids=["shortcuts", "no shortcuts"])
def test_there_and_back_is_the_same_network(config: NetworkConfig, prefix: str) -> None:
    x, t, cond = scene()
    made = LidarBackbone(config, seed=2).eval()
    lively(made)
    state = to_released(made, prefix)
    assert {name.partition(".")[0] + "." for name in state} == {prefix, DENOISERS[prefix]}
    back = denoiser_from(state, prefix, resolution=0.25)
    assert back.config == config
    assert not back.training
    assert torch.equal(back(x, t, cond), made(x, t, cond))
    again = to_released(back, prefix)
    assert list(again) == list(state)
    assert all(torch.equal(again[name], state[name]) for name in state)
    whole = made.train()(x, t, cond)
    torch.testing.assert_close(back.train()(x, t, cond), whole)


@torch.no_grad()
def test_a_refiner_there_and_back() -> None:
    x, _, _ = scene()
    made = Refiner(SMALL, up_factor=5, seed=2).eval()
    lively(made)
    state = to_released(made)
    assert all(name.startswith(REFINER) for name in state)
    back = refiner_from(state, resolution=0.25)
    assert back.up_factor == 5
    assert torch.equal(back(x), made(x))


def test_released_sizes_are_recognised() -> None:
    made = LidarBackbone(NetworkConfig(), seed=0)
    back = denoiser_from(to_released(made))
    assert back.config == NetworkConfig()
    assert sum(weight.numel() for weight in back.parameters()) == 32_672_467


class Conv(nn.Module):
    """A kernel as sparse convolution libraries keep it."""

    def __init__(self, elements: int, a: int, b: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(*[elements] * (elements > 1), a, b))


class Norm(nn.Module):
    """Batch norm as they keep it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(width)
        nn.init.uniform_(self.bn.weight)


def conv(elements: int, a: int, b: int) -> nn.Sequential:
    return nn.Sequential(Conv(elements, a, b), Norm(b), nn.ReLU())


class Residual(nn.Module):
    """Main path, then the shortcut where channels change."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.path = nn.Sequential(*conv(27, a, b), Conv(27, b, b), Norm(b))
        self.beside = nn.Sequential() if a == b else nn.Sequential(Conv(1, a, b), Norm(b))


def mlp(a: int, b: int, c: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(a, b), nn.LeakyReLU(0.1), nn.Linear(b, c))


class Foreign(nn.Module):
    """Encoder or denoiser in another code base's words: gates are defined just before the stage they act on."""

    def __init__(self, config: NetworkConfig, *, gated: bool) -> None:
        super().__init__()
        widths, ups, time = config.channels, config.up_channels, config.time_width
        self.begin = nn.Sequential(*conv(27, 3, widths[0]), *conv(27, widths[0], widths[0]))
        for i, (a, b) in enumerate(pairwise(widths)):
            if gated:
                self.gate(f"down{i}", time, widths[-1], widths[-1], a)
            setattr(self, f"level{i}", nn.Sequential(conv(8, a, a), Residual(a, b), Residual(b, b)))
        if not gated:
            return
        for i, (a, skip, b) in enumerate(zip((widths[-1], *ups[:-1]), widths[-2::-1], ups, strict=True)):
            self.gate(f"up{i}", time, widths[-1], a, a)
            blocks = nn.Sequential(Residual(b + skip, b), Residual(b, b))
            setattr(self, f"back{i}", nn.ModuleList([conv(8, a, b), blocks]))
        self.end = mlp(ups[-1], 20, 3)

    def gate(self, name: str, time: int, deep: int, hidden: int, width: int) -> None:
        setattr(self, f"{name}_scan", mlp(deep, deep, deep))
        setattr(self, f"{name}_when", mlp(time, time, deep))
        setattr(self, f"{name}_both", mlp(2 * deep, hidden, width))


def test_names_do_not_matter_order_and_shapes_do() -> None:
    torch.manual_seed(0)
    theirs: Any = nn.ModuleDict({"partial_enc": Foreign(SMALL, gated=False), "model": Foreign(SMALL, gated=True)})
    lively(theirs)
    made: Any = denoiser_from(theirs.state_dict(), resolution=0.25)
    assert made.config == SMALL
    model = theirs["model"]
    pairs = [
        (made.encoder.down[2].blocks[1].second, theirs["partial_enc"].level2[2].path[3:]),
        (made.unet.down[3].reduce, model.level3[0]),
        (made.unet.up[1].expand, model.back1[0]),
        (made.unet.up[2].blocks[0].first, model.back2[1][0].path),
    ]
    for ours, (kernel, norm, *_) in pairs:
        assert torch.equal(ours.conv.kernel(), kernel.kernel)
        assert torch.equal(ours.norm.weight, norm.bn.weight)
        assert torch.equal(ours.norm.running_var, norm.bn.running_var)
    beside = model.back3[1][0].beside
    assert torch.equal(made.unet.up[3].blocks[0].shortcut.weight.T, beside[0].kernel)
    assert torch.equal(made.unet.up[3].blocks[0].shortcut_norm.running_mean, beside[1].bn.running_mean)
    for side, gates in (("down", made.unet.down_gates), ("up", made.unet.up_gates)):
        for i, gate in enumerate(gates):
            for ours, name in ((gate.scan, "scan"), (gate.time, "when"), (gate.joint, "both")):
                assert torch.equal(ours[2].weight, getattr(model, f"{side}{i}_{name}")[2].weight)
    assert torch.equal(made.unet.head[0].weight, model.end[0].weight)
    # without counts of batches, and with 1x1x1 kernels that keep their first axis, it is the same network
    state = {name: value for name, value in theirs.state_dict().items() if not name.endswith("tracked")}
    flat = "model.back3.1.0.beside.0.kernel"
    again = denoiser_from({**state, flat: state[flat][None]}, resolution=0.25)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), made.parameters(), strict=True))


def moved(state: State, name: str, before: str) -> State:
    names = [each for each in state if each != name]
    names.insert(names.index(before), name)
    return {each: state[each] for each in names}


def exchanged(state: State, a: str, b: str) -> State:
    """Return the state with the places, not the names, of two tensors exchanged."""
    other = {a: b, b: a}
    return {other.get(name, name): state[other.get(name, name)] for name in state}


def cut(state: State, name: str) -> State:
    return {each: value for each, value in state.items() if each != name}


def changed(state: State, name: str, value: Callable[[Tensor], Tensor]) -> State:
    assert name in state
    return {**state, name: value(state[name])}


def renamed(state: State, old: str, new: str) -> State:
    return {name.replace(old, new): value for name, value in state.items()}


WRONG: dict[str, tuple[Callable[[State], State], str]] = {
    "backwards": (lambda s: {name: s[name] for name in reversed(s)}, "order"),
    "kernel moved": (lambda s: moved(s, "model.stem.3.kernel", "model.stage1.0.net.0.kernel"), "order"),
    "equal kernels": (
        lambda s: exchanged(s, "model.stage1.1.net.0.kernel", "model.stage1.1.net.3.kernel"),
        r"stage1\.1\.net.*order",
    ),
    "equal blocks": (
        lambda s: renamed(renamed(renamed(s, "stage1.1", "stage1.9"), "stage1.2", "stage1.1"), "stage1.9", "stage1.2"),
        "order",
    ),
    "other order of stages": (
        lambda s: dict(sorted(s.items(), key=lambda item: "stage4" in item[0])),
        "shape|channels|where|order",
    ),
    "kernel of another shape": (lambda s: changed(s, "model.up2.0.net.0.kernel", lambda k: k[:, :3]), r"up2.*shape"),
    "kernel on its side": (lambda s: changed(s, "model.up1.1.0.downsample.0.kernel", lambda k: k.mT), r"up1.*shape"),
    "flat kernel": (lambda s: changed(s, "model.stage3.1.net.0.kernel", lambda k: k.flatten()), "not a kernel"),
    "no kernel": (lambda s: cut(s, "partial_enc.stage3.1.net.0.kernel"), "convolutions where"),
    "no norm": (lambda s: cut(s, "model.stem.1.bn.running_mean"), r"stem\.1\.bn\.running_mean.*missing"),
    "no bias": (lambda s: cut(s, "model.scan_stage2.0.bias"), r"scan_stage2\.0\.bias.*missing"),
    "no layer": (lambda s: cut(s, "model.last.2.weight"), r"last\.2\.weight.*missing"),
    "one more": (lambda s: {**s, "model.classifier.weight": torch.ones(2)}, r"classifier\.weight.*no place"),
    "one more MLP": (
        lambda s: s | {f"model.z.{n}.{p}": s[f"model.last.{n}.{p}"] for n in (0, 2) for p in ("weight", "bias")},
        "MLPs where 25",
    ),
    "an MLP of its own": (
        lambda s: changed(s, "model.joint_up1.2.weight", lambda w: torch.cat([w, w])),
        r"joint_up1.*kinds: none",
    ),
    "gates exchanged": (
        lambda s: renamed(dict(sorted(s.items(), key=lambda item: "joint_up1" in item[0])), "joint_up1", "late"),
        r"joint_up2.*should be",
    ),
    "not finite": (
        lambda s: changed(s, "model.last.2.bias", lambda b: b.fill_(float("nan"))),
        r"last\.2\.bias.*not finite",
    ),
    "integers": (lambda s: changed(s, "model.stem.0.kernel", lambda k: k.long()), r"stem\.0\.kernel.*int64"),
    "encoder of another width": (
        lambda s: s | {n: v for n, v in to_released(LidarBackbone(EVEN)).items() if n.startswith("partial")},
        "where|do not belong|missing|no place|order",
    ),
    "nothing": (lambda s: {}, "0 convolutions"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_in_a_line(backbone: LidarBackbone, case: str) -> None:
    change, message = WRONG[case]
    state = {name: value.clone() for name, value in to_released(backbone).items()}
    with pytest.raises(UserError, match=message) as caught:
        denoiser_from(change(state), resolution=0.25, where="x.ckpt")
    assert "x.ckpt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_widths_that_cannot_be_told_apart_are_refused() -> None:
    twins = NetworkConfig(channels=(4, 4, 4, 4, 8), up_channels=(4, 4, 4, 4), time_width=8)
    with pytest.raises(UserError, match="kinds of MLPs for the time"):
        denoiser_from(to_released(LidarBackbone(twins)))


def test_a_network_told_more_than_scan_and_time_has_no_released_form(backbone: LidarBackbone) -> None:
    with pytest.raises(UserError, match="more inputs"):
        to_released(backbone.with_extras(("guidance",), seed=0))
    with pytest.raises(UserError, match="is not the prefix"):
        to_released(backbone, "net.")


def verb(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    convert_arguments(parser)
    convert(parser.parse_args([str(each) for each in arguments]))


@torch.no_grad()
def test_the_command_writes_what_the_file_holds(
    tmp_path: Path, backbone: LidarBackbone, capsys: pytest.CaptureFixture[str]
) -> None:
    x, t, cond = scene()
    teacher = LidarBackbone(SMALL, seed=9)
    student = to_released(backbone, "generator.")
    state = to_released(teacher, "model.") | student | {"other.weight": torch.ones(2)}
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": Path("x")}, tmp_path / "s.ckpt")
    verb(tmp_path / "s.ckpt", "--resolution", 0.25, "--out", tmp_path / "s")
    found = load_denoiser(tmp_path / "s")
    assert torch.equal(found(x, t, cond), backbone(x, t, cond))
    printed = capsys.readouterr().out
    assert "'generator.'" in printed
    assert "left out: model., other." in printed
    verb(tmp_path / "s.ckpt", "--resolution", 0.25, "--prefix", "model", "--out", tmp_path / "t")
    teacher.encoder.load_state_dict(backbone.encoder.state_dict())  # the student's took its place in the file
    assert torch.equal(load_denoiser(tmp_path / "t")(x, t, cond), teacher.eval()(x, t, cond))

    apart = {"d": {k: v for k, v in student.items() if k.startswith("generator.")}}
    apart["e"] = {k: v for k, v in student.items() if k.startswith("partial_enc.")}
    for name, part in apart.items():
        torch.save({"state_dict": part}, tmp_path / f"{name}.ckpt")
    with pytest.raises(UserError, match=r"no scan encoder 'partial_enc\.'.*--encoder"):
        verb(tmp_path / "d.ckpt", "--out", tmp_path / "d")
    with pytest.raises(UserError, match=r"no denoiser \(generator\..*holds 'partial_enc\.'"):
        verb(tmp_path / "e.ckpt", "--out", tmp_path / "d")
    verb(tmp_path / "d.ckpt", "--encoder", tmp_path / "e.ckpt", "--resolution", 0.25, "--out", tmp_path / "d")
    assert torch.equal(load_denoiser(tmp_path / "d")(x, t, cond), found(x, t, cond))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "d.ckpt", "e.ckpt", "s", "s.ckpt", "t"]

    with pytest.raises(UserError, match="exists already"):
        verb(tmp_path / "s.ckpt", "--out", tmp_path / "s")
    with pytest.raises(UserError, match="no refiner"):
        verb(tmp_path / "s.ckpt", "--refiner", "--out", tmp_path / "r")
    with pytest.raises(UserError, match="nothing under 'DiffModel"):
        verb(tmp_path / "s.ckpt", "--prefix", "DiffModel", "--out", tmp_path / "r")
    with pytest.raises(UserError, match="is not the prefix"):
        verb(tmp_path / "s.ckpt", "--prefix", "net", "--out", tmp_path / "r")
    with pytest.raises(UserError, match="cannot be written"):
        verb(tmp_path / "s.ckpt", "--out", tmp_path / "s.ckpt" / "r")
    assert not (tmp_path / "r").exists()


@torch.no_grad()
def test_the_command_finds_refiners(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _, _ = scene()
    made = Refiner(SMALL, up_factor=4, seed=2).eval()
    lively(made)
    torch.save({"state_dict": to_released(made)}, tmp_path / "r.ckpt")
    with pytest.raises(UserError, match="use --refiner"):
        verb(tmp_path / "r.ckpt", "--out", tmp_path / "r")
    with pytest.raises(UserError, match="needs neither"):
        verb(tmp_path / "r.ckpt", "--refiner", "--prefix", "model", "--out", tmp_path / "r")
    monkeypatch.chdir(tmp_path)
    verb("r.ckpt", "--refiner", "--resolution", 0.25, "--out", "r/")
    assert "4 points of each" in capsys.readouterr().out
    assert torch.equal(load_refiner(tmp_path / "r")(x), made(x))


def test_students_come_before_their_teachers() -> None:
    assert find_denoiser(["model.a", "generator.b", "DiffModel.c"], "", "x") == "generator."
    assert find_denoiser(["model_refine.a", "model.b"], "", "x") == "model."
