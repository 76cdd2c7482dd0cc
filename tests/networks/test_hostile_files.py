"""Weights files that mean harm: they give tensors or one line, never code, another error or much memory.

`DATAFREE_FUZZ=100000 pytest --timeout=0 tests/networks/test_hostile_files.py -k fuzz` tries so many instead of a few.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import io
import json
import os
import pickle
import pickletools
import struct
import sys
import tarfile
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from datafree.cli.main import main
from datafree.errors import DatafreeError, WeightsError
from datafree.networks.checkpoints import index as weights_index
from datafree.networks.checkpoints import torch_files, unpickler
from datafree.networks.checkpoints.convert import convert
from datafree.networks.checkpoints.weights import load_weights, read_shapes, read_tensors, save_weights
from datafree.networks.checkpoints.whole_modules import read_module
from datafree.networks.load import NetworkSpec, build_network
from datafree.preflight.identify import identify
from datafree.preflight.teacher_file import kind_of
from datafree.text import shown
from weights_files import refusal, same, small

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # what torch's files of before the zip format begin with


def refused(path: Path) -> str:
    return refusal(lambda: read_tensors(path), WeightsError)


# --- code ---


class Evil:
    """Pickles into a call that creates `canary`."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.canary}'",))


class EvilState:
    """Runs code when its attributes are put back."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["canary"]).touch()


class EvilReference(pickle.Pickler):
    """References to what lies outside of the pickle, made by code."""

    def persistent_id(self, thing: Any) -> Any:
        return ("storage", thing[0], "0", "cpu", 1) if isinstance(thing, list) else None


def by_hand(canary: str, *, text: str) -> bytes:
    return text.replace("COMMAND", f"touch '{canary}'").encode()


def with_reference(canary: str) -> bytes:
    content = io.BytesIO()
    EvilReference(content, protocol=2).dump([Evil(canary)])
    return content.getvalue()


# A way to run code while a pickle is loaded -> what makes such a pickle, and the name that it wants.
GUISES: dict[str, tuple[Callable[[str], bytes], str]] = {
    **{
        f"reduce, protocol {protocol}": (lambda c, p=protocol: pickle.dumps(Evil(c), protocol=p), "posix.system")
        for protocol in range(6)
    },
    "global and reduce": (lambda c: by_hand(c, text='cos\nsystem\n(S"COMMAND"\ntR.'), "os.system"),
    "inst": (lambda c: by_hand(c, text='(S"COMMAND"\nios\nsystem\n.'), "os.system"),
    "obj": (lambda c: by_hand(c, text='(cos\nsystem\nS"COMMAND"\no.'), "os.system"),
    "eval": (
        lambda c: by_hand(c, text='c__builtin__\neval\n(S"__import__(\'os\').system(\\"COMMAND\\")"\ntR.'),
        "builtins.eval",
    ),
    "extension": (lambda c: b"\x80\x02\x82\xf0(" + by_hand(c, text='S"COMMAND"\ntR.'), "extension_240"),
    "build": (lambda c: pickle.dumps(EvilState(c), protocol=2), "EvilState"),
    "array of objects": (lambda c: pickle.dumps(np.array([Evil(c)], dtype=object), protocol=2), "numpy"),
    "value of a dict": (lambda c: pickle.dumps({"a": Evil(c)}, protocol=2), "posix.system"),
    "thrown away": (lambda c: pickle.dumps(Evil(c), protocol=2)[:-1] + b"0}.", "posix.system"),
    "attribute": (
        lambda c: b"\x80\x02ccollections\nOrderedDict\n)R" + pickle.dumps({"a": Evil(c)}, protocol=2)[2:-1] + b"b.",
        "posix.system",
    ),
    "reference": (with_reference, "posix.system"),
}


def does_harm(content: bytes, canary: Path) -> bool:
    """Whether pickle itself runs the code in `content`; cleans up."""
    reader = pickle.Unpickler(io.BytesIO(content))  # noqa: S301 - to show it
    reader.persistent_load = lambda pid: pid  # type: ignore[method-assign]
    with contextlib.suppress(Exception):
        reader.load()
    harmful = canary.exists()
    canary.unlink(missing_ok=True)
    return harmful


def in_zip(content: bytes, **members: bytes) -> bytes:
    """What torch.save writes, with `content` as its pickle. Members are named with _ for . and __ for /."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("archive/data.pkl", content)
        for name, value in {"version": b"3\n", **members}.items():
            made.writestr(f"archive/{name.replace('__', '/').replace('_', '.')}", value)
    return archive.getvalue()


def in_old(content: bytes, *, info: bytes | None = None, keys: bytes | None = None, values: bytes = b"") -> bytes:
    """What torch.save wrote before the zip format: pickles in a row, and values."""
    info = pickle.dumps({"protocol_version": VERSION, "little_endian": True}, 2) if info is None else info
    keys = pickle.dumps([], 2) if keys is None else keys
    return pickle.dumps(MAGIC, 2) + pickle.dumps(VERSION, 2) + info + content + keys + values


GOOD = pickle.dumps({}, 2)
PLACES: dict[str, Callable[[bytes], bytes]] = {
    "zip.pt": in_zip,
    "zip.pth": in_zip,
    "zip.bin": in_zip,
    "zip.ckpt": in_zip,
    "plain.pt": bytes,
    "content.pt": in_old,
    "content.bin": in_old,
    "info.pth": lambda content: in_old(GOOD, info=content),
    "keys.pt": lambda content: in_old(GOOD, keys=content),
    "zip.safetensors": in_zip,
    "plain.safetensors": bytes,
    "content.safetensors": in_old,
}


@pytest.mark.parametrize("guise", GUISES)
def test_code_in_a_file_is_never_run_and_its_name_is_told(tmp_path: Path, guise: str) -> None:
    canary = tmp_path / "canary"
    make, wanted = GUISES[guise]
    content = make(str(canary))
    copyreg.add_extension("os", "system", 0xF0)
    try:
        assert does_harm(content, canary)
        for name, place in PLACES.items():
            (tmp_path / name).write_bytes(place(content))
            line = refused(tmp_path / name)
            with contextlib.suppress(WeightsError):
                read_module(tmp_path / name)
            with contextlib.suppress(WeightsError):
                convert(tmp_path / name, tmp_path / "new.safetensors")
            assert not canary.exists()
            if not name.endswith(".safetensors"):
                assert wanted in line
                assert "datafree convert" in line
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


def test_code_anywhere_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    evil = Evil(str(canary))
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = evil  # type: ignore[attr-defined]
    hooked = Forged(torch.ones(2), 0, (2,), (1,))
    hooked.parts = (*hooked.parts[:-1], OrderedDict(a=evil))
    contents = [
        {"state_dict": {"a": torch.ones(1)}, "more": [({"deep": (1, evil)},)]},
        {evil: torch.ones(1)},
        {"a": parameter},
        {"a": hooked},
    ]
    for content in contents:
        for zipped in (True, False):
            torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
            torch.load(tmp_path / "w.pt", weights_only=False)
            assert canary.exists()  # it would do harm
            canary.unlink()
            assert "posix.system" in refused(tmp_path / "w.pt")
            with contextlib.suppress(WeightsError):
                convert(tmp_path / "w.pt", tmp_path / "new.safetensors")
            (tmp_path / "new.safetensors").unlink(missing_ok=True)
            assert not canary.exists()


def test_code_beside_the_weights_in_an_archive_is_never_looked_at(tmp_path: Path) -> None:
    evil = pickle.dumps(Evil(str(tmp_path / "canary")))
    torch.save(small().state_dict(), tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt", "a") as archive:
        archive.writestr("w/extra.pkl", evil)
        archive.writestr("data.pkl", evil)
    assert same(read_tensors(tmp_path / "w.pt"), small().state_dict())
    torch.save(small().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with (tmp_path / "old.pt").open("ab") as file:
        file.write(evil)
    assert same(read_tensors(tmp_path / "old.pt"), small().state_dict())
    assert not (tmp_path / "canary").exists()


def test_the_environment_cannot_make_files_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Evil(str(tmp_path / "canary")), tmp_path / "w.pt")
    refused(tmp_path / "w.pt")
    assert not (tmp_path / "canary").exists()


COMMANDS = {  # every way from the command line to a pickle; FILE holds one
    "distill": ["distill", "FILE", "--size", "8"],
    "init": ["init", "FILE", "--size", "8"],
    "inspect": ["inspect", "FILE", "--size", "8"],
    "calibrate": ["calibrate", "FILE", "--size", "8", "--out", "calib"],
    "weights": ["distill", "timm/test_resnet", "--weights", "FILE", "--size", "8"],
    "inspect weights": ["inspect", "timm/test_resnet", "--weights", "FILE", "--size", "8"],
    "convert": ["convert", "FILE", "new.safetensors"],
    "directory": ["inspect", "hf/dir"],
}


@pytest.mark.thorough
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_a_pickle(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dir").mkdir()
    Path("dir/config.json").write_text(json.dumps({"architecture": "test_resnet", "num_classes": 4}))
    evil: dict[str, Any] = {"a": torch.ones(2), "b": Evil("canary")}
    names = ("w.pt", "w.pth", "w.bin", "w.ckpt", "w.tar", "w.pt2", "w.torchscript", "w.pdparams", "w.pkl")
    module = small()
    module.note = Evil("canary")  # type: ignore[assignment]
    for content in (evil, module):
        for name in names if "FILE" in COMMANDS[command] else names[:1]:
            torch.save(content, name)
            torch.save(content, "dir/pytorch_model.bin")
            monkeypatch.setattr(sys, "argv", ["datafree", *(word.replace("FILE", name) for word in COMMANDS[command])])
            with pytest.raises(SystemExit) as left:
                main()
            said = capfd.readouterr()
            assert left.value.code in (0, 2), said  # 0: tensors, taken out of what is not run
            assert left.value.code == 0 or len(said.err.strip().splitlines()) == 1, said
            assert not Path("canary").exists()
            Path("new.safetensors").unlink(missing_ok=True)
    torch.load("w.pt", weights_only=False)
    assert Path("canary").exists()  # the witness works


# --- every kind of file that holds a pickle ---


def lightning(file: Path, evil: Evil) -> None:
    beside = {"epoch": 1, "pytorch-lightning_version": "2.4.0", "callbacks": {"a": {"best": evil}}, "loops": {}}
    torch.save({**beside, "state_dict": small().state_dict(), "hyper_parameters": {"loss": evil}}, file)


def ultralytics(file: Path, evil: Evil) -> None:
    """A detector as `yolo train` writes it, of a class that is here for the time of writing."""
    kind = type("DetectionModel", (nn.Module,), {"__module__": "ultralytics.nn.tasks"})
    held: dict[str, Any] = {}
    for name in ("ultralytics", "ultralytics.nn", "ultralytics.nn.tasks"):
        held[name] = types.ModuleType(name)
    held["ultralytics.nn.tasks"].DetectionModel = kind
    network = kind()
    network.model, network.yaml, network.names = small(), {"nc": 1, "backbone": [], "head": [evil]}, {0: evil}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in held.items():
            patch.setitem(sys.modules, name, module)
        torch.save({"train_args": {"imgsz": 64, "hook": evil}, "model": network, "ema": None}, file)


def whole(file: Path, evil: Evil, *, zipped: bool = True) -> None:
    module = small()
    module.note = evil  # type: ignore[assignment]
    torch.save(module, file, _use_new_zipfile_serialization=zipped)


def script(file: Path, evil: Evil) -> None:
    content = pickle.dumps(evil)
    file.write_bytes(in_zip(content, constants_pkl=content, code____torch____py=b"pass"))


def tarred(file: Path, evil: Evil) -> None:
    """As torch wrote before 0.1.10."""
    with tarfile.open(file, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(evil)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def in_parts(file: Path, evil: Evil) -> None:
    torch.save({"a": torch.ones(1), "b": evil}, file.with_name("part.bin"))
    file.write_text(json.dumps({"weight_map": {"a": "part.bin"}}))


def by_torch(file: Path) -> Any:
    return torch.load(file, weights_only=False)


def by_numpy(file: Path) -> Any:
    found = np.load(file, allow_pickle=True)
    return found["a"] if isinstance(found, np.lib.npyio.NpzFile) else found


def by_pickle(file: Path) -> Any:
    return pickle.loads(file.read_bytes())  # noqa: S301 - to show it


def inside(member: str) -> Callable[[Path], Any]:
    """A pickle in an archive of either kind."""

    def read(file: Path) -> Any:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as zipped:
                content = zipped.read(member)
        else:
            with tarfile.open(file) as tar:
                content = b"".join(tar.extractfile(member) or [])
        return pickle.loads(content)  # noqa: S301 - to show it

    return read


# A kind of file -> what writes one that would run something, and what runs it.
BEARING: dict[str, tuple[Callable[[Path, Evil], object], Callable[[Path], Any]]] = {
    "last.ckpt": (lightning, by_torch),
    "best.pt": (ultralytics, by_torch),
    "module.pt": (whole, by_torch),
    "module.pth": (functools.partial(whole, zipped=False), by_torch),
    "pytorch_model.bin": (lambda file, evil: torch.save({"a": torch.ones(1), "b": evil}, file), by_torch),
    "net.pkl": (lambda file, evil: file.write_bytes(pickle.dumps({"w": evil})), by_pickle),
    "module.pkl": (whole, by_torch),
    "script.pt": (script, inside("archive/constants.pkl")),
    "script.torchscript": (script, inside("archive/data.pkl")),
    "old.tar": (tarred, inside("pickle")),
    "model.safetensors.index.json": (in_parts, lambda file: by_torch(file.with_name("part.bin"))),
    "net.onnx": (lambda file, evil: file.write_bytes(pickle.dumps(evil)), by_pickle),
    "net.weights": (lambda file, evil: file.write_bytes(pickle.dumps(evil)), by_pickle),
    "net.pdparams": (lambda file, evil: file.write_bytes(pickle.dumps({"w": evil})), by_pickle),
    "objects.npy": (lambda file, evil: np.save(file, np.array([evil], dtype=object)), by_numpy),
    "objects.npz": (lambda file, evil: np.savez(file, a=np.array([evil], dtype=object)), by_numpy),
    "array.pt": (lambda file, evil: torch.save({"a": np.array([evil], dtype=object)}, file), by_torch),
}
WAYS: dict[str, Callable[[Path], object]] = {  # in which a file is looked at
    "told": lambda file: kind_of(str(file)),
    "tensors": read_tensors,
    "shapes": read_shapes,
    "module": read_module,
    "identified": identify,
    "converted": lambda file: convert(file, file.with_name("new.safetensors")),
    "network": lambda file: build_network(NetworkSpec(network=str(file)), num_classes=2),
    "weights": lambda file: build_network(NetworkSpec(network="datafree/unet", weights=file), num_classes=2),
}


@pytest.mark.parametrize("kind", BEARING)
def test_no_kind_of_file_that_holds_a_pickle_has_it_run(kind: str, tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / kind
    write, run = BEARING[kind]
    write(file, Evil(str(canary)))
    for way in WAYS.values():
        try:
            way(file)
        except DatafreeError as error:
            assert "\n" not in str(error)
        assert not canary.exists()
        file.with_name("new.safetensors").unlink(missing_ok=True)
    with contextlib.suppress(Exception):  # of what the call answers, a number
        run(file)
    assert canary.exists()  # it would do harm


def test_all_that_a_file_wants_is_told_not_only_the_first(tmp_path: Path) -> None:
    content = {"state_dict": small().state_dict(), "best": np.ones(2), "x": Evil("")}
    torch.save(content, tmp_path / "w.pt")
    line = refused(tmp_path / "w.pt")
    assert "needs numpy" in line
    assert "posix.system" in line


def test_a_whole_pickled_network_is_refused_by_its_classes(tmp_path: Path) -> None:
    torch.save(nn.Sequential(small(), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)), tmp_path / "w.pt")
    line = refused(tmp_path / "w.pt")
    assert "needs torch.nn.modules.container.Sequential, torch.nn.modules.conv.Conv2d, " in line
    assert " and 2 more to be loaded" in line
    assert "datafree convert w.pt w.safetensors" in line


@pytest.mark.parametrize("member", ["constants.pkl", "code/__torch__.py"])
def test_a_torchscript_program_is_refused(tmp_path: Path, member: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(in_zip(GOOD))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"archive/{member}", b"\x80\x02).", zipfile.ZIP_DEFLATED)
    assert "TorchScript" in refused(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"storages".ljust(257, b"\0") + b"ustar\0", "tar archive"),
        (b"\x93NUMPY", "damaged, or not a weights file"),
        (b"", "damaged, or not a weights file"),
    ],
)
def test_what_else_people_have_is_told(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    assert named in refused(tmp_path / "w.pt")


def test_a_file_with_the_ending_of_another_format_is_told(tmp_path: Path) -> None:
    save_weights(small(), tmp_path / "w.pt")
    assert "name it w.safetensors" in refused(tmp_path / "w.pt")
    torch.save(small().state_dict(), tmp_path / "w.safetensors")
    assert "name it w.pt" in refused(tmp_path / "w.safetensors")


# --- sizes ---


@contextlib.contextmanager
def little_memory(monkeypatch: pytest.MonkeyPatch, limit: int) -> Any:
    """Fails if more than `limit` bytes are allocated for tensors or for Python's objects."""
    allocated = [0]
    empty = torch.empty

    def counted(*args: Any, **more: Any) -> Tensor:
        made = empty(*args, **more)
        allocated[0] += made.nbytes
        return made

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", counted)
        tracemalloc.start()
        try:
            yield
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert allocated[0] <= limit
    assert peak <= limit


def test_reading_takes_no_more_memory_than_the_file_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"a": torch.rand(1000, 500), "b": torch.rand(1000, 500)}
    content["tied"] = content["a"]
    checkpoint = {"state_dict": content, "optimizer": {"momentum": torch.rand(3000, 500)}}
    for zipped in (True, False):
        torch.save(checkpoint, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        with little_memory(monkeypatch, (tmp_path / "w.pt").stat().st_size + 100_000):
            tensors = read_tensors(tmp_path / "w.pt")
        assert same(tensors, content)
        assert tensors["tied"].data_ptr() == tensors["a"].data_ptr()


class Forged:
    """Pickles as a tensor with any offset, size and strides in the storage of `values`."""

    def __init__(self, values: Tensor, offset: Any, size: Any, stride: Any) -> None:
        self.parts = (values._typed_storage(), offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return (torch._utils._rebuild_tensor_v2, self.parts)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (10**12,), (0,)),  # one value for a terabyte
        (0, (4, 2), (1, 0)),
        (1, (6,), (1,)),  # beyond the end
        (6, (1,), (1,)),
        (2**62, (1,), (1,)),
        (0, (2, 2), (5, 1)),
        (0, (2,), (2**62,)),
        (0, (2**40, 2**40), (0, 0)),  # overflows 64 bits
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2**70,), (1,)),
        (0, (float("nan"),), (1,)),
        (0, (2.0,), (1,)),
        (0, (True,), (1,)),
        (0, (2,), (1, 1)),
        (0, (1,) * 100, (1,) * 100),
        (0, (2**62, 0), (1, 1)),
        (0, "ab", (1, 1)),
        (None, (2,), (1,)),
    ],
)
def test_tensors_that_do_not_lie_in_the_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, offset: Any, size: Any, stride: Any
) -> None:
    torch.save(
        {"a": Forged(torch.ones(6), offset, size, stride)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped
    )
    with little_memory(monkeypatch, 200_000):
        refused(tmp_path / "w.pt")


def test_views_that_lie_in_the_file_are_read(tmp_path: Path) -> None:
    forged = {"a": Forged(torch.arange(6.0), 1, (2, 2), (1, 3)), "none": Forged(torch.ones(2), 7, (0, 3), (9, 9))}
    torch.save(forged, tmp_path / "w.pt")
    tensors = read_tensors(tmp_path / "w.pt")
    assert tensors["a"].tolist() == [[1, 4], [2, 5]]
    assert tensors["none"].shape == (0, 3)


@pytest.mark.parametrize("count", [10**6, 10**15, 2**62])
def test_an_old_file_that_declares_a_huge_storage_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    storage = b"cpuq\x06K\x03"  # pickled: device, then the number of values, 3
    assert data.count(storage) == 1
    data = data.replace(storage, b"cpuq\x06\x8a\x08" + count.to_bytes(8, "little"))
    for ending in (data, data[:-20] + struct.pack("<q", count) + data[-12:]):  # the second number says the same
        path.write_bytes(ending)
        with little_memory(monkeypatch, 200_000):
            assert "damaged" in refused(path)


def test_an_archive_whose_storage_has_another_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(3)}, path)
    members = zip_members(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, b"\0" * 8 if name == "w/data/0" else member)
    with little_memory(monkeypatch, 200_000):
        assert "another size" in refused(path)


@pytest.mark.parametrize("kind", ["meta", "sparse", "compressed", "nested", "quantised", "conjugated"])
@pytest.mark.filterwarnings("ignore")  # torch's own, for old kinds of tensors
def test_tensors_that_hold_no_plain_values_are_refused(tmp_path: Path, kind: str) -> None:
    makers: dict[str, Callable[[], Tensor]] = {
        "meta": lambda: torch.ones(3, device="meta"),
        "sparse": lambda: torch.ones(3, 3).to_sparse(),
        "compressed": lambda: torch.ones(3, 3).to_sparse_csr(),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    }
    torch.save({"a": makers[kind]()}, tmp_path / "w.pt")
    assert "entry 'a' holds a " in refused(tmp_path / "w.pt")


# --- archives ---


def zip_members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(2_000_000)}, path)
    members = zip_members(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert path.stat().st_size < 20_000  # it would unpack to 8 MB
    with little_memory(monkeypatch, 200_000):
        assert "compressed" in refused(path)


def central(path: Path, at: int, value: bytes) -> None:
    """Change the first entry of an archive's directory."""
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + at : entry + at + len(value)] = value
    path.write_bytes(data)


def test_a_zip_that_declares_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(in_zip(GOOD))
    central(tmp_path / "w.pt", 20, (2**31).to_bytes(4, "little") * 2)  # both sizes
    assert "more bytes than it has" in refused(tmp_path / "w.pt")


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(10_000)}, path)
    data = path.read_bytes()
    first = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06", first)
    entries = data[first : data.index(b"PK\x06\x06", first) if b"PK\x06\x06" in data[first:] else end]
    again = entries.replace(b"data/0", b"data/1")  # a second name at the same place
    record = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(entries) * 2, first, 0)
    path.write_bytes(data[:first] + entries + again + record)
    refused(path)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(in_zip(GOOD))
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    assert "one name" in refused(path)


def test_an_archive_with_a_huge_directory_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "_MAX_DIRECTORY", 1000)
    path = tmp_path / "w.pt"
    path.write_bytes(in_zip(GOOD, **{f"m{i}": b"" for i in range(100)}))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert "a directory of" in refused(path)


@pytest.mark.parametrize(
    "name", ["../data.pkl", "/data.pkl", "a/b/data.pkl", "..\\data.pkl", "data.pkl", "a/../../data.pkl"]
)
def test_nothing_is_written_whatever_the_members_are_called(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, GOOD)
        archive.writestr("../../escaped", b"here")
    refused(path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "w.pt"]


def test_an_archive_that_is_no_weights_file_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    assert "arrays of NumPy" in refused(tmp_path / "w.npz")
    (tmp_path / "w.npz").rename(tmp_path / "w.pt")
    assert "not one of torch.save" in refused(tmp_path / "w.pt")


def test_weights_of_a_big_endian_machine_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(in_zip(GOOD, byteorder=b"big"))
    assert "big-endian" in refused(tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes(in_old(GOOD, info=pickle.dumps({"little_endian": False})))
    assert "another kind of machine" in refused(tmp_path / "w.pt")


def test_a_flipped_bit_in_a_zip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.full((100,), 1.5)}, path)
    data = path.read_bytes()
    pattern = torch.full((100,), 1.5).numpy().tobytes()
    assert data.count(pattern) == 1
    path.write_bytes(data.replace(pattern, pattern[:50] + b"\x01" + pattern[51:]))
    assert "damaged" in refused(path)


# --- pickles that would take for ever, or all memory ---


def nested_pairs() -> bytes:
    """A tuple that holds itself twice, sixty times over: hashing or printing it takes 2 ** 60 steps."""
    return b")" + b"2\x86" * 60


LONG_LIST = b"](" + b"]" * 2000 + b"eq\x01"  # a list of 2,000 lists, remembered as 1
BOMBS = {
    "hashing a key": b"\x80\x02}" + nested_pairs() + b"Ns.",
    "hashing a storage's key": b"\x80\x02(U\x07storagectorch\nFloatStorage\n" + nested_pairs() + b"U\x03cpuK\x01tQ.",
    "printing a shape": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQK\x00"
        + nested_pairs()
        + b"K\x01\x85tR."
    ),
    "a terabyte of zeros": b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R.",
    "a terabyte tensor": b"\x80\x02ctorch\nTensor\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R.",
    "a long text that is short": b"\x80\x02X" + (2**32 - 1).to_bytes(4, "little") + b"abc.",
    "a longer text": b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"abc.",
    "a long number": b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"abc.",
    "a long decimal number": b"I" + b"9" * 10_000 + b"\n.",
    "a long list again and again": (
        b"\x80\x02" + LONG_LIST + b"(" + b"ccollections\nOrderedDict\nh\x01\x85R" * 1000 + b"t."
    ),
    "long arguments again and again": (
        b"\x80\x02(" + b"K\x01" * 2000 + b"tq\x01(" + b"ctorch\nSize\nh\x01R" * 1000 + b"t."
    ),
    "a long name again and again": (
        b"\x80\x04\x8c\xff"
        + b"a" * 255
        + b"q\x00"
        + b"X\x00\x10\x00\x00"
        + b"b" * 4096
        + b"q\x01"
        + b"h\x00h\x01\x93" * 1000
        + b"."
    ),
    "nested deeply": b"\x80\x02" + b"]" + b"](" * 10_000 + b"e" * 10_000 + b".",
    "holds itself": b"\x80\x02]q\x00h\x00a.",
    "a far memory cell": b"\x80\x02}p99999999999999999999999999\n.",
    "takes more than it has": b"\x80\x02e.",
    "nothing": b".",
    "no end": b"\x80\x02}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_that_is_a_bomb_is_refused_in_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: str
) -> None:
    for name, place in (("zip.pt", in_zip), ("content.pt", in_old), ("info.pt", PLACES["info.pth"])):
        (tmp_path / name).write_bytes(place(BOMBS[bomb]))
        with little_memory(monkeypatch, 6_000_000):
            refused(tmp_path / name)


def test_a_pickle_of_too_many_operations_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickler, "MAX_OPERATIONS", 1000)
    (tmp_path / "w.pt").write_bytes(in_zip(b"\x80\x02(" + b"}" * 1000 + b"t."))
    assert "operations" in refused(tmp_path / "w.pt")
    calls = b"ccollections\nOrderedDict\nh\x01\x85R" * 10
    (tmp_path / "w.pt").write_bytes(in_zip(b"\x80\x02](" + b"]" * 500 + b"eq\x01(" + calls + b"t."))
    assert "operations" in refused(tmp_path / "w.pt")


def test_a_pickle_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "MAX_PICKLE", 1000)
    content = pickle.dumps({"a" * 2000: 1}, 2)
    for place in (in_zip, in_old):
        (tmp_path / "w.pt").write_bytes(place(content))
        assert "damaged" in refused(tmp_path / "w.pt")


# --- safetensors ---


def header(content: Any, values: bytes = b"", *, length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + values


def entry(shape: Any, begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
FALSE_HEADERS = {
    "nothing": b"",
    "a length only": struct.pack("<Q", 0),
    "longer than the file": header({"a": entry([2], 0, 8)}, bytes(8), length=2**31),
    "longer than anything": header({"a": entry([2], 0, 8)}, bytes(8), length=2**64 - 1),
    "too short": header({"a": entry([2], 0, 8)}, bytes(8), length=5),
    "no JSON": header(b"{not json", bytes(8)),
    "no object": header(b"[]", bytes(8)),
    "deep": header(b'{"a":' * 100_000),
    "a long number": header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,8]}}', bytes(8)),
    "no tensors": header({}),
    "beyond the end": header({"a": entry([4], 0, 16)}, bytes(8)),
    "bytes left over": header({"a": entry([2], 0, 8)}, bytes(12)),
    "overlapping": header({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
    "partly overlapping": header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "a hole": header({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20)),
    "a hole before": header({"a": entry([2], 4, 12)}, bytes(12)),
    "backwards": header({"a": entry([2], 8, 0)}, bytes(8)),
    "another shape": header({"a": entry([3], 0, 8)}, bytes(8)),
    "overflowing": header({"a": entry([2**62, 8], 0, 8)}, bytes(8)),
    "overflowing to nothing": header({"a": entry([2**32, 2**32], 0, 0)}),
    "beyond 64 bits": header({"a": entry([2**70], 0, 8)}, bytes(8)),
    "a size beyond 63 bits": header({"a": entry([0, 2**63], 0, 0)}),
    "negative": header({"a": entry([-2], 0, 8)}, bytes(8)),
    "a fraction": header({"a": entry([2.0], 0, 8)}, bytes(8)),
    "not a number": header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
    "objects": header({"a": entry([1], 0, 8, "O")}, bytes(8)),
    "a name twice": header(b"{" + ONE + b"," + ONE + b"}", bytes(8)),
    "a name twice, of other types": header(b"{" + ONE + b"," + ONE.replace(b"F32", b"I32") + b"}", bytes(8)),
    "a name twice, escaped": header(b"{" + ONE + b"," + ONE.replace(b'"a"', b'"\\u0061"') + b"}", bytes(8)),
    "half a character": header(b"{" + ONE.replace(b'"a"', b'"\\ud800"') + b"}", bytes(8)),
    "metadata that is no text": header({"a": entry([2], 0, 8), "__metadata__": {"a": 1}}, bytes(8)),
}


@pytest.mark.parametrize("fault", FALSE_HEADERS)
def test_a_false_safetensors_header_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(FALSE_HEADERS[fault])
    with little_memory(monkeypatch, 3_000_000):
        refused(tmp_path / "w.safetensors")


def test_a_huge_safetensors_header_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 50_000_000))
        file.truncate(60_000_000)  # takes no place on the disk
    with little_memory(monkeypatch, 200_000):
        assert "a header of 50,000,000 bytes" in refused(path)


# --- indices ---


def sharded(folder: Path, places: Any = None, **more: Any) -> Path:
    """Two files of `small()`'s tensors and an index of them, or one that says `places`."""
    folder.mkdir(exist_ok=True)
    state = small().state_dict()
    parts = {"one.safetensors": dict(list(state.items())[:3]), "two.safetensors": dict(list(state.items())[3:])}
    for name, part in parts.items():
        safetensors.torch.save_file(part, folder / name)
    if places is None:
        places = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / "w.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places, **more}))
    return folder / "w.safetensors.index.json"


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.safetensors", "sub/secret.safetensors", "..", ".", "", "/etc/passwd", "\0", "a\0.bin", "a.json"),
        *("C:secret.bin", "..\\secret.bin", ".hidden.safetensors", "w.safetensors.index.json", "link.safetensors"),
        *("absent.safetensors", "pipe.bin", "folder.bin", "\x1b[31m.bin", "a" * 300 + ".bin", "\ud800.bin"),
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    save_weights(small(), tmp_path / "secret.safetensors")
    index = sharded(tmp_path / "in")
    (tmp_path / "in" / "sub").mkdir()
    (tmp_path / "in" / "folder.bin").mkdir()
    save_weights(small(), tmp_path / "in" / "sub" / "secret.safetensors")
    (tmp_path / "in" / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    os.mkfifo(tmp_path / "in" / "pipe.bin")
    sharded(tmp_path / "in", dict.fromkeys(small().state_dict(), name))
    refused(index)
    sharded(tmp_path / "in", {"0.weight": "one.safetensors", **dict.fromkeys(small().state_dict(), name)})
    refused(index)


def test_a_link_to_a_file_beside_the_index_is_read(tmp_path: Path) -> None:
    index = sharded(tmp_path / "in")
    (tmp_path / "in" / "two.safetensors").rename(tmp_path / "in" / "elsewhere")
    (tmp_path / "in" / "two.safetensors").symlink_to("elsewhere")
    assert same(read_tensors(index), small().state_dict())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "damaged"),
        (b"\xff", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[]", "weight_map"),
        (b"{}", "weight_map"),
        (b'{"weight_map": {}}', "weight_map"),
        (b'{"weight_map": []}', "weight_map"),
        (b'{"weight_map": {"0.weight": 3}}', "weight_map"),
        (b'{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "comes twice"),
        (b'{"weight_map": {"a": "one.safetensors"}}', "does not hold 'a'"),
        (b'{"weight_map": {"0.weight": "one.safetensors"}}', "also holds '0.bias'"),
    ],
)
def test_an_index_that_says_what_is_not_so_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    index = sharded(tmp_path)
    index.write_bytes(content)
    assert named in refused(index)


def test_an_index_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_index, "MAX_BYTES", 1000)
    assert "more than 1,000 bytes" in refused(sharded(tmp_path, more="x" * 1000))


def test_a_file_of_an_index_that_holds_code_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path, {"a": "w.bin"})
    torch.save(Evil(str(tmp_path / "canary")), tmp_path / "w.bin")
    assert "posix.system" in refused(index)
    assert not (tmp_path / "canary").exists()


# --- nothing changes ---


def test_a_hostile_file_changes_neither_the_network_nor_the_disk(tmp_path: Path) -> None:
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    files = {
        "a.pt": in_zip(pickle.dumps(Evil(str(tmp_path / "canary")))),
        "b.safetensors": FALSE_HEADERS["overlapping"],
        "c.index.json": b'{"weight_map": {"a": "../a.pt"}}',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        refusal(lambda name=name: load_weights(network, tmp_path / name), WeightsError)  # type: ignore[misc]
    assert same(before, network.state_dict())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


# --- chance ---

MANY = int(os.environ.get("DATAFREE_FUZZ", "100"))
fuzz = settings(max_examples=MANY, deadline=None, derandomize="DATAFREE_FUZZ" not in os.environ, database=None)


@functools.cache
def good_files() -> dict[str, bytes]:
    """Small files of each format; two of them hold code."""
    whole = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(a=whole, tied=whole, part=whole[1:, ::2], half=torch.ones(2).half(), n=torch.tensor(3))
    made = {"w.safetensors": safetensors.torch.save({"a": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.int64)})}
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    contents = {"w": {"state_dict": state, "epoch": 3}, "evil": {"model": state, "x": Evil("canary")}, "module": module}
    for name, content in contents.items():
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            made[f"{name}-{'zip' if zipped else 'old'}.pt"] = buffer.getvalue()
    return made


def survives(path: Path) -> dict[str, Tensor] | None:
    """The tensors of `path`, or None if it is refused in one line; anything else fails. Taken apart alike."""
    before = sorted(path.parent.iterdir())
    with contextlib.suppress(WeightsError):
        module = read_module(path)
        for tensor in module.tensors.values() if module is not None else ():
            assert tensor.nbytes <= path.stat().st_size
            tensor.clone()
    try:
        tensors = read_tensors(path)
    except WeightsError as error:
        line = str(error)
        assert line == shown(line)
        assert len(line) < 1000 + len(str(path))
        assert (
            "enough memory" not in line and "allocate" not in line
        )  # a false size is found before there is any memory for it
        return None
    finally:
        assert sorted(path.parent.iterdir()) == before
        assert not Path("canary").exists()
    assert tensors
    for name, tensor in tensors.items():
        assert isinstance(name, str)
        assert type(tensor) is Tensor
        assert tensor.nbytes <= path.stat().st_size
        tensor.clone()  # all of it is there
    return tensors


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


NUMBERS = st.sampled_from(
    [sign for power in (0, 7, 8, 15, 16, 31, 32, 63, 64) for sign in (2**power - 1, 2**power)][:-1]
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["byte", "number", "cut", "insert", "repeat", "end"]),
        st.integers(0, 2**14),
        st.integers(0, 64),
        st.one_of(st.integers(0, 255), NUMBERS),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: list[tuple[str, int, int, int]]) -> bytes:
    changed = bytearray(data)
    for kind, position, length, value in edits:
        at = position % (len(changed) + 1)
        match kind:
            case "byte":
                changed[at : at + 1] = bytes([value % 256])
            case "number":
                changed[at : at + 8] = value.to_bytes(8, "little")
            case "cut":
                del changed[at : at + length]
            case "insert":
                changed[at:at] = bytes([value % 256]) * length
            case "repeat":
                changed[at:at] = changed[at : at + length]
            case "end":
                del changed[at:]
    return bytes(changed)


@fuzz
@given(name=st.sampled_from(sorted(good_files())), inside=st.booleans(), edits=EDITS)
def test_fuzz_of_changed_files(place: Path, name: str, inside: bool, edits: list[tuple[str, int, int, int]]) -> None:
    """`inside`: the change is in a zip's pickle or safetensors' header, and sizes and checksums are right again."""
    data = good_files()[name]
    if inside and name.endswith(".safetensors"):
        length = int.from_bytes(data[:8], "little")
        changed = header(edited(data[8 : 8 + length], edits), data[8 + length :])
    elif inside and "zip" in name:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(buffer, "w") as again:
            for member in archive.namelist():
                content = archive.read(member)
                again.writestr(member, edited(content, edits) if member.endswith("data.pkl") else content)
        changed = buffer.getvalue()
    else:
        changed = edited(data, edits)
    path = place / f"changed{Path(name).suffix}"
    path.write_bytes(changed)
    survives(path)
    path.unlink()


@functools.cache
def pieces() -> list[bytes]:
    """The operations of good and hostile pickles with their arguments, and all operations without."""
    found: dict[bytes, None] = {}
    contents = [make("canary") for make, _ in GUISES.values()] + [bomb for bomb in BOMBS.values() if len(bomb) < 500]
    with zipfile.ZipFile(io.BytesIO(good_files()["w-zip.pt"])) as archive:
        contents.append(archive.read("archive/data.pkl"))
    for content in contents:
        with contextlib.suppress(Exception):
            places = [place for _, _, place in pickletools.genops(content)]
            for begin, end in zip(places, [*places[1:], len(content)], strict=True):
                found[content[begin:end]] = None
    return [*found, *(operation.code.encode("latin-1") for operation in pickletools.opcodes)]


@fuzz
@given(
    chosen=st.lists(st.integers(0, 2**16), max_size=40),
    begin=st.integers(0, 2**16),
    kept=st.integers(0, 120),
    old=st.booleans(),
)
def test_fuzz_of_pickles_put_together(place: Path, chosen: list[int], begin: int, kept: int, old: bool) -> None:
    """A stretch of good operations, then any, in a file that is right besides."""
    with zipfile.ZipFile(io.BytesIO(good_files()["w-zip.pt"])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    good = members["archive/data.pkl"]
    places = [place for _, _, place in pickletools.genops(good)]
    cut = places[kept % len(places)]
    content = good[:cut] + b"".join(pieces()[index % len(pieces())] for index in chosen)
    content += good[places[begin % len(places)] :] if begin % 2 else b"."
    path = place / "pieces.pt"
    if old:
        path.write_bytes(in_old(content, keys=pickle.dumps(["0"], 2), values=struct.pack("<q", 12) + bytes(48)))
    else:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as again:
            for name, member in members.items():
                again.writestr(name, content if name == "archive/data.pkl" else member)
        path.write_bytes(buffer.getvalue())
    survives(path)
    path.unlink()


WHOLE = st.one_of(st.integers(0, 8), st.integers(), NUMBERS)
NAMES = st.one_of(st.sampled_from(["a", "b", "module.a", "__metadata__", "n_averaged"]), st.text(max_size=5))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), WHOLE, st.floats(), NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "F6_E2M3", "C64", "X"]),
        "shape": st.one_of(st.lists(WHOLE, max_size=4), JSON),
        "data_offsets": st.one_of(st.lists(WHOLE, min_size=2, max_size=2), st.just([0, 8]), st.just([8, 16]), JSON),
    }
)


@fuzz
@given(
    content=st.one_of(st.dictionaries(NAMES, st.one_of(ENTRIES, JSON), max_size=4), JSON),
    values=st.integers(0, 32),
    spaces=st.integers(0, 3),
)
def test_fuzz_of_safetensors_headers(place: Path, content: Any, values: int, spaces: int) -> None:
    path = place / "header.safetensors"
    path.write_bytes(header(json.dumps(content).encode() + b" " * spaces, bytes(values)))
    survives(path)
    path.unlink()


FILES = st.one_of(st.just("one.safetensors"), st.sampled_from(["../x.bin", "index.json", "/dev/zero", "."]), st.text())


@fuzz
@given(
    content=st.one_of(
        st.fixed_dictionaries({"weight_map": st.dictionaries(NAMES, st.one_of(FILES, JSON), max_size=3)}),
        st.fixed_dictionaries({"weight_map": JSON}),
        JSON,
    ),
    edits=st.one_of(st.just([]), EDITS),
)
def test_fuzz_of_indices(place: Path, content: Any, edits: list[tuple[str, int, int, int]]) -> None:
    folder = place / "sharded"
    folder.mkdir(exist_ok=True)
    (folder / "one.safetensors").write_bytes(good_files()["w.safetensors"])
    path = folder / "w.index.json"
    path.write_bytes(edited(json.dumps(content).encode(), edits))
    survives(path)


@fuzz
@given(
    data=st.binary(max_size=200),
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."]),
    suffix=st.sampled_from([".safetensors", ".pt", ".bin", ".index.json"]),
)
def test_fuzz_of_random_bytes(place: Path, data: bytes, start: bytes, suffix: str) -> None:
    path = place / f"random{suffix}"
    path.write_bytes(start + data)
    assert survives(path) is None
    path.unlink()
