"""INT8 students: calibrated on made images only, close to the float ones, a quarter of their size."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datafree.data.images import to_image
from datafree.deploy.export_run import Exported, export_run
from datafree.engine.artifacts import save_calibration
from datafree.errors import DataError, NetworkError
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.normalized import Normalized
from datafree.networks.onnx import OnnxNetwork, write_onnx
from datafree.networks.resnet import resnet
from run_directories import forge

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from datafree.deploy.quantize import _ends, quantize

ARGS = {"depth": 8, "width": 32, "stride": 2}
COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]])


def coloured(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images of a colour (count, 3, 16, 16), and which of COLOURS it is."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(COLOURS)
    noise = torch.rand(count, 3, 16, 16, generator=draw)
    return 0.6 * noise + 0.4 * COLOURS[labels][:, :, None, None], labels


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """A student that has learnt the colours, exported and quantised with made images and scored on labelled ones."""
    folder = tmp_path_factory.mktemp("colours")
    torch.manual_seed(0)
    network = resnet(3, **ARGS)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(20):
        images, labels = coloured(24, step)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    run = folder / "run"
    run.mkdir()
    save_weights(network, run / "student.safetensors")
    task = {"kind": "classification", "num_classes": 3, "image_size": [16, 16]}
    described = {"network": {"network": "datafree/resnet", "args": ARGS}, "task": task}
    forge(run / "student.json", described)
    save_calibration(coloured(40, 100)[0], run)
    for index, (image, label) in enumerate(zip(*coloured(30, 200), strict=True)):
        place = folder / "data" / ["red", "green", "blue"][int(label)] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture: Image.Image = to_image(image)
        picture.save(place)
    (folder / "data" / "classes.txt").write_text("red\ngreen\nblue\n")
    return run, export_run(run, int8=True, data=folder / "data")


@pytest.mark.thorough
def test_int8_file_is_about_a_quarter_of_the_float_one(exported: tuple[Path, Exported]) -> None:
    sizes = exported[1].sizes
    assert 3.3 < sizes["student.onnx"] / sizes["student.int8.onnx"] < 4.2


def test_int8_logits_are_close_to_the_float_ones(exported: tuple[Path, Exported]) -> None:
    folder = exported[1].folder
    images, labels = coloured(24, 300)
    exact, small = OnnxNetwork(folder / "student.onnx"), OnnxNetwork(folder / "student.int8.onnx")
    wanted, logits = exact(images), small(images)
    assert isinstance(wanted, Tensor)
    assert isinstance(logits, Tensor)
    assert (logits - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert not torch.equal(logits, wanted)
    assert (logits.argmax(1) == labels).float().mean() > 0.95
    assert small.description == exact.description


def test_score_change_is_reported_where_labelled_data_is_given(exported: tuple[Path, Exported]) -> None:
    _, done = exported
    assert list(done.scores) == ["student.safetensors", "student.onnx", "student.int8.onnx"]
    assert done.scores["student.safetensors"].values["top1"] > 0.95
    config = json.loads((done.folder / "config.json").read_text())
    assert config["scores"]["export"]["student.int8.onnx"] == done.scores["student.int8.onnx"].values
    assert config["class_names"] == ["red", "green", "blue"]
    assert (config["int8"]["images"], config["int8"]["compared"]) == (30, 10)
    card = (done.folder / "README.md").read_text()
    for file, scores in done.scores.items():
        assert f"| {file} | `.../" in card
        assert f"{100 * scores.values['top1']:.2f} %" in card
    assert "calibrated on 30 images of the run's source" in card


def test_weights_trained_for_int8_are_the_int8_files_alone(exported: tuple[Path, Exported], tmp_path: Path) -> None:
    run, before = exported
    done = export_run(run, tmp_path / "out", int8=True, qat_steps=3)
    config = json.loads((done.folder / "config.json").read_text())
    assert (config["int8"]["qat_steps"], config["int8"]["images"]) == (3, 30)
    assert "trained for that in 3 steps" in (done.folder / "README.md").read_text()
    assert any(line.startswith("3 steps of training for INT8") for line in done.notes)
    images = coloured(24, 300)[0]

    def answer(folder: Path, name: str) -> Tensor:
        found = OnnxNetwork(folder / name)(images)
        assert isinstance(found, Tensor)
        return found

    exact, small = (
        [answer(one.folder, file) for one in (before, done)] for file in ("student.onnx", "student.int8.onnx")
    )
    assert torch.equal(*exact)
    assert not torch.equal(*small)


def test_quantising_without_images_is_one_line(exported: tuple[Path, Exported], tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    with pytest.raises(DataError, match="--images"):
        quantize(exported[1].folder / "student.onnx", out, [])
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(NetworkError, match="cannot be quantised") as caught:
        quantize(tmp_path / "bad.onnx", out, [torch.rand(1, 3, 16, 16)])
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_images_are_streamed(exported: tuple[Path, Exported], tmp_path: Path) -> None:
    asked: list[int] = []

    def made() -> Iterator[Tensor]:
        for seed in range(3):
            asked.append(seed)
            yield coloured(4, seed)[0]

    quantize(exported[1].folder / "student.onnx", tmp_path / "int8.onnx", made())
    assert asked == [0, 1, 2]


def test_exact_ends_are_the_last_layers_and_what_follows_them() -> None:
    from onnx import helper

    def node(kind: str, inputs: str, output: str) -> object:
        return helper.make_node(kind, inputs.split(), [output], name=output)

    nodes = [
        node("Conv", "images w1", "body"),
        node("Relu", "body", "features"),
        node("Conv", "features w2", "boxes"),  # one head
        node("Exp", "boxes", "sides"),
        node("Conv", "features w3", "tower"),  # the other, of two layers
        node("Conv", "tower w4", "logits"),
        node("Sigmoid", "logits", "scores"),
    ]
    graph = helper.make_graph(nodes, "detector", [], [])
    assert sorted(_ends(graph)) == ["boxes", "logits", "scores", "sides"]


def layers(*last: torch.nn.Module) -> torch.nn.Sequential:
    torch.manual_seed(0)
    between = [torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU()]
    return torch.nn.Sequential(*between, *last)


def weights_of(file: Path) -> list[str]:
    """The types of the convolutions' weights in a file, sorted."""
    import onnx

    kinds, stored = onnx.TensorProto.DataType, onnx.load(file).graph.initializer
    weights = [tensor for tensor in stored if len(tensor.dims) == 4 and tensor.dims[0] > 1]  # not mean and std
    return sorted(kinds.Name(tensor.data_type) for tensor in weights)


def quantised(network: torch.nn.Module, folder: Path, images: list[Tensor], **options: bool) -> tuple[Tensor, Tensor]:
    """The answers of the float file, if need be written, and of the INT8 file about the first images."""
    height, width = images[0].shape[-2:]
    if not (folder / "float.onnx").exists():
        write_onnx(Normalized(network.eval()), folder / "float.onnx", (height, width), {})
    quantize(folder / "float.onnx", folder / "int8.onnx", images, **options)
    exact, small = (OnnxNetwork(folder / name)(images[0]) for name in ("float.onnx", "int8.onnx"))
    assert isinstance(exact, Tensor)
    assert isinstance(small, Tensor)
    return exact, small


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of three convolutions, written once."""
    folder = tmp_path_factory.mktemp("plain")
    write_onnx(Normalized(layers(torch.nn.Conv2d(16, 2, 3)).eval()), folder / "float.onnx", (16, 16), {})
    return folder


@pytest.mark.parametrize(("exact_ends", "kinds"), [(False, ["UINT8"] * 3), (True, ["FLOAT", "UINT8", "UINT8"])])
def test_detectors_ends_stay_exact(plain: Path, tmp_path: Path, exact_ends: bool, kinds: list[str]) -> None:
    images = [torch.rand(4, 3, 16, 16) for _ in range(2)]
    quantize(plain / "float.onnx", tmp_path / "int8.onnx", images, exact_ends=exact_ends)
    assert weights_of(tmp_path / "int8.onnx") == kinds


def test_answers_are_not_rounded_to_256_values(plain: Path) -> None:
    exact, small = quantised(layers(), plain, [torch.rand(4, 3, 16, 16)])
    assert len(small.unique()) > 256
    assert 0 < float((exact - small).abs().max()) < 0.03 * float(exact.abs().max())


def test_large_sums_of_products_do_not_overflow(tmp_path: Path) -> None:
    """White images and weights of 1: two products of bytes are 2 * 255 * 127 = 64,770, and 16 bits end at 32,767."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    for parameter in network.parameters():
        torch.nn.init.ones_(parameter)
    exact, small = quantised(network, tmp_path, [torch.ones(2, 3, 8, 8)])
    assert torch.equal(exact, torch.full_like(exact, 27 * 72 + 1))  # 3 channels of 9 pixels, 8 of 9, the bias
    assert torch.allclose(small, exact, rtol=0.01)


class Sum(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.elu(self.one(images) + self.other(images))


@pytest.mark.thorough
def test_what_has_no_weights_is_computed_in_float(tmp_path: Path) -> None:
    """Sum and exponential linear unit read floats, and what they answer is not rounded again."""
    import onnx

    _, small = quantised(Sum(), tmp_path, [torch.rand(4, 3, 16, 16)])
    rounded = [
        node.input[0] for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type == "QuantizeLinear"
    ]
    makers = {name: node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node for name in node.output}
    assert {makers.get(name, "images") for name in rounded} <= {"Conv", "images", "Div", "Sub"}
    assert len(small.unique()) > 256
