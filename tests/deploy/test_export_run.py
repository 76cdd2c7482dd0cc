"""A student as files to ship: the same answers everywhere, whole or not at all, nothing trusted."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datafree.config import schema
from datafree.deploy import export_run as module
from datafree.deploy.export_run import Exported, export_run
from datafree.deploy.formats import onnx as onnx_format
from datafree.deploy.made_images import apart
from datafree.deploy.push import push_run
from datafree.engine.artifacts import CALIBRATION, describe_teacher, save_calibration
from datafree.errors import DataError, DatafreeError, NetworkError, RecipeError, RunError
from datafree.evaluation.finished_run import load_onnx, load_student
from datafree.evaluation.scoring import evaluate, evaluate_run
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.detectors import Detector
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized, bare
from datafree.networks.onnx import OnnxNetwork, check_onnx
from datafree.ops.detections import detect
from datafree.ops.predictions import Predictions
from datafree.preflight.calibration_subject import calibration_subject
from datafree.preflight.wishes import Wishes
from datafree.run import run_recipe
from datafree.tasks.detection import Detection
from recipes import load, write_teacher
from thorough import some

LOOK = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
SEGMENTATION = {"kind": "segmentation", "num_classes": 3, "image_size": [32, 48]}
UNET = {"network": "datafree/unet", "args": {"width": 2, "depth": 2}, **LOOK, "channel_order": "bgr"}

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the packages of datafree[onnx] are not installed",
)


def write_run(run: Path, network: dict[str, Any], task: dict[str, Any] = SEGMENTATION, **more: Any) -> Path:
    """A finished run's directory, its student a random network whose BatchNorm has seen something."""
    run.mkdir(parents=True, exist_ok=True)
    spec: NetworkSpec = schema.build(NetworkSpec, network)
    torch.manual_seed(3)
    made = build_network(spec, num_classes=task["num_classes"])
    settle(spec.wrap(made), task["image_size"])
    save_weights(bare(made), run / "student.safetensors")
    (run / "student.json").write_text(json.dumps({"network": network, "task": task, **more}))
    save_calibration(torch.rand(12, 3, *task["image_size"]), run)
    return run


def settle(network: nn.Module, size: list[int]) -> None:
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(4, 3, *size))
    network.eval()


def answers(network: nn.Module, images: Tensor) -> Any:
    with torch.no_grad():
        return network.eval()(images)


class Boxes(Detector):
    """A detector of one anchor for each cell of 8 x 8 pixels."""

    backbone = "0"

    def forward(self, images: Tensor) -> Predictions:
        raw = self.network(images)  # (B, 4 + C, h, w)
        height, width = raw.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres = (torch.stack([columns, rows], -1).flatten(0, 1) + 0.5) * 8
        values = raw.flatten(2).transpose(1, 2)  # (B, L, 4 + C)
        middle = centres + 4 * values[..., :2].tanh()
        half = 6 * values[..., 2:4].clamp(-2, 2).exp()
        return Predictions(
            class_logits=values[..., 4:],
            scores=(3 * values[..., 4:]).sigmoid(),
            boxes=torch.cat([middle - half, middle + half], -1),
            centres=centres.expand(raw.shape[0], -1, -1),
            heads=(raw,),
            loss=lambda heads, targets: heads[0].sum(),
        )


def make_boxes(classes: int = 3) -> Detector:
    body = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8), nn.LeakyReLU(0.1))
    return Boxes(nn.Sequential(body, nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4 + classes, 1)))


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """The run and the export of a segmentation student, with ONNX and INT8."""
    run = write_run(tmp_path_factory.mktemp("segmenter") / "run", UNET)
    return run, export_run(run, int8=True)


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    task = {"kind": "detection", "num_classes": 3, "image_size": [64, 96]}
    run = write_run(
        tmp_path_factory.mktemp("detector") / "run", {"network": "test_export_run:make_boxes", **LOOK}, task
    )
    return run, export_run(run, student="test_export_run:make_boxes")


@needs_onnx
def test_run_is_exported_whole_and_says_what_it_is(segmenter: tuple[Path, Exported]) -> None:
    run, done = segmenter
    assert done.folder == run / "export"
    names = ["README.md", "config.json", "student.int8.onnx", "student.onnx", "student.safetensors"]
    assert sorted(file.name for file in done.folder.iterdir()) == names == sorted(done.sizes)
    config = json.loads((done.folder / "config.json").read_text())
    assert (config["library"], config["network"], config["num_classes"]) == ("datafree", "datafree/unet", 3)
    assert config["input"] | {"mean": 0, "std": 0} == {
        "name": "images",
        "shape": ["batch", 3, 32, 48],
        "values": "RGB, float32 in [0, 1]",
        "mean": 0,
        "std": 0,
        "channel_order": "bgr",
        "channels": 3,
        "resized_to": None,
    }
    assert config["onnx"]["relative_error"].keys() == {"1", "3"}
    assert all(0 <= error < 1e-4 for error in config["onnx"]["relative_error"].values())
    assert not [file for file in run.iterdir() if file.name.startswith(".")]


@needs_onnx
def test_onnx_file_answers_as_the_student_for_any_number_of_images(segmenter: tuple[Path, Exported]) -> None:
    run, done = segmenter
    student = load_student(run).network
    exported = OnnxNetwork(done.folder / "student.onnx")
    for count in (1, 2, 5):
        images = torch.rand(count, 3, 32, 48)
        torch.testing.assert_close(exported(images), answers(student, images), rtol=1e-4, atol=1e-5)


@needs_onnx
@pytest.mark.parametrize("name", ["student.onnx", "student.int8.onnx"])
def test_exported_graph_shows_neither_code_nor_folders(segmenter: tuple[Path, Exported], name: str) -> None:
    content = (segmenter[1].folder / name).read_bytes()
    assert b"Conv" in content
    for traced in (b"stack_trace", b"site-packages", b'File "', str(Path.cwd()).encode()):
        assert traced not in content


@needs_onnx
def test_onnx_file_scores_as_its_run_does(segmenter: tuple[Path, Exported], tmp_path: Path) -> None:
    run, done = segmenter
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for index in range(3):
        pixels = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(pixels[..., 0] % 3).save(tmp_path / "masks" / f"{index}.png")
    task, network = load_onnx(done.folder / "student.onnx")
    scores = evaluate(network, task, task.open_dataset(tmp_path), device=torch.device("cpu"))
    wanted = evaluate_run(run, tmp_path)["student"].values
    assert scores.values == pytest.approx(wanted, abs=1e-3)


@needs_onnx
def test_detector_exports_boxes_and_scores(detector: tuple[Path, Exported]) -> None:
    run, done = detector
    student = load_student(run, student="test_export_run:make_boxes").network
    images = torch.rand(3, 3, 64, 96)
    ours, theirs = OnnxNetwork(done.folder / "student.onnx")(images), answers(student, images)
    assert isinstance(ours, Predictions)
    torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
    with pytest.raises(NetworkError, match="no training loss"):
        ours.own_loss(torch.zeros(3, 1, 5))
    task, _ = load_onnx(done.folder / "student.onnx")
    assert task.agreement(ours, theirs) == 1


@needs_onnx
@pytest.mark.thorough
def test_a_detector_is_quantised_too(detector: tuple[Path, Exported], tmp_path: Path) -> None:
    done = export_run(detector[0], tmp_path / "out", int8=True, student="test_export_run:make_boxes")
    images = torch.rand(3, 3, 64, 96)
    exact, small = (OnnxNetwork(done.folder / name)(images) for name in ("student.onnx", "student.int8.onnx"))
    assert isinstance(exact, Predictions) and isinstance(small, Predictions)
    torch.testing.assert_close(small.scores, exact.scores, rtol=0, atol=0.1)


@needs_onnx
def test_post_process_of_the_card_finds_what_datafree_finds(detector: tuple[Path, Exported]) -> None:
    _, done = detector
    card = (done.folder / "README.md").read_text()
    code = re.search(r"^def detections.*?^    return [^\n]*\n", card, re.DOTALL | re.MULTILINE)
    assert code is not None
    assert len(code[0].splitlines()) < 20
    space: dict[str, Any] = {"np": np}
    exec(code[0], space)
    boxes, scores = torch.rand(1, 400, 4) * 100 - 20, torch.rand(1, 400, 3)
    boxes[..., 2:] = boxes[..., :2] + torch.rand(1, 400, 2) * 30  # many overlap, some lie outside, some have no extent
    outputs = Predictions(
        class_logits=scores, scores=scores, boxes=boxes, centres=boxes[..., :2], heads=(), loss=lambda h, t: h[0]
    )
    task = Detection(num_classes=3, image_size=(64, 96))
    (wanted,) = task.detections(outputs)
    labels, found, sure = space["detections"](boxes[0].numpy(), scores[0].numpy(), (64, 96))
    assert labels.tolist() == wanted.labels.tolist()
    assert len(labels) > 3
    np.testing.assert_allclose(found, wanted.boxes)
    np.testing.assert_allclose(sure, wanted.scores)
    loose = detect(outputs, score_threshold=0.8, nms_iou=0.1, max_detections=9, size=(64, 96))[0]
    labels, found, _ = space["detections"](boxes[0].numpy(), scores[0].numpy(), (64, 96), 0.8, 0.1, 9)
    assert labels.tolist() == loose.labels.tolist()
    np.testing.assert_allclose(found, loose.boxes)
    assert all(len(part) == 0 for part in space["detections"](boxes[0].numpy(), 0 * scores[0].numpy(), (64, 96)))


BLOCKER = """\
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "datafree":
            raise ImportError("datafree is blocked")
sys.meta_path.insert(0, Blocker())
try:
    import datafree
except ImportError:
    pass
else:
    raise SystemExit("datafree was not blocked")
import os
"""


def run_card(export: Path, images: Tensor) -> str:
    """Code that runs the first snippet of an export's card on `images`, in its folder, and keeps the logits."""
    save_file({"images": images}, export.parent / "images.safetensors")
    card = (export / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    assert "datafree" not in code[1]
    replaced, count = re.subn(
        r"^images = .*$", 'images = load_file("../images.safetensors")["images"]', code[1], flags=re.MULTILINE
    )
    assert count == 1
    save = 'from safetensors.torch import save_file\nsave_file({"logits": logits}, "../logits.safetensors")\n'
    return f"os.chdir({str(export)!r})\n{replaced}\n{save}"


def in_libraries() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    classes = {"kind": "classification", "num_classes": 4, "image_size": [64, 64]}
    maps = {"kind": "segmentation", "num_classes": 3, "image_size": [64, 32]}
    return {
        "timm": ({"network": "timm/test_resnet", **LOOK, "channels": 1, "input_size": [48, 48]}, classes),
        "torchvision": ({"network": "torchvision/squeezenet1_1", **LOOK, "channel_order": "bgr"}, classes),
        "lraspp": ({"network": "torchvision/lraspp_mobilenet_v3_large"}, maps),
        "smp": (
            {
                "network": "smp/unet",
                "args": {
                    "encoder": "mobilenet_v2",
                    "decoder_channels": [16, 8, 8, 8, 8],
                    "encoder_weights": "imagenet",
                },
                **LOOK,
                "input_size": [96, 64],
            },
            maps,
        ),
    }


@pytest.mark.timeout(600)  # it imports all the libraries once more
@pytest.mark.thorough
def test_student_loads_where_datafree_cannot_be_imported(tmp_path: Path) -> None:
    code, wanted = BLOCKER, {}
    for name, (network, task) in in_libraries().items():
        safe = {**network, "args": {k: v for k, v in network.get("args", {}).items() if k != "encoder_weights"}}
        run = write_run(tmp_path / name, safe, task)
        (run / "student.json").write_text(json.dumps({"network": network, "task": task}))  # asks for a download
        done = export_run(run, onnx=False)
        assert "student.onnx" not in done.sizes
        images = torch.rand(2, 3, *task["image_size"])
        code += run_card(done.folder, images)
        wanted[name] = answers(load_student(run).network, images)
    subprocess.run([sys.executable, "-c", code], check=True)
    for name, logits in wanted.items():
        found = load_file(tmp_path / name / "logits.safetensors")["logits"]
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("name", ["timm", "torchvision", "lraspp", "smp"])
def test_libraries_networks_export_to_onnx(tmp_path: Path, name: str) -> None:
    network, task = in_libraries()[name]
    network = {**network, "args": {k: v for k, v in network.get("args", {}).items() if k != "encoder_weights"}}
    done = export_run(write_run(tmp_path / "run", network, task))
    assert max(done.errors.values()) < 1e-4


@needs_onnx
@pytest.mark.thorough
def test_classifier_of_a_real_run_is_exported_with_its_provenance(tmp_path: Path) -> None:
    args = {"depth": 8, "width": 4}
    spec = NetworkSpec(network="datafree/resnet", args=args, weights=tmp_path / "teacher.safetensors")
    teacher = build_network(NetworkSpec(network="datafree/resnet", args=args), num_classes=10)
    settle(teacher, [32, 32])
    assert spec.weights is not None
    save_weights(teacher, spec.weights)
    content = {
        "task": {"kind": "classification", "num_classes": 10, "image_size": [32, 32]},
        "teacher": {
            "network": "datafree/resnet",
            "args": args,
            "weights": str(spec.weights),
            "licence": "CC-BY-NC-4.0",
        },
        "student": {"network": "datafree/resnet", "args": args},
        "source": {"method": "noise"},
        "training": {"steps": 2, "batch_size": 4},
    }
    run = run_recipe(load(tmp_path, content), tmp_path / "run").run
    done = export_run(run, tmp_path / "shipped")
    assert done.folder == tmp_path / "shipped"
    config = json.loads((done.folder / "config.json").read_text())
    assert config["teacher"]["licence"] == "CC-BY-NC-4.0"
    assert len(config["teacher"]["sha256"]) == 64
    card = (done.folder / "README.md").read_text()
    assert "CC-BY-NC-4.0" in card
    assert "2 steps on 4 images each, 8 images shown" in card
    assert str(tmp_path) not in card + json.dumps(config)
    images = torch.rand(2, 3, 32, 32)
    student = answers(load_student(run).network, images)
    torch.testing.assert_close(OnnxNetwork(done.folder / "student.onnx")(images), student, rtol=1e-4, atol=1e-5)


def test_hash_of_a_teacher_is_that_of_its_file_or_of_its_tensors(tmp_path: Path) -> None:
    file = write_teacher(tmp_path, width=2)
    spec = NetworkSpec(network="datafree/unet", args={"width": 2}, weights=file)
    network = build_network(spec, num_classes=3)
    listed = subprocess.run(["sha256sum", str(file)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert describe_teacher(spec, network)["sha256"] == listed
    loose = describe_teacher(NetworkSpec(network="datafree/unet"), Normalized(network))
    assert loose["sha256_of"] == "tensors"
    with torch.no_grad():
        next(network.parameters()).add_(1e-3)
    assert loose["sha256"] != describe_teacher(NetworkSpec(network="datafree/unet"), network)["sha256"]


def test_tied_and_channels_last_tensors_are_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tied_nets.py").write_text(
        "import torch\n"
        "class Tied(torch.nn.Module):\n"
        "    def __init__(self, classes=3):\n"
        "        super().__init__()\n"
        "        self.one = torch.nn.Conv2d(3, 3, 3, padding=1)\n"
        "        self.two = torch.nn.Conv2d(3, 3, 3, padding=1)\n"
        "        self.two.weight = self.one.weight\n"
        "        self.to(memory_format=torch.channels_last)\n"
        "    def forward(self, images):\n"
        "        return self.two(self.one(images))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = write_run(tmp_path / "run", {"network": "tied_nets:Tied"})
    with pytest.raises(NetworkError, match="--student tied_nets:Tied"):
        export_run(run, onnx=False)
    done = export_run(run, onnx=False, student="tied_nets:Tied")
    tensors = load_file(done.folder / "student.safetensors")
    assert torch.equal(tensors["one.weight"], tensors["two.weight"])
    assert "import tied_nets" in (done.folder / "README.md").read_text()


@pytest.mark.parametrize("count", [2, 3, 4, 5, 12, 256])
def test_images_in_the_order_of_their_folders_calibrate_and_are_compared_on_for_every_class(count: int) -> None:
    found = torch.arange(count).view(-1, 1, 1, 1)
    learnt, fresh = apart(found)
    assert sorted([*learnt.flatten().tolist(), *fresh.flatten().tolist()]) == list(range(count))
    assert len(learnt) and len(fresh) == max(1, count // 4)
    if count > 11:
        quarters = [{int(value) * 3 // count for value in part} for part in (learnt, fresh)]  # three classes
        assert quarters == [{0, 1, 2}] * 2


def test_every_verb_that_builds_a_student_takes_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal names the verbs; `evaluate`, `export` and `bench` are tested with their own options."""
    (tmp_path / "df_own_nets.py").write_text(
        "from torch import nn\ndef make(classes=3):\n    return nn.Sequential(nn.Conv2d(3, classes, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = write_run(tmp_path / "run", {"network": "df_own_nets:make"})
    for wishes in (Wishes(), Wishes(task="segmentation")):
        with pytest.raises(DatafreeError, match=r"--student df_own_nets:make \(to evaluate|--task: .* is a run"):
            calibration_subject(str(run), wishes)
    wanted = calibration_subject(str(run), Wishes(student="df_own_nets:make"))
    assert wanted.network is not None and wanted.spec.network == "df_own_nets:make"
    with pytest.raises(RecipeError, match="'timm/resnet18' is no run: leave it out"):
        calibration_subject("timm/resnet18", Wishes(student="df_own_nets:make"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="--student df_own_nets:make"):
        push_run(run, "me/it")
    with pytest.raises(DatafreeError, match=r"nothing was uploaded .* student\.safetensors"):
        push_run(run, "me/it", student="df_own_nets:make")


def test_earlier_export_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", UNET)
    done = export_run(run, onnx=False)
    (done.folder / "student.onnx").write_text("of an older export")
    assert "student.onnx" not in export_run(run, onnx=False).sizes
    assert not (done.folder / "student.onnx").exists()
    (done.folder / "mine.txt").write_text("keep me")
    with pytest.raises(RunError, match=r"mine\.txt"):
        export_run(run, onnx=False)
    assert (done.folder / "mine.txt").read_text() == "keep me"
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    for out in (link, run / "student.json"):
        with pytest.raises(RunError, match="--out"):
            export_run(run, out, onnx=False)


def always(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **keywords: Any) -> Any:
        raise error

    return fail


@needs_onnx
@pytest.mark.parametrize(
    "where", some(["quantize", "model_card", "check_onnx", "write_onnx"], "quantize", "write_onnx")
)
def test_failed_export_leaves_nothing(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", UNET)
    before = sorted(run.iterdir())
    place = onnx_format if where in ("quantize", "write_onnx") else module
    monkeypatch.setattr(place, where, always(NetworkError("no")))
    with pytest.raises(NetworkError, match="no"):
        export_run(run, int8=True)
    assert sorted(run.iterdir()) == before


@needs_onnx
def test_graph_that_answers_otherwise_is_refused(tmp_path: Path, segmenter: tuple[Path, Exported]) -> None:
    run, done = segmenter
    student = load_student(run).network
    with torch.no_grad():
        next(student.parameters()).mul_(1.1)
    with pytest.raises(NetworkError, match="does not answer as the network"):
        check_onnx(student, done.folder / "student.onnx", (32, 48))


def test_missing_packages_are_named_with_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", UNET)
    monkeypatch.setattr("datafree.config.extras.find_spec", lambda name: None)
    calls: list[Callable[[], object]] = [
        lambda: load_onnx(tmp_path / "student.onnx"),
        lambda: export_run(run, int8=True),  # asked for
        lambda: export_run(run, opset=18),
    ]
    for call in calls:
        with pytest.raises(DatafreeError, match=r"pip install 'datafree\[onnx\]'"):
            call()
    assert not (run / "export").exists()


def test_without_onnx_an_export_is_all_but_its_file_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", UNET)
    monkeypatch.setattr("datafree.config.extras.find_spec", lambda name: None)
    done = export_run(run)
    assert set(done.sizes) == {"student.safetensors", "config.json", "README.md"}
    assert done.notes[0].startswith("student.onnx was not written: ")
    assert "pip install 'datafree[onnx]'" in done.notes[0] and "--no-onnx" in done.notes[0]
    assert not any("student.onnx" in note for note in export_run(run, onnx=False).notes)


def test_int8_needs_onnx_and_images(tmp_path: Path, photos: Callable[..., Path]) -> None:
    run = write_run(tmp_path / "run", UNET)
    with pytest.raises(NetworkError, match="leave out --no-onnx"):
        export_run(run, onnx=False, int8=True)
    (run / CALIBRATION).unlink()
    with pytest.raises(DataError, match="--images"):
        export_run(run, int8=True)
    with pytest.raises(DataError, match="one image is too few"):
        export_run(run, int8=True, images=photos(count=1))
    save_file({"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, run / CALIBRATION)
    with pytest.raises(DataError, match="of the task's size"):
        export_run(run, int8=True)


def torchvision_detector() -> tuple[dict[str, Any], dict[str, Any]]:
    network = {"network": "torchvision/ssdlite320_mobilenet_v3_large", "args": {"width_mult": 0.25}, **LOOK}
    return network, {"kind": "detection", "num_classes": 3, "image_size": [96, 128]}


@pytest.mark.slow
def test_torchvisions_detector_loads_where_datafree_cannot_be_imported(tmp_path: Path) -> None:
    network, task = torchvision_detector()
    run = write_run(tmp_path / "run", network, task)
    done = export_run(run, onnx=False)
    images = torch.rand(1, 3, 96, 128)
    code = run_card(done.folder, images).replace('{"logits": logits}', "found[0]")
    subprocess.run([sys.executable, "-c", BLOCKER + code], check=True)
    found = load_file(tmp_path / "run" / "logits.safetensors")
    wanted = detect(
        answers(load_student(run).network, images), score_threshold=0.0, nms_iou=0.5, max_detections=1, size=(96, 128)
    )[0]
    assert int(found["labels"][0]) == int(wanted.labels[0]) + 1
    torch.testing.assert_close(found["boxes"][0], wanted.boxes[0], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found["scores"][0], wanted.scores[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("name", ["datafree/yolov3", "torchvision"])
def test_detectors_export_to_onnx_and_int8(tmp_path: Path, name: str) -> None:
    network, task = torchvision_detector()
    if name == "datafree/yolov3":
        network = {"network": name, "args": {"width": 0.25}, **LOOK}
    done = export_run(write_run(tmp_path / "run", network, task), int8=True)
    assert max(done.errors.values()) < 1e-4
    floats, integers = (weights_in(done.folder / f"student{kind}.onnx") for kind in ("", ".int8"))
    left = [name for name in integers if name.endswith(".weight")]  # in float
    assert sum(integers.values()) == sum(floats.values())  # every weight is there, 8 bits or float
    assert left and all(".head." in name for name in left)  # the ends
    if name == "datafree/yolov3":  # an SSDLite's ends are an eighth of so narrow a network
        assert done.sizes["student.onnx"] > 2.5 * done.sizes["student.int8.onnx"]


def weights_in(file: Path) -> dict[str, int]:
    """Name -> number of values of each weight of an ONNX file."""
    import onnx

    return {item.name: math.prod(item.dims) for item in onnx.load(str(file)).graph.initializer if len(item.dims) > 1}
