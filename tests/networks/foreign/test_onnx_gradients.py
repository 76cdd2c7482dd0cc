"""networks/foreign/onnx_gradients.py: an ONNX file as modules: onnxruntime's answers, its network's gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.batchnorm import batchnorm_layers
from datafree.networks.foreign import onnx_gradients
from datafree.networks.foreign.onnx_gradients import OnnxModules
from datafree.networks.foreign.onnx_teacher import OnnxTeacher
from datafree.networks.foreign.open_onnx import open_onnx
from datafree.ops import modes
from datafree.preflight.inspection import inspect_teacher
from datafree.run import run_recipe
from recipes import load

for package in ("onnx", "onnxscript", "onnxruntime", "onnx2pytorch"):
    pytest.importorskip(package)

SIDE = 32
IMAGES = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two layers with BatchNorm, sizes that are computed, a mean over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Hardswish())
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6 * 256, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        x = x + self.second(x) * x.mean((2, 3), keepdim=True)
        answer: Tensor = self.head(x.view(x.size(0), -1))
        return answer


def trained() -> Net:
    torch.manual_seed(0)
    network = Net()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(8, 3, SIDE, SIDE))
    return network.eval()


KEPT = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}  # BatchNorm stays in the file


def write(network: nn.Module, file: Path, **options: Any) -> Path:
    options = {"dynamo": False, "input_names": ["images"], "opset_version": 13, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(1, 3, SIDE, SIDE),), str(file), **options)
    return file


def opened(file: Path, **args: Any) -> Any:
    return open_onnx(file, args, (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(trained(), tmp_path_factory.mktemp("onnx") / "kept.onnx", **KEPT)


@pytest.mark.parametrize(
    "options",
    [{}, {"opset_version": 11}, KEPT, {"dynamo": True, "opset_version": None, "verbose": False}],
    ids=["opset13", "opset11", "batchnorm", "dynamo"],
)
def test_answers_and_gradients_are_those_of_the_network(options: dict[str, Any], tmp_path: Path) -> None:
    network = trained()
    teacher = opened(write(network, tmp_path / "a.onnx", **options))
    assert isinstance(teacher, OnnxModules)
    torch.testing.assert_close(teacher(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)
    gradients = []
    for one in (network, teacher):
        images = IMAGES.clone().requires_grad_()
        with modes.frozen(one):
            answer = one(images)
            torch.testing.assert_close(answer, network(IMAGES), rtol=1e-4, atol=1e-5)
            torch.autograd.backward(answer.square().sum())
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


def test_batchnorm_that_the_file_still_holds_has_its_statistics_and_is_seen_to_run(kept: Path) -> None:
    network, teacher = trained(), opened(kept)
    ours, theirs = batchnorm_layers(teacher), batchnorm_layers(network)
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean)
        torch.testing.assert_close(one.running_var, other.running_var)
    seen: list[Tensor] = []
    handle = next(iter(ours.values())).register_forward_hook(lambda layer, given, answer: seen.append(given[0]))
    with torch.no_grad():
        teacher(IMAGES)
    handle.remove()
    torch.testing.assert_close(torch.cat(seen)[:3], network.first[0](IMAGES), rtol=1e-4, atol=1e-5)


def test_without_gradients_and_hooks_onnxruntime_answers(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = opened(kept)
    monkeypatch.setattr(teacher.network, "forward", lambda images: pytest.fail("the modules were run"))
    with torch.no_grad():
        torch.testing.assert_close(teacher(IMAGES), trained()(IMAGES), rtol=1e-4, atol=1e-5)


def recipe(folder: Path, file: Path, method: str, **options: Any) -> Any:
    content = {
        "task": {"kind": "classification", "num_classes": 5, "image_size": [SIDE, SIDE]},
        "teacher": {"network": str(file), "mean": [0.5, 0.5, 0.5]},
        "student": {"network": "datafree/resnet", "args": {"depth": 8, "width": 4}},
        "source": {"method": method, **options},
        "training": {"steps": 2, "batch_size": 4},
    }
    return load(folder, content)


@pytest.mark.parametrize(
    ("method", "options"),
    [("dafl", {"batch_size": 8, "width": 4}), ("inversion", {"batch_size": 4, "iterations": 2, "warmup": 1})],
)
def test_methods_that_look_into_a_teacher_learn_from_an_onnx_file(
    method: str, options: dict[str, Any], kept: Path, tmp_path: Path
) -> None:
    assert (run_recipe(recipe(tmp_path, kept, method, **options), tmp_path / "run").run / "student.json").exists()


def test_inspect_finds_batchnorm_and_the_methods_on_it(kept: Path) -> None:
    found = inspect_teacher(str(kept))
    assert found.batchnorm.live + found.batchnorm.frozen == 2
    assert found.sources["inversion"].applies
    assert found.macs > 0


@pytest.mark.parametrize("wrong", [False, True])
def test_a_detectors_small_scores_beside_large_boxes_are_compared_for_themselves(wrong: bool, tmp_path: Path) -> None:
    """Scores of 1e-6 have logits that rounding moves; scores that are wrong by 1e-3 are no share of boxes of 500."""
    import onnx

    class Yolo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 8, 8)

        def forward(self, images: Tensor) -> Tensor:
            scores = (self.layer(images).flatten(2) - 12).sigmoid()  # (B, 2, 16)
            return torch.cat([images.mean((1, 2, 3), keepdim=True)[:, 0].expand(-1, 4, 16) * 1000, scores], 1)

    torch.manual_seed(0)
    model = onnx.load(str(write(Yolo(), tmp_path / "a.onnx")))
    entry = model.metadata_props.add()
    entry.key, entry.value = "names", "{0: 'cat', 1: 'dog'}"
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    teacher = opened(tmp_path / "a.onnx", gradients=False)
    answer = teacher(IMAGES)
    moved = replace(answer, scores=answer.scores + (1e-3 if wrong else 1e-7))
    assert onnx_gradients._alike(answer, moved) is not wrong
    modules = opened(tmp_path / "a.onnx", gradients=True)
    assert modules(IMAGES.clone().requires_grad_()).scores.requires_grad


# --- where it is not possible ---


def falls_back(file: Path, said: str) -> None:
    teacher = opened(file)
    assert isinstance(teacher, OnnxTeacher)
    assert any(note.startswith("answers alone, no gradients: ") and said in note for note in teacher.notes)
    with pytest.raises(NetworkError, match="has no gradients: ") as caught:
        opened(file, gradients=True)
    assert "\n" not in str(caught.value)


def test_without_the_package_answers_are_used_and_the_command_is_said(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_gradients, "find_spec", lambda name: None)
    falls_back(kept, "pip install 'datafree[onnx-gradients]'")


def test_modules_that_answer_otherwise_are_not_used(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = onnx_gradients._converted

    def wrong(teacher: OnnxTeacher) -> nn.Module:
        network = convert(teacher)
        with torch.no_grad():
            next(iter(network.parameters())).mul_(1.01)
        return network

    monkeypatch.setattr(onnx_gradients, "_converted", wrong)
    falls_back(kept, "answers otherwise than onnxruntime")


@pytest.mark.parametrize(
    ("operator", "said"),
    [(lambda x: x.argmax(1).float(), "no gradient comes back"), (lambda x: torch.round(x) * 0 + 1, "no ")],
    ids=["argmax", "round"],
)
def test_a_graph_without_gradients_only_answers(
    operator: Callable[[Tensor], Tensor], said: str, tmp_path: Path
) -> None:
    class Steps(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return operator(images).flatten(1)

    teacher = opened(write(Steps(), tmp_path / "a.onnx"))
    assert isinstance(teacher, OnnxTeacher) or said == "no "


def test_names_in_a_file_shadow_nothing_of_the_modules(kept: Path, tmp_path: Path) -> None:
    """Names that would become attributes: of modules, of the converted network's own methods."""
    import onnx

    model = onnx.load(str(kept))
    hostile = iter(["forward", "_modules", "__class__", "mapping", "onnx_model", "x.y", 'a"]; print(1)', "eval"])
    for number, node in enumerate(model.graph.node):
        node.name = next(hostile, f"forward{number}")
        if (before := node.output[0]) != model.graph.output[0].name:
            renamed = node.name
            for other in model.graph.node:
                for field in (other.input, other.output):
                    for index, name in enumerate(field):
                        field[index] = renamed if name == before else name
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    teacher = opened(tmp_path / "a.onnx", gradients=True)
    torch.testing.assert_close(teacher(IMAGES), trained()(IMAGES), rtol=1e-4, atol=1e-5)
    names = [*vars(teacher.network), *teacher.network._modules, *teacher.network._buffers]
    assert not any("print" in name or "x.y" in name for name in names)
