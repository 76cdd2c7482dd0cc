"""ONNX files: what is written and checked, and what is refused of files that nobody trusts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import DatafreeError, NetworkError, RunError, WeightsError
from datafree.evaluation.finished_run import load_onnx
from datafree.networks.comparison import relative_error, undecided
from datafree.networks.normalized import Normalized
from datafree.networks.onnx import DESCRIPTION, OnnxNetwork, answer_of, check_onnx, opset_of, write_onnx
from datafree.ops.predictions import Predictions

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

    with pytest.raises(NetworkError, match=r"cannot be exported to ONNX \(its code fixes how many images") as caught:
        write_onnx(Normalized(Two()), tmp_path / "two.onnx", (16, 16), {})
    assert "\n" not in str(caught.value)


def test_an_opset_is_kept_to_or_refused(tmp_path: Path) -> None:
    network = Normalized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert write_onnx(network, tmp_path / "a.onnx", (8, 8), {}, opset=21) == opset_of(tmp_path / "a.onnx") == 21
    for asked in (-1, 3, 99):
        with pytest.raises(NetworkError, match=rf"^opset {asked} is asked for, but torch writes .* as opset \d+: ask"):
            write_onnx(network, tmp_path / "b.onnx", (8, 8), {}, opset=asked)
    assert not (tmp_path / "b.onnx").exists()


def test_images_counted_by_len_are_any_number_in_the_file(tmp_path: Path) -> None:
    """What Python's len answers is a plain number, which a traced program would keep."""

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            return torch.ones(1, 4).tile([len(images), 1]) + self.layer(images).mean((2, 3))

    network = Normalized(Counted())
    write_onnx(network, tmp_path / "a.onnx", (8, 8), {})
    assert check_onnx(network, tmp_path / "a.onnx", (8, 8)).keys() == {1, 3}
    images = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(OnnxNetwork(tmp_path / "a.onnx")(images), network(images))


def found(boxes: Tensor, scores: Tensor) -> Predictions:
    answer = answer_of([boxes, scores])
    assert isinstance(answer, Predictions)
    return answer


def test_queries_in_another_order_are_the_same_answer_and_another_one_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, scores = torch.rand(2, 6, 4, generator=generator) * 100, torch.rand(2, 6, 3, generator=generator)
    order = torch.tensor([0, 2, 1, 3, 5, 4])
    near = 1 + 1e-6 * torch.rand(2, 6, 1, generator=generator)
    moved = found(boxes[:, order] * near[:, order], scores[:, order])
    assert relative_error(found(boxes, scores), moved) == pytest.approx(float(((near - 1) * boxes).max() / 97), rel=0.1)
    other = boxes.clone()
    other[1, 3, 2] += 10  # pixels, of one box
    assert relative_error(found(boxes, scores), found(other[:, order], scores[:, order])) > 0.05
    paired = scores[:, torch.tensor([1, 0, 2, 3, 4, 5])]  # the same boxes and the same scores, but not together
    assert relative_error(found(boxes, scores), found(boxes, paired)) > 0.05


def test_a_network_that_rounding_decides_is_not_held_against_its_file() -> None:
    class Ties(nn.Module):
        """As queries that are chosen where all places score the same: which, a last digit decides."""

        def forward(self, images: Tensor) -> Tensor:
            mean = images.mean((2, 3))
            return torch.where(((mean * 1e8).round() % 2).bool(), 1.0, -1.0)

    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert "(in float64 2.0e+00 away)" in undecided(Normalized(Ties()), images)
    assert undecided(Normalized(nn.Conv2d(3, 4, 3)), images) == ""


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
