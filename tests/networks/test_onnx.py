"""ONNX files: what is written and checked, and what is refused of files that nobody trusts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import DatafreeError, NetworkError, RunError, WeightsError
from datafree.evaluation.finished_run import load_onnx
from datafree.networks.normalized import Normalized
from datafree.networks.onnx import DESCRIPTION, OnnxNetwork, write_onnx

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


def test_network_that_cannot_take_any_number_of_images_is_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.layer(images).view(2, 3, 16, 16)
            return logits

    with pytest.raises(NetworkError, match="cannot be exported to ONNX") as caught:
        write_onnx(Normalized(Two()), tmp_path / "two.onnx", (16, 16), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no protobuf" * 9])
def test_damaged_onnx_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "student.onnx").write_bytes(content)
    with pytest.raises(WeightsError, match="not an ONNX file") as caught:
        load_onnx(tmp_path / "student.onnx")
    assert "\n" not in str(caught.value)


def write_add(file: Path, output: str = "logits", task: object = None, secret: str | None = None) -> None:
    """An ONNX file that adds a number to its images, perhaps one kept in another file."""
    import onnx
    from onnx import TensorProto, helper

    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    if secret is not None:
        one.ClearField("float_data")
        one.data_location = TensorProto.EXTERNAL
        for key, value in (("location", secret), ("offset", "0"), ("length", "4")):
            entry = one.external_data.add()
            entry.key, entry.value = key, value
    shape = ["batch", 3, 4, 4]
    graph = helper.make_graph(
        [helper.make_node("Add", ["images", "one"], [output])],
        "add",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [one],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if task is not None:
        helper.set_model_props(model, {DESCRIPTION: json.dumps({"task": task})})
    onnx.save(model, str(file)) if secret is None else file.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        ({"output": "other"}, NetworkError, "not logits"),
        ({}, NetworkError, "which task"),
        ({"task": "segmentation"}, NetworkError, "which task"),
        ({"task": {"kind": "os:system"}}, RunError, "--task"),
        ({"task": {"kind": ["segmentation"]}}, RunError, "--task"),
        ({"task": {"kind": "segmentation"}}, RunError, "num_classes"),
        ({"secret": "../secret.bin"}, WeightsError, "not an ONNX file"),
        ({"secret": "/etc/hostname"}, WeightsError, "not an ONNX file"),
    ],
)
def test_foreign_onnx_file_is_refused(
    tmp_path: Path, made: dict[str, Any], error: type[DatafreeError], said: str
) -> None:
    (tmp_path / "secret.bin").write_bytes(b"0000")
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "student.onnx"
    write_add(file, **made)
    with pytest.raises(error, match=said) as caught:
        load_onnx(file)
    assert "\n" not in str(caught.value)


def test_onnx_network_refuses_images_of_another_size(tmp_path: Path) -> None:
    write_add(tmp_path / "add.onnx")
    network = OnnxNetwork(tmp_path / "add.onnx")
    images = torch.rand(3, 3, 4, 4)
    assert torch.equal(network(images), images + 1)
    with pytest.raises(NetworkError, match="takes images of 4 x 4 pixels"):
        network(torch.rand(1, 3, 5, 4))


def test_network_whose_steps_depend_on_the_image_is_refused_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.layer(images)
            return logits if torch.where(logits.flatten() > 0)[0].numel() == 0 else 2 * logits

    with pytest.raises(NetworkError, match="two-stage detector"):
        write_onnx(Normalized(Stages()), tmp_path / "stages.onnx", (8, 8), {})
    assert capfd.readouterr() == ("", "")
