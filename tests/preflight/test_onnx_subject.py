"""A teacher in an ONNX file that only answers: its size is the file's, and what nobody can look into is not told."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from datafree.cli.inspect_text import inspection_text
from datafree.errors import NetworkError
from datafree.networks.foreign import onnx_gradients
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.resnet import resnet
from datafree.preflight.draft import draft
from datafree.preflight.inspection import inspect_teacher
from datafree.preflight.plan import plan
from datafree.preflight.teacher_file import kind_of
from datafree.preflight.wishes import Wishes
from datafree.report.profile import cost
from datafree.sources.auto import Auto
from datafree.tasks.classification import Classification
from recipes import load

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ResNet of 16 x 16 pixels, without the package through which it would have gradients."""
    monkeypatch.setattr(onnx_gradients, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = resnet(4, depth=8, width=16)
    network(torch.rand(16, 3, 16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's older exporter
        torch.onnx.export(network.eval(), (torch.rand(1, 3, 16, 16),), "t.onnx", dynamo=False, opset_version=13)
    return Path("t.onnx")


def held(file: Path) -> int:
    """Values of the graph's floating initializers that are no scalars."""
    import onnx

    tensors = onnx.load(str(file)).graph.initializer
    return sum(
        int(torch.tensor(tensor.dims).prod()) for tensor in tensors if len(tensor.dims) and tensor.data_type == 1
    )


def test_a_recipe_is_drafted_by_the_parameters_that_the_file_holds(teacher: Path) -> None:
    made = draft("t.onnx", Wishes(mean="0.5", std="0.25"))
    count = held(teacher)
    assert count > 70_000
    assert f", {count:,} parameters (an ONNX file)" in made.lines[0]
    student = next(line for line in made.lines if line.startswith("student: "))
    smaller = int(student.split(", ")[1].split()[0].replace(",", ""))
    assert 2 < count / smaller < 8, student  # four times fewer are wanted: not the smallest that there is


def test_inspection_and_profile_tell_no_zeros(teacher: Path) -> None:
    found = inspect_teacher("t.onnx", mean="0.5", std="0.25")
    assert (found.parameters, found.bytes, found.macs) == (held(teacher), teacher.stat().st_size, None)
    assert "MACs        not told" in inspection_text(found)
    task = Classification(num_classes=4, image_size=(16, 16))
    spec = NetworkSpec(network="t.onnx")
    network = spec.wrap(build_network(spec, num_classes=4))
    figures = cost(network, task)
    assert (figures["parameters"], figures["bytes"]) == (held(teacher), teacher.stat().st_size)
    assert "multiply_adds" not in figures
    _, why = Auto().choose(task, network, torch.device("cpu"))
    assert "its layers are not told" in why and "0 " not in why


def test_a_run_is_planned(teacher: Path, tmp_path: Path) -> None:
    content = {
        "task": {"kind": "classification", "num_classes": 4, "image_size": [16, 16]},
        "teacher": {"network": "t.onnx"},
        "student": {"network": "datafree/resnet", "args": {"depth": 8, "width": 2}},
        "source": {"method": "noise"},
        "training": {"steps": 5, "batch_size": 4, "precision": "fp32", "device": "cpu"},
    }
    assert plan(load(tmp_path, content)).device == "cpu, float32"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.onnx", b"this is a text\n", "is a text, and no .onnx file"),
        ("a.weights", b"this is a text\n", "is a text, and no .weights file"),
        ("a.index.json", b"{]", "is no index of weights: it needs `weight_map`"),
        ("a.bin", b"\x08\x08\x12\x07pytorch", "is an ONNX file by its first bytes: name it a.onnx"),
    ],
)
def test_a_file_of_another_kind_than_its_name_says_is_refused_in_words(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NetworkError) as caught:
        kind_of(str(tmp_path / name))
    assert words in str(caught.value)
    assert "Error" not in str(caught.value) and "\n" not in str(caught.value)
