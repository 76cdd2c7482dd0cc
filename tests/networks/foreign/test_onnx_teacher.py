"""networks/foreign/onnx*.py: ONNX files answer as their networks did, teach by answers alone, and are never trusted."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datafree.engine.artifacts import describe_teacher
from datafree.errors import DatafreeError, NetworkError, WeightsError
from datafree.networks.foreign import onnx_file, protobuf
from datafree.networks.foreign.onnx_answers import class_names
from datafree.networks.foreign.onnx_teacher import OnnxTeacher
from datafree.networks.foreign.open_onnx import open_onnx
from datafree.networks.load import NetworkSpec, build_network
from datafree.ops.predictions import Predictions
from datafree.preflight.inspection import inspect_teacher
from datafree.run import run_recipe
from datafree.storage.atomic import sha256_of
from recipes import load
from thorough import some

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

CLASSES, SIDE = 5, 16


class Small(nn.Module):
    """Convolution, BatchNorm and a linear layer; `last` comes behind its logits."""

    def __init__(self, last: Callable[[Tensor], Tensor] = lambda logits: logits) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6 * 8 * 8, CLASSES)
        self.last = last

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images).view(images.size(0), -1))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.logits(images))


def small(last: Callable[[Tensor], Tensor] = lambda logits: logits) -> Small:
    torch.manual_seed(0)
    network = Small(last)
    with torch.no_grad():
        network(torch.rand(8, 3, SIDE, SIDE))
    return network.eval()


def write(network: nn.Module, file: Path, count: int = 1, channels: int = 3, **options: Any) -> Path:
    options = {"dynamo": False, "input_names": ["images"], "opset_version": 13, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's older exporter
        torch.onnx.export(network.eval(), (torch.rand(count, channels, SIDE, SIDE),), str(file), **options)
    return file


def edited(file: Path, edit: Callable[[Any], None], to: str = "edited.onnx") -> Path:
    """A copy whose onnx.ModelProto has been changed."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    edit(model)
    (file.parent / to).write_bytes(model.SerializeToString())
    return file.parent / to


def opened(file: Path, args: dict[str, Any] | None = None) -> OnnxTeacher:
    """The file as it answers by onnxruntime alone."""
    teacher = open_onnx(file, {"gradients": False, **(args or {})}, (1.0, 1.0, 1.0))
    assert isinstance(teacher, OnnxTeacher)
    return teacher


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(small(), tmp_path_factory.mktemp("onnx") / "small.onnx")


IMAGES = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


# --- the same answers ---


@pytest.mark.parametrize(
    "options",
    [
        {"opset_version": 11},
        {"opset_version": 13},
        {"dynamic_axes": {"images": {0: "batch"}}},
        {"count": 4},
        pytest.param({"dynamo": True, "opset_version": None, "verbose": False}, marks=pytest.mark.thorough),
    ],
    ids=["opset11", "opset13", "dynamic", "four", "dynamo"],
)
def test_any_number_of_images_is_answered_as_by_the_network(options: dict[str, Any], tmp_path: Path) -> None:
    network = small()
    teacher = opened(write(network, tmp_path / "a.onnx", **options))
    for count in (1, 3, 5):
        torch.testing.assert_close(teacher(IMAGES[:count]), network(IMAGES[:count]), rtol=1e-4, atol=1e-5)
    assert teacher.size == (SIDE, SIDE)
    assert not teacher(IMAGES.clone().requires_grad_()).requires_grad


class Fixed(nn.Module):
    """Mixes the images of a batch, as only a graph for one image may."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) - images.mean()


def test_a_graph_that_takes_one_image_only_is_asked_one_by_one(tmp_path: Path) -> None:
    teacher = opened(write(Fixed(), tmp_path / "a.onnx"))
    wanted = torch.cat([Fixed()(image[None]) for image in IMAGES])
    torch.testing.assert_close(teacher(IMAGES), wanted)
    assert any("computed in parts" in note for note in teacher.notes)


def test_a_batch_is_filled_up_where_the_graph_takes_four(tmp_path: Path) -> None:
    class OfFour(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) * torch.arange(1.0, 5.0)[:, None]

    teacher = opened(write(OfFour(), tmp_path / "a.onnx", count=4))
    wanted = IMAGES.mean((2, 3)) * torch.tensor([1.0, 2, 3, 4, 1])[:, None]
    torch.testing.assert_close(teacher(IMAGES), wanted)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Softmax(-1), nn.Sigmoid()])
def test_a_last_softmax_or_sigmoid_is_left_out_and_said(last: nn.Module, tmp_path: Path) -> None:
    network = small(last)
    teacher = opened(write(network, tmp_path / "a.onnx"))
    torch.testing.assert_close(teacher(IMAGES), network.logits(IMAGES), rtol=1e-4, atol=1e-5)
    assert any(f"its last {type(last).__name__} is left out" in note for note in teacher.notes)


def behind_last(model: Any, *steps: Any, tensors: dict[str, Any] | None = None) -> None:
    """Put nodes behind the one that makes the output; they begin with the value "before"."""
    from onnx import numpy_helper

    output = model.graph.output[0].name
    last = next(node for node in model.graph.node if output in node.output)
    last.output[0] = "before"
    steps[-1].output[0] = output
    model.graph.node.extend(steps)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in (tensors or {}).items())


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()])
@pytest.mark.parametrize("how", ["cast", "quantised", "turned"])
def test_a_last_softmax_or_sigmoid_is_found_behind_what_hands_numbers_on(
    how: str, last: nn.Module, tmp_path: Path
) -> None:
    """As files of half precision, quantised ones (QDQ) and TensorFlow's, channels last, have it."""
    from onnx import helper

    def edit(model: Any) -> None:
        if how == "cast":
            half, whole = (
                helper.make_node("Cast", ["before"], ["half"], to=10),
                helper.make_node("Cast", ["half"], ["o"], to=1),
            )
            behind_last(model, half, whole)
        elif how == "quantised":
            steps = {"scale": np.array(1 / 255, np.float32), "zero": np.array(0, np.uint8)}
            behind_last(
                model,
                helper.make_node("QuantizeLinear", ["before", *steps], ["whole"]),
                helper.make_node("DequantizeLinear", ["whole", *steps], ["o"]),
                tensors=steps,
            )

    if how == "turned":

        class Last(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Conv2d(3, 4, 1)

            def forward(self, images: Tensor) -> Tensor:
                maps: Tensor = last(self.layer(images.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
                return maps

        network = Last().eval()
        logits: Callable[[Tensor], Tensor] = network.layer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network, (torch.rand(1, SIDE, SIDE, 3),), str(tmp_path / "edited.onnx"), dynamo=False)
    else:
        logits = small(last).logits
        edited(write(small(last), tmp_path / "a.onnx"), edit)
    teacher = opened(tmp_path / "edited.onnx")
    torch.testing.assert_close(teacher(IMAGES), logits(IMAGES), rtol=5e-3, atol=5e-3)
    assert any(f"its last {type(last).__name__} is left out" in note for note in teacher.notes)


def test_a_softmax_over_something_else_stays_where_the_numbers_are_turned(tmp_path: Path) -> None:
    class Turned(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.softmax(2).permute(0, 1, 3, 2)

    teacher = opened(write(Turned(), tmp_path / "a.onnx"))
    torch.testing.assert_close(teacher(IMAGES), Turned()(IMAGES))


def test_a_graph_that_goes_round_or_has_steps_without_inputs_is_one_line(tmp_path: Path) -> None:
    from onnx import helper

    def round_and_round(model: Any) -> None:
        output = model.graph.output[0].name
        del model.graph.node[:]
        model.graph.node.append(helper.make_node("Identity", ["before"], [output]))
        model.graph.node.append(helper.make_node("Identity", [output], ["before"]))

    for edit in (round_and_round, lambda model: behind_last(model, helper.make_node("Cast", [], ["o"]))):
        with pytest.raises(WeightsError, match="onnxruntime does not take it"):
            opened(edited(write(small(), tmp_path / "a.onnx"), edit))


def test_classes_that_a_file_has_chosen_are_no_logits(tmp_path: Path) -> None:
    class Chosen(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.argmax(1, keepdim=True)

    with pytest.raises(NetworkError, match="answers whole numbers"):
        inspect_teacher(str(write(Chosen(), tmp_path / "a.onnx")))


def test_a_softmax_over_pixels_is_no_last_softmax_of_classes(tmp_path: Path) -> None:
    network = nn.Softmax(3)
    teacher = opened(write(network, tmp_path / "a.onnx"))
    torch.testing.assert_close(teacher(IMAGES), network(IMAGES))


def test_images_and_maps_are_turned_for_a_file_of_channels_last(tmp_path: Path) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            maps: Tensor = self.layer(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return maps

    network = Last().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(1, SIDE, SIDE, 3),), str(tmp_path / "a.onnx"), dynamo=False)
    teacher = opened(tmp_path / "a.onnx")
    torch.testing.assert_close(teacher(IMAGES), network.layer(IMAGES), rtol=1e-4, atol=1e-5)


def test_whole_numbers_are_handed_on_with_the_std_that_is_asked_for(tmp_path: Path) -> None:
    class Bytes(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean((2, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
        torch.onnx.export(Bytes(), (given,), str(tmp_path / "a.onnx"), dynamo=False)
    with pytest.raises(NetworkError, match=r"set std to \[0.00392157"):
        build_network(NetworkSpec(network=str(tmp_path / "a.onnx")), num_classes=3)
    spec = NetworkSpec(network=str(tmp_path / "a.onnx"), std=(1 / 255,) * 3)
    answer = spec.wrap(build_network(spec, num_classes=3))(IMAGES)
    torch.testing.assert_close(answer, (IMAGES * 255).round().mean((2, 3)), rtol=1e-5, atol=1e-3)


def test_one_of_several_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images.mean((2, 3)), images * 2

    made = write(Two(), tmp_path / "a.onnx", output_names=["label", "maps"])
    with pytest.raises(NetworkError, match=r"answers 2 values; .*output: NAME.* of label \(1, 3\), maps") as caught:
        opened(made)
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(opened(made, {"output": "maps"})(IMAGES), IMAGES * 2)
    with pytest.raises(NetworkError, match="has no output 'box'"):
        opened(made, {"output": "box"})
    with pytest.raises(NetworkError, match="does not take 'name' in args"):
        opened(made, {"name": "maps"})


def name_classes(model: Any) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = "names", "{0: 'cat', 1: 'dog'}"


@pytest.mark.parametrize("names", ["{0: 'cat'}", "{0: 'cat', 1: 'dog'}"])
def test_rows_after_suppression_are_refused_also_of_one_class(names: str, tmp_path: Path) -> None:
    """Corners, score and class: as many numbers as a row of YOLOv5's with one class."""

    class EndToEnd(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([2.0, 3, 10, 12, 0.9, 0]).expand(images.shape[0], 7, 6) + 0 * images.mean()

    def named(model: Any) -> None:
        entry = model.metadata_props.add()
        entry.key, entry.value = "names", names

    teacher = opened(edited(write(EndToEnd(), tmp_path / "a.onnx"), named))
    with pytest.raises(NetworkError, match="after non-maximum suppression"):
        teacher(IMAGES)


@pytest.mark.parametrize("scored", [False, True], ids=["yolov8", "yolov5"])
def test_boxes_of_a_yolos_file_are_those_of_its_rows(scored: bool, tmp_path: Path) -> None:
    """Centre and sides of 8, 6, 4, 2 pixels; 0.9 sure that there is anything, where that is said."""

    class Yolo(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            box = torch.tensor([8.0, 6, 4, 2]).view(1, 4, 1)
            sure = [torch.full((1, 1, 1), 0.9)] if scored else []
            classes = images.mean((2, 3))[:, :2, None]
            rows = torch.cat([part.expand(images.shape[0], -1, 1) for part in (box, *sure, classes)], 1)
            return rows.transpose(1, 2) if scored else rows

    file = edited(write(Yolo(), tmp_path / "a.onnx", dynamic_axes={"images": {0: "b"}}), name_classes)
    answer = opened(file)(IMAGES)
    assert isinstance(answer, Predictions)
    assert answer.boxes.shape == (5, 1, 4)
    assert answer.boxes[0, 0].tolist() == [6, 5, 10, 7]
    classes = IMAGES.mean((2, 3))[:, None, :2]
    torch.testing.assert_close(answer.scores, classes * (0.9 if scored else 1))
    torch.testing.assert_close(answer.class_logits, classes.logit())


# --- as a teacher ---


def recipe(folder: Path, file: Path, method: str, **more: Any) -> Any:
    content = {
        "task": {"kind": "classification", "num_classes": CLASSES, "image_size": [SIDE, SIDE]},
        "teacher": {"network": f"{file}?gradients=false", "mean": [0.5, 0.5, 0.5]},
        "student": {"network": "datafree/resnet", "args": {"depth": 8, "width": 4}},
        "source": {"method": method},
        "training": {"steps": 2, "batch_size": 4},
    }
    return load(folder, {**content, **more})


@pytest.mark.parametrize("method", some(["auto", "procedural", "noise"], "noise"))
def test_an_onnx_file_teaches_and_is_recorded(method: str, file: Path, tmp_path: Path) -> None:
    run = run_recipe(recipe(tmp_path, file, method), tmp_path / "run").run
    taught_by = json.loads((run / "student.json").read_text())["teacher"]
    assert taught_by["network"] == taught_by["weights"] == "small.onnx"
    assert (taught_by["sha256"], taught_by["sha256_of"]) == (sha256_of(file), "file")
    assert taught_by["parameters"] > 6 * 64 * CLASSES
    if method == "auto":
        assert "procedural" in (run / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("method", "said"), [("dafl", "only answers, no gradient"), ("inversion", "no BatchNorm|only answers")]
)
def test_methods_that_look_into_a_teacher_refuse_it_before_any_work(
    method: str, said: str, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(NetworkError, match=said) as caught:
        run_recipe(recipe(tmp_path, file, method), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "student.json").exists()


def test_inspect_says_task_classes_size_and_the_methods_that_answers_serve(file: Path) -> None:
    found = inspect_teacher(f"{edited(file, name_classes, 'named.onnx')}?gradients=false")
    assert (found.task.value, found.classes.value, found.input_size.value) == ("classification", CLASSES, (SIDE, SIDE))
    assert found.trained
    assert any("2 classes: cat, dog" in note for note in found.notes)
    wanted = {"procedural", "folder", "dataset", "noise", "mixed", "auto"}
    assert {name for name, method in found.sources.items() if method.applies} == wanted


def test_an_onnx_file_cannot_learn_and_auto_says_what_to_give(file: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="can teach but not learn"):
        run_recipe(recipe(tmp_path, file, "noise", student={"network": str(file)}), tmp_path / "run")
    with pytest.raises(NetworkError, match=r"name a student .*, such as datafree/resnet"):
        run_recipe(recipe(tmp_path, file, "noise", student={"network": "auto"}), tmp_path / "run")


def test_a_name_that_is_not_the_users_opens_no_file(file: Path) -> None:
    with pytest.raises(NetworkError, match="never done for a name found in a file"):
        build_network(NetworkSpec(network=str(file)), num_classes=CLASSES, allow_import=False)


@pytest.mark.parametrize(
    ("shape", "said"), [((1, 3, 9, SIDE), r"input_size to \[16, 16\]"), ((1, 1, SIDE, SIDE), "set channels: 3")]
)
def test_images_that_do_not_fit_are_told_the_option(shape: tuple[int, ...], said: str, file: Path) -> None:
    with pytest.raises(NetworkError, match=said):
        opened(file)(torch.rand(shape))


def test_tensors_beside_the_file_are_read_and_counted_in_its_digest(tmp_path: Path) -> None:
    import onnx

    network = small()
    inside = write(network, tmp_path / "a.onnx")
    onnx.save(
        onnx.load(str(inside)), str(tmp_path / "b.onnx"), save_as_external_data=True, location="b", size_threshold=0
    )
    teacher = opened(tmp_path / "b.onnx")
    torch.testing.assert_close(teacher(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)
    assert teacher.files == (tmp_path / "b.onnx", tmp_path / "b")
    before = describe_teacher(NetworkSpec(network=str(tmp_path / "b.onnx")), teacher)
    assert before["sha256_of"] == "2 files"
    content = bytearray((tmp_path / "b").read_bytes())
    content[0] ^= 1
    (tmp_path / "b").write_bytes(content)
    assert describe_teacher(NetworkSpec(network=str(tmp_path / "b.onnx")), teacher)["sha256"] != before["sha256"]


# --- files that are not trusted ---


def refusal(file: Path) -> str:
    with pytest.raises(DatafreeError) as caught:
        opened(file)(IMAGES)
    line = str(caught.value)
    assert str(file) in line
    assert "\n" not in line
    assert line.isprintable()
    return line


def custom(model: Any) -> None:
    model.graph.node[0].domain = "my.company"


def compiled(model: Any) -> None:
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.microsoft", "EPContext"


def hidden(model: Any) -> None:
    """A custom operator inside a branch that is never taken."""
    from onnx import TensorProto, helper

    answer = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Run", [], ["o"], domain="evil")], "branch", [], [answer])
    node = helper.make_node("If", ["c"], ["x"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


def false_size(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 10**12


def negative_size(model: Any) -> None:
    model.graph.initializer[0].dims[0] = -6


def sparse(model: Any) -> None:
    model.graph.sparse_initializer.add().dims.append(10**12)


def two_inputs(model: Any) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[1].name = "scale"


def four_channels(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


def sound(model: Any) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[3:]


def texts(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 8


def no_nodes(model: Any) -> None:
    del model.graph.node[:]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (custom, "uses the operator 'my.company::"),
        (compiled, "EPContext"),
        (hidden, "uses the operator 'evil::Run'"),
        (false_size, "not held whole"),
        (negative_size, "not held whole"),
        (sparse, "sparse tensors"),
        (two_inputs, r"takes 2 inputs (images, scale)"),
        (four_channels, "takes images of 4 channels"),
        (sound, "are needed"),
        (texts, "another type"),
        (no_nodes, "it has no graph"),
    ],
)
def test_a_file_that_declares_what_it_should_not_is_one_line(
    edit: Callable[[Any], None], said: str, file: Path
) -> None:
    assert said in refusal(edited(file, edit))


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("../secret.bin", "only files in its own folder"),
        ("/etc/hostname", "only files in its own folder"),
        ("", "only files in its own folder"),
        ("link.bin", "a link to another folder"),
        ("absent.bin", "not beside it"),
        ("short.bin", "does not lie whole"),
    ],
)
def test_tensors_outside_its_folder_are_not_read(location: str, said: str, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(10**5))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "short.bin").write_bytes(b"0")

    def away(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    copy = folder / "a.onnx"
    copy.write_bytes(edited(file, away, "away.onnx").read_bytes())
    assert said in refusal(copy)


def test_a_false_length_beside_the_file_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(10**5))

    def away(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        for key, value in (("location", "data"), ("offset", "0"), ("length", "7")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    (tmp_path / "a.onnx").write_bytes(edited(file, away, "false.onnx").read_bytes())
    assert "but has 7 bytes" in refusal(tmp_path / "a.onnx")


def beside(model: Any, location: str, offsets: Callable[[int], int]) -> int:
    """Say that the graph's tensors lie in `location`, each `offsets` behind what was there so far; bytes in all."""
    at = 0
    for tensor in model.graph.initializer:
        at, length = offsets(at), len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        for key, value in (("location", location), ("offset", str(at)), ("length", str(length))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        at += length
    return at


def spread(file: Path, to: Path) -> Path:
    """A copy of `file` with its tensors in `w.bin`, each at a multiple of 4,096 bytes as onnx_ir and others align."""
    import onnx

    model = onnx.load(str(file))
    values = [tensor.raw_data for tensor in model.graph.initializer]
    size = beside(model, "w.bin", lambda at: -(-at // 4096) * 4096)
    content = bytearray(size)
    for tensor, value in zip(model.graph.initializer, values, strict=True):
        at = int(next(entry.value for entry in tensor.external_data if entry.key == "offset"))
        content[at : at + len(value)] = value
    (to / "w.bin").write_bytes(content)
    (to / "a.onnx").write_bytes(model.SerializeToString())
    return to / "a.onnx"


def test_tensors_at_aligned_places_beside_the_file_are_read(file: Path, tmp_path: Path) -> None:
    torch.testing.assert_close(opened(spread(file, tmp_path))(IMAGES), opened(file)(IMAGES))


@pytest.mark.parametrize("names", ["one", "links"])
def test_many_tensors_on_the_same_bytes_beside_the_file_are_refused(names: str, file: Path, tmp_path: Path) -> None:
    """By links, the bytes have many names; hard links cannot be told from the file itself."""

    def again(model: Any) -> None:
        largest = max(model.graph.initializer, key=lambda tensor: tensor.dims[0] * tensor.dims[-1])
        for index in range(30):
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(largest)
            tensor.name = f"again{index}"
            if names == "links":
                tensor.external_data[0].value = f"link{index}"
                link = tmp_path / f"link{index}"
                link.symlink_to("w.bin") if index % 2 else link.hardlink_to(tmp_path / "w.bin")

    line = refusal(edited(spread(file, tmp_path), again))
    assert "lie on top of each other" in line
    assert "save_as_external_data=True" in line


def branches(model: Any) -> None:
    """Two branches, which each have a tensor of the same name and values."""
    from onnx import TensorProto, helper, numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(torch.tensor(True).numpy(), "c"))
    answer = helper.make_tensor_value_info("o", TensorProto.FLOAT, [CLASSES])
    held = numpy_helper.from_array(torch.ones(CLASSES).numpy(), "w")
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["o"])], "branch", [], [answer], [held])
    logits, model.graph.output[0].name = model.graph.output[0].name, "sum"
    model.graph.node.append(helper.make_node("If", ["c"], ["x"], then_branch=branch, else_branch=branch))
    model.graph.node.append(helper.make_node("Add", [logits, "x"], ["sum"]))


def test_the_same_tensor_in_two_branches_is_read_as_onnx_writes_it_beside_the_file(file: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(edited(file, branches, "branches.onnx")))
    onnx.save(model, str(tmp_path / "a.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    found, held = onnx_file.read_onnx(tmp_path / "a.onnx"), onnx_file.read_onnx(file)
    assert found.files == (tmp_path / "a.onnx", tmp_path / "w.bin")
    assert found.parameter_count == held.parameter_count + 2 * CLASSES


@pytest.mark.parametrize("count", [64, 65])
def test_a_tensor_of_very_many_dimensions_is_refused(count: int, file: Path) -> None:
    def add(model: Any) -> None:
        tensor = model.graph.initializer.add()
        tensor.name, tensor.data_type, tensor.raw_data = "deep", tensor.FLOAT, bytes(4)
        tensor.dims.extend([1] * count)

    copy = edited(file, add, f"dims{count}.onnx")
    if count <= 64:
        assert onnx_file.read_onnx(copy).parameter_count == onnx_file.read_onnx(file).parameter_count + 1
    else:
        assert "the tensor 'deep' has 65 dimensions" in refusal(copy)


@pytest.mark.parametrize("place", ["input", "output"])
def test_images_and_outputs_of_very_many_dimensions_are_a_short_line(place: str, file: Path) -> None:
    def widen(model: Any) -> None:
        if place == "output":
            model.graph.output.add().CopyFrom(model.graph.output[0])
            model.graph.output[1].name = "again"
        for _ in range(5000):
            getattr(model.graph, place)[-1].type.tensor_type.shape.dim.add().dim_value = 3

    line = refusal(edited(file, widen, f"wide_{place}.onnx"))
    assert len(line.replace(str(file.parent), "")) < 300


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("{0: 'cat', 1: 'dog'}", ["cat", "dog"]),
        (str(["bird"] * 8000), ["bird"] * 8000),  # 64,000 letters
        (str(["bird"] * 9000), []),  # 72,000: reading them takes hundreds of times that
        ("{[]: 1}", []),
        ("{'a': 'b'", []),
        (f"[0x{'f' * 5000}]", []),
        (f"0x{'f' * 5000} + 1j", []),
        ("(" * 60_000, []),
    ],
    ids=range(8),
)
def test_names_of_classes_are_read_where_they_are_a_plain_list(names: str, found: list[str]) -> None:
    assert class_names({"names": names}) == found


@pytest.mark.parametrize("content", [b"", b"no protobuf" * 9, b"PK\x03\x04", b"\x3a\xff\xff\xff\xff\x7f"])
def test_damaged_files_are_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    assert "damaged, or not an ONNX file" in refusal(tmp_path / "a.onnx")


def test_any_bytes_changed_are_an_answer_or_one_line(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    generator = torch.Generator().manual_seed(0)
    changed = tmp_path / "a.onnx"
    for _ in range(60):
        damaged = bytearray(content)
        for place in torch.randint(0, 600, (3,), generator=generator).tolist():
            damaged[place] = int(torch.randint(0, 256, (1,), generator=generator))
        changed.write_bytes(damaged)
        try:
            opened(changed)(IMAGES[:1])
        except DatafreeError as error:
            assert "\n" not in str(error)


def test_large_files_and_bombs_of_small_messages_are_not_parsed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = b"\x0a\x00"  # an empty node: 2 bytes that would be a hundred
    graph = node * 2000
    length = len(graph)
    (tmp_path / "bomb.onnx").write_bytes(bytes([0x3A, length & 127 | 128, length >> 7]) + graph)
    assert protobuf.count_fields((tmp_path / "bomb.onnx").read_bytes()) == 2001
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 1000)
    assert "more than 1,000 fields" in refusal(tmp_path / "bomb.onnx")
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 100)
    assert "bytes; an ONNX file has 100 at most" in refusal(file)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "a.onnx")


def test_weights_beside_an_onnx_file_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="holds its weights"):
        NetworkSpec(network=str(file), weights=tmp_path / "w.pt")
    with pytest.raises(WeightsError):
        build_network(NetworkSpec(network="datafree/unet", weights=file), num_classes=5)
