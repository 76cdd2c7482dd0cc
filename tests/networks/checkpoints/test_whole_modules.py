"""networks/checkpoints/whole_modules.py, convert.py: tensors out of pickled modules, none of which is ever run."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from datafree.cli.main import app
from datafree.errors import DatafreeError, NetworkError, WeightsError
from datafree.networks.checkpoints import whole_modules
from datafree.networks.checkpoints.convert import convert
from datafree.networks.checkpoints.unpickler import Object
from datafree.networks.checkpoints.whole_modules import read_module
from datafree.networks.load import NetworkSpec, build_network


class Net(nn.Module):
    """Parameters, kept and passing buffers, a shared layer, an attribute of each plain kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})
        self.again = self.heads["a"]
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("grid", torch.arange(3), persistent=False)
        self.register_parameter("none", None)
        self.yaml = {"nc": 2, "names": {0: "cat"}, "layers": [[-1, 1, "Conv", [3]]]}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap", [lambda net: net, lambda net: {"epoch": 3, "model": net, "args": argparse.Namespace()}]
)
def test_tensors_are_those_of_the_state_dict_in_its_order(net: Net, zipped: bool, wrap: Any, tmp_path: Path) -> None:
    torch.save(wrap(net), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    module = read_module(tmp_path / "a.pt")
    assert module is not None
    same(module.tensors, net.state_dict())
    assert module.kind.endswith(".Net")
    assert module.eps == {"body.1": 1e-5}
    assert module.attributes["yaml"]["layers"] == [[-1, 1, "Conv", [3]]]
    assert list(module.attributes["yaml"]["names"].values()) == ["cat"]


def test_a_librarys_network_is_read_without_its_library_being_asked(tmp_path: Path) -> None:
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    torch.save({"model": None, "ema": network.half()}, tmp_path / "a.pt")
    module = read_module(tmp_path / "a.pt")
    assert module is not None
    assert (module.key, module.kind) == ("ema", "torchvision.models.shufflenetv2.ShuffleNetV2")
    same(module.tensors, network.state_dict())


def test_convert_writes_what_a_network_loads(net: Net, tmp_path: Path) -> None:
    torch.save(net, tmp_path / "old.pt")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "old.pt"), str(tmp_path / "new.safetensors")])
    assert result.exit_code == 0
    assert "14 tensors" in result.output
    assert "nothing of" in result.output
    found = load_file(tmp_path / "new.safetensors")
    same(dict(sorted(found.items())), dict(sorted(net.state_dict().items())))


def test_convert_takes_weights_that_stand_beside_objects(net: Net, tmp_path: Path) -> None:
    """As Lightning writes them: hyper-parameters of a class of their own."""
    content = {"state_dict": net.state_dict(), "hyper_parameters": argparse.Namespace(lr=0.1, path=Path("x"))}
    torch.save(content, tmp_path / "old.ckpt")
    made = convert(tmp_path / "old.ckpt", tmp_path / "new.safetensors")
    assert (made.kind, made.tensors) == ("", len(net.state_dict()))
    same(dict(sorted(load_file(tmp_path / "new.safetensors").items())), dict(sorted(net.state_dict().items())))


@pytest.mark.parametrize(
    ("content", "new", "said"),
    [
        ({"a": 1}, "new.safetensors", "not named tensors|needed"),
        (nn.ReLU(), "new.safetensors", "holds no tensors"),
        (nn.Linear(1, 1), "new.pt", r"name it new\.safetensors"),
        (nn.Linear(1, 1), "there.safetensors", "is there already"),
    ],
)
def test_what_convert_cannot_do_is_one_line_and_writes_nothing(
    content: Any, new: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "there.safetensors").touch()
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(WeightsError, match=said) as caught:
        convert(tmp_path / "old.pt", tmp_path / new)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.pt", "there.safetensors"]


@pytest.mark.parametrize("kind", ["weights", "module"])
def test_convert_does_not_make_gigabytes_of_many_names_for_one_tensor(kind: str, tmp_path: Path) -> None:
    """1 MB under 300 names, which would each be written."""
    values, names = torch.zeros(250_000), [f"n{index}" for index in range(300)]
    module = nn.Module()
    for name in names:
        module.register_buffer(name, values)
    torch.save(module if kind == "module" else dict.fromkeys(names, values), tmp_path / "old.pt")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "old.pt"), str(tmp_path / "new.safetensors")])
    assert isinstance(result.exception, WeightsError)
    line = str(result.exception)
    assert "300 tensors that share their values would take 300 MB" in line
    assert "save each tensor under one name" in line
    assert line.isprintable()
    assert result.exception.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["old.pt"]


def test_convert_writes_tied_weights_under_each_of_their_names(tmp_path: Path) -> None:
    values = torch.rand(1000, 50)
    content = {"shared": values, "encoder": values, "decoder": values, "head": values.t()}
    torch.save(content, tmp_path / "old.pt")
    convert(tmp_path / "old.pt", tmp_path / "new.safetensors")
    assert (tmp_path / "new.safetensors").stat().st_size > 3 * (tmp_path / "old.pt").stat().st_size
    same(dict(sorted(load_file(tmp_path / "new.safetensors").items())), dict(sorted(content.items())))


def test_a_whole_module_as_network_is_told_both_steps(net: Net, tmp_path: Path) -> None:
    torch.save(net, tmp_path / "old.pt")
    with pytest.raises(NetworkError, match=r"datafree convert old\.pt old\.safetensors, and give .*:Net") as caught:
        build_network(NetworkSpec(network=str(tmp_path / "old.pt")), num_classes=2)
    assert "\n" not in str(caught.value)


# --- nothing is run ---


class Evil(nn.Module):
    """Its unpickling creates `canary`, in each of the ways a class has."""

    def __init__(self, canary: Path, way: str) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.canary, self.way = str(canary), way

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state["canary"]).touch()
        self.__dict__.update(state)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.way == "call":
            return os.system, (f"touch '{self.canary}'",), self.__dict__
        if self.way == "items":
            return OrderedDict, ((("a", Called(self.canary)),),), self.__dict__
        return super().__reduce_ex__(protocol)


class Called:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.canary}'",)


@pytest.mark.parametrize("way", ["call", "state", "items"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_module_that_would_run_something_is_taken_apart_or_refused_but_never_run(
    way: str, zipped: bool, tmp_path: Path
) -> None:
    canary, file = tmp_path / "canary", tmp_path / "a.pt"
    content = nn.Sequential(nn.Conv2d(3, 2, 1), Evil(canary, way))
    content.note = Called(str(canary))
    for held in (content, {"model": content, "more": Called(str(canary))}):
        torch.save(held, file, _use_new_zipfile_serialization=zipped)
        with contextlib.suppress(AttributeError):  # what the call answers takes no attributes
            torch.load(file, weights_only=False)
        assert canary.exists()  # the witness works
        canary.unlink()
        for use in (
            lambda: read_module(file),
            lambda: convert(file, tmp_path / "new.safetensors"),
            lambda: build_network(NetworkSpec(network=str(file)), num_classes=2),
        ):
            try:
                use()
            except DatafreeError as error:
                assert "\n" not in str(error)
            assert not canary.exists()
        (tmp_path / "new.safetensors").unlink(missing_ok=True)


def test_no_module_is_imported_for_a_name_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = types.ModuleType("not_here_yet")
    code.Layer = type("Layer", (nn.Linear,), {"__module__": "not_here_yet"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "not_here_yet", code)
    torch.save(nn.Sequential(code.Layer(2, 2)), tmp_path / "a.pt")
    monkeypatch.delitem(sys.modules, "not_here_yet")
    (tmp_path / "not_here_yet.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = read_module(tmp_path / "a.pt")
    assert module is not None
    assert list(module.tensors) == ["0.weight", "0.bias"]
    assert "not_here_yet" not in sys.modules


def stand_in(**state: Any) -> Object:
    made = Object("a.Module")
    made.state = {"_parameters": {}, "_buffers": {}, "_modules": {}, **state}
    return made


def test_a_module_within_itself_and_a_tree_of_shared_ones_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = stand_in()
    circle.state["_modules"]["again"] = circle
    with pytest.raises(ValueError, match="too deep"):
        list(whole_modules._named(circle))
    monkeypatch.setattr(whole_modules, "_MOST", 1000)
    doubled = stand_in()
    for _ in range(40):
        doubled = stand_in(_modules={"a": doubled, "b": doubled})
    with pytest.raises(ValueError, match="more than 1,000 modules"):
        list(whole_modules._named(doubled))


# --- Ultralytics' files, where the package is not installed ---


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes a module whose class says that it is one of Ultralytics'."""
    monkeypatch.setattr("datafree.networks.foreign.ultralytics_model.find_spec", lambda name: None)

    def write(kind: str, **attributes: Any) -> Path:
        code = types.ModuleType("ultralytics.nn.tasks")
        made = type(kind, (nn.Sequential,), {"__module__": "ultralytics.nn.tasks", "__qualname__": kind})
        setattr(code, kind, made)
        for name in ("ultralytics", "ultralytics.nn"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", code)
        network = made(nn.Conv2d(3, 2, 1))
        vars(network).update(attributes)
        torch.save({"model": network, "ema": None}, tmp_path / "best.pt")
        for name in ("ultralytics", "ultralytics.nn", "ultralytics.nn.tasks"):
            monkeypatch.delitem(sys.modules, name)
        return tmp_path / "best.pt"

    yield write


TABLE = {"nc": 7, "backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": [[[-1], 1, "Detect", ["nc"]]]}


@pytest.mark.parametrize(
    ("kind", "attributes", "said"),
    [
        ("DetectionModel", {"yaml": TABLE}, r"an Ultralytics DetectionModel \(7 classes, 2 tensors\); .*pip install"),
        ("DetectionModel", {"yaml": TABLE}, r"yolo export model=best\.pt format=onnx"),
        ("PoseModel", {"yaml": TABLE}, "PoseModel .* not built here; .*yolo export"),
        ("DetectionModel", {}, "without a table of its layers; .*yolo export"),
    ],
)
def test_the_command_that_converts_an_ultralytics_file_is_said(
    kind: str, attributes: dict[str, Any], said: str, foreign: Any
) -> None:
    file = foreign(kind, **attributes)
    with pytest.raises(NetworkError, match=said) as caught:
        build_network(NetworkSpec(network=str(file)), num_classes=7)
    assert "\n" not in str(caught.value)
