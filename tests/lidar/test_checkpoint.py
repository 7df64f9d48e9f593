"""Checkpoints: what torch saved is read to the bit, and nothing in a file is ever run, whatever is wrong with it."""

from __future__ import annotations

import collections
import io
import os
import pickletools
import random
import subprocess
import sys
import tracemalloc
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.errors import UserError
from fewstep.lidar.models.checkpoint import DTYPES, Checkpoint
from fewstep.lidar.models.pickled import OPAQUE, SavedTensor, read_pickle

FOLDER = "archive/"
CUT, CHANGED, MOVED = 40, 250, 80
CASES = CUT + CHANGED + MOVED


class Runs:
    """Pickles to a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call[0], self.call[1:]


def lightning(state: dict[str, Any]) -> dict[str, Any]:
    """What a Lightning checkpoint holds beside the weights, objects of arbitrary classes among it."""
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 19,
        "pytorch-lightning_version": "1.3.8",
        "hyper_parameters": {"args": Namespace(lr=1e-4), "path": Path("x"), 3: {1, 2}, (1, 2): frozenset({"a"})},
        "optimizer_states": [optimizer.state_dict()],
        "callbacks": {type(layer): collections.defaultdict(list, a=[1.5, None, True, b"x", 1 << 70])},
        "loops": collections.OrderedDict([("a", 1)]),
        "state_dict": state,
        "rng": random.Random(0),
    }


def examples() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 5, 6, generator=generator) * 20
    made = {f"x.{name}": values.to(dtype) for name, dtype in DTYPES.items()}
    made["y.turned"] = values.permute(2, 0, 1)
    made["y.part"] = values[1:3, ::2, 1::3]
    made["y.number"] = torch.tensor(7)
    made["y.parameter"] = nn.Parameter(values)
    made["y.same"] = values
    return made


def saved(content: Any, file: Path, **options: Any) -> Path:
    torch.save(content, file, **options)
    return file


def read(file: Path) -> dict[str, Tensor]:
    with Checkpoint(file) as found:
        return dict(found)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_was_saved_is_read_in_order_and_to_the_bit(tmp_path: Path, protocol: int) -> None:
    wanted = examples()
    for content in (lightning(wanted), wanted, {"model": wanted}, {"model_state_dict": wanted, "step": 3}):
        found = read(saved(content, tmp_path / "x.ckpt", pickle_protocol=protocol))
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value)
            assert found[name].is_contiguous()
            assert found[name].untyped_storage().nbytes() == value.numel() * value.element_size()


def test_a_modules_own_state_dict_and_its_metadata(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    found = read(saved(module.state_dict(), tmp_path / "x.pt"))
    assert list(found) == list(module.state_dict())
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    other.load_state_dict(found)
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), module.state_dict().values(), strict=True)
    )


def test_nothing_in_a_checkpoint_is_run_or_imported(tmp_path: Path) -> None:
    mark = tmp_path / "run"
    (tmp_path / "evil_module.py").write_text(f"open({str(mark)!r}, 'w')\n")
    content = lightning({"w": torch.ones(2)})
    content["a"] = Runs(os.system, f"touch {mark}")
    content["state_dict"]["b"] = Runs(subprocess.check_call, ["touch", str(mark)])
    content["c"] = Runs(exec, f"open({str(mark)!r}, 'w')")
    file = saved(content, tmp_path / "x.ckpt")
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    index = next(name for name in entries if name.endswith("data.pkl"))
    call = b"cevil_module\nrun\n)R0" + b"(S'touch'\nios\nsystem\n0"  # imports, then calls by another opcode
    entries[index] = entries[index][:2] + call + entries[index][2:]
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(entries[index])}
    assert {"REDUCE", "BUILD", "INST", "GLOBAL"} <= opcodes
    sys.path.insert(0, str(tmp_path))
    try:
        assert list(read(file)) == ["w"]
        assert not mark.exists()
        assert "evil_module" not in sys.modules
        with pytest.raises(Exception, match=r"."):
            torch.load(file, weights_only=False)  # the file does what it is said not to do here
        assert mark.exists()
    finally:
        sys.path.remove(str(tmp_path))


def storage(kind: str = "FloatStorage", key: str = "0", numel: int = 6) -> bytes:
    return b"(S'storage'\nctorch\n%s\nS'%s'\nS'cpu'\nI%d\ntQ" % (kind.encode(), key.encode(), numel)


def tensor(shape: str = "(I2\nI3\nt", strides: str = "(I3\nI1\nt", offset: int = 0, **kwargs: Any) -> bytes:
    call = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return call + storage(**kwargs) + b"I%d\n" % offset + shape.encode() + strides.encode() + b"I00\n}tR"


def archive(file: Path, index: bytes, entries: dict[str, bytes] | None = None, **options: Any) -> Path:
    with zipfile.ZipFile(file, "w", **options) as made:
        made.writestr(f"{FOLDER}data.pkl", index)
        for name, data in ({"data/0": bytes(24)} if entries is None else entries).items():
            made.writestr(FOLDER + name, data)
    return file


def held(value: bytes) -> bytes:
    return b"}S'w'\n" + value + b"s."


def test_hand_made_file_is_a_file(tmp_path: Path) -> None:
    assert torch.equal(read(archive(tmp_path / "x.pt", held(tensor())))["w"], torch.zeros(2, 3))


BROKEN = [
    (held(tensor(numel=7)), "no storage of the right size"),
    (held(tensor(kind="DoubleStorage")), "no storage of the right size"),
    (held(tensor(key="../0")), "no storage of the right size"),
    (held(tensor(kind="ComplexFloatStorage")), "only numbers are read"),
    (held(tensor(offset=1)), "does not lie within"),
    (held(tensor(offset=-1)), "does not lie within"),
    (held(tensor(strides="(I4\nI1\nt")), "does not lie within"),
    (held(tensor(strides="(I-1\nI1\nt")), "does not lie within"),
    (held(tensor(strides="(I1\nt")), "does not lie within"),
    (held(tensor(shape="(I0\nI3\nt")), "does not lie within"),
    (held(tensor(shape="(I-2\nI-3\nt")), "does not lie within"),
    (held(tensor(shape="(I1000000000000\nI3\nt", strides="(I0\nI0\nt")), "does not lie within"),
    (held(tensor(shape=f"(I{10**400}\nI3\nt")), "does not lie within"),
    (held(tensor(shape="(S'2'\nI3\nt")), "no state dict"),
    (held(b"N"), "no state dict"),
    (b"N.", "no state dict"),
    (b"]I1\na.", "no state dict"),
    (b"}S'state_dict'\n}s.", "no state dict"),
    (b"", "damaged"),
    (b"}", "damaged"),
    (b".", "damaged"),
    (b"R.", "damaged"),
    (b"}h\x05.", "damaged"),
    (b"t.", "damaged"),
    (b"\xff.", "damaged"),
    (b"\x8d" + b"\xff" * 7 + b"\x7fabc", "damaged"),
    (held(tensor())[:-1], "damaged"),
    (b"}S'" + b"w" * 5000 + b"'\n" + tensor() + b"s.", "is no name"),
    (b"\x80\x02}" + b"".join(b"S'%d'\n" % i + tensor() + b"s" for i in range(1000)) + b".", None),
]


@pytest.mark.parametrize(("index", "message"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, index: bytes, message: str | None) -> None:
    file = archive(tmp_path / "x.pt", index)
    if message is None:
        assert len(read(file)) == 1000
        return
    with pytest.raises(UserError, match=message) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(file))


def test_deep_and_circular_structures_are_no_trouble() -> None:
    circle = read_pickle(b"]q\x00h\x00a.")
    assert circle[0] is circle
    deep = b")" + b"\x85" * 100_000  # a tuple in a tuple, and so on; hashing it would overflow
    assert list(read_pickle(b"}" + deep + b"NsS'a'\nI1\ns.")) == ["a"]
    assert isinstance(read_pickle(deep + b"0" + tensor() + b"."), SavedTensor)
    assert read_pickle(b"c__main__\nX\n" + deep + b"\x81}b.") is OPAQUE


def test_what_is_no_such_file_is_said_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    with pytest.raises(UserError, match="no such file"):
        Checkpoint(file)
    with pytest.raises(UserError, match="no such file"):
        Checkpoint(tmp_path)
    saved({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="old format"):
        Checkpoint(file)
    for content in (b"", b"PK", b"\x08\x00\x00\x00{}"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="not a checkpoint"):
            Checkpoint(file)
    archive(file, held(tensor()), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compress"):
        Checkpoint(file)
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("word/document.xml", "x")
    with pytest.raises(UserError, match=r"data\.pkl"):
        Checkpoint(file)
    archive(file, held(tensor()), {"data/0": bytes(24), "byteorder": b"big"})
    with pytest.raises(UserError, match="big-endian"):
        Checkpoint(file)


def test_sizes_are_bounded_by_the_file(tmp_path: Path) -> None:
    file = archive(tmp_path / "x.pt", held(tensor()))
    good = file.read_bytes()
    entry = good.rindex(b"PK\x01\x02")
    for field in (20, 24):  # compressed and plain size of the last entry, in the directory
        bad = bytearray(good)
        bad[entry + field : entry + field + 4] = (1 << 31).to_bytes(4, "little")
        file.write_bytes(bad)
        with pytest.raises(UserError, match="damaged"):
            read(file)
    bad[entry + 20 : entry + 24] = (1 << 31).to_bytes(4, "little")
    file.write_bytes(bad)
    with pytest.raises(UserError, match="says it holds 2,147"):
        read(file)
    many = b"}" + b"".join(b"S'%d'\n" % i + b"h\x00s" for i in range(100)) + b"."
    wide = tensor(shape="(I1000\nt", strides="(I1\nt", numel=1000) + b"q\x000"
    archive(file, wide + many, {"data/0": bytes(4000)})
    with pytest.raises(UserError, match="more than the file can hold"):
        read(file)


def damaged(good: bytes, generator: random.Random) -> Iterator[bytes]:
    """Yield truncations, changed bytes, removed, doubled and foreign pieces."""
    for _ in range(CUT):
        yield good[: generator.randrange(len(good))]
    for _ in range(CHANGED):
        bad = bytearray(good)
        for _ in range(generator.choice((1, 1, 2, 8, 40))):
            bad[generator.randrange(len(bad))] = generator.choice((0, 255, generator.randrange(256)))
        yield bytes(bad)
    for _ in range(MOVED):
        a, b = sorted(generator.randrange(len(good)) for _ in range(2))
        yield generator.choice((good[:a] + good[b:], good[:b] + good[a:], good[:a] + good[a:b][::-1] + good[b:]))


@pytest.mark.parametrize("inside", [False, True], ids=["file", "index"])
def test_damage_is_refused_in_a_line_and_allocates_nothing(tmp_path: Path, inside: bool) -> None:
    file = saved(lightning({"a": torch.ones(2, 3), "b": torch.arange(4)}), tmp_path / "x.ckpt")
    good = file.read_bytes()
    rebuild: Callable[[bytes], bytes] = bytes
    if inside:  # zip checksums would catch most of it otherwise
        with zipfile.ZipFile(io.BytesIO(good)) as whole:
            entries = {entry.filename: whole.read(entry) for entry in whole.infolist()}
        index = next(name for name in entries if name.endswith("data.pkl"))
        good = entries[index]

        def rebuild(bad: bytes) -> bytes:
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w") as made:
                for name, data in entries.items():
                    made.writestr(name, bad if name == index else data)
            return out.getvalue()

    whole_size, results = len(file.read_bytes()), {"read": 0, "refused": 0}
    tracemalloc.start()
    try:
        for bad in damaged(good, random.Random(3)):
            file.write_bytes(rebuild(bad))
            try:
                read(file)
                results["read"] += 1
            except UserError as error:
                results["refused"] += "\n" not in str(error)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert min(results.values()) > 10
    assert sum(results.values()) == CASES
    assert peak < 64 * whole_size + (4 << 20)
