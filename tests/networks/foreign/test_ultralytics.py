"""networks/foreign/ultralytics_*.py: where the package is installed, its files are built as they say."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("YOLO_OFFLINE", "true")
tasks = pytest.importorskip("ultralytics.nn.tasks", exc_type=ImportError)

from datafree.cli.main import main  # noqa: E402
from datafree.config import yaml  # noqa: E402
from datafree.errors import NetworkError, WeightsError  # noqa: E402
from datafree.networks.checkpoints.whole_modules import read_module  # noqa: E402
from datafree.networks.foreign.ultralytics_model import open_ultralytics  # noqa: E402
from datafree.networks.load import NetworkSpec, build_network  # noqa: E402
from datafree.networks.normalized import bare  # noqa: E402
from datafree.networks.preprocessing import known  # noqa: E402
from datafree.ops.predictions import Predictions  # noqa: E402
from datafree.preflight.inspection import inspect_teacher  # noqa: E402
from datafree.run import run_recipe  # noqa: E402
from recipes import load  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the package's own
SIDE = 64
IMAGES = torch.rand(2, 3, SIDE, 96, generator=torch.Generator().manual_seed(0))


def saved(name: str, file: Path, change: Callable[[Any], None] = lambda network: None, kind: str = "Detection") -> Any:
    """A model as `yolo train` writes it: a pickled module in half precision; answered, and as it was in float32."""
    torch.manual_seed(0)
    network = getattr(tasks, f"{kind}Model")(f"{name}.yaml", nc=3, verbose=False)
    with torch.no_grad():
        for _ in range(2):
            network.train()(torch.rand(2, 3, SIDE, SIDE))
    network.eval().half()
    network.names = {0: "cat", 1: "dog", 2: "cow"}
    change(network)
    torch.save({"model": network, "ema": None, "train_args": {"imgsz": SIDE}}, file)
    return network.float()


@pytest.mark.parametrize("name", ["yolov8n", "yolov5n", "yolo11n", "yolov10n", "yolo26n"])
def test_a_file_answers_as_its_own_package_does(name: str, tmp_path: Path) -> None:
    network = saved(name, tmp_path / "best.pt")
    network.model[-1].end2end = False
    with torch.no_grad():
        rows = network(IMAGES)[0].transpose(1, 2)  # (B, L, 4 + C): centre, sides, scores
        answer = build_network(NetworkSpec(network=str(tmp_path / "best.pt")), num_classes=3).eval()(IMAGES)
    assert isinstance(answer, Predictions)
    half = rows[..., 2:4] / 2
    torch.testing.assert_close(
        answer.boxes, torch.cat([rows[..., :2] - half, rows[..., :2] + half], -1), rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(answer.scores, rows[..., 4:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_a_classifier_answers_its_logits(eps: float, tmp_path: Path) -> None:
    """Whatever its BatchNorm adds to the variance, which the table of its layers does not say."""

    def change(network: Any) -> None:
        for norm in network.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.eps = eps

    network = saved("yolov8n-cls", tmp_path / "best.pt", change, kind="Classification")
    with torch.no_grad():
        probabilities, _ = network(IMAGES)
        logits = build_network(NetworkSpec(network=str(tmp_path / "best.pt")), num_classes=3).eval()(IMAGES)
    torch.testing.assert_close(logits.softmax(1), probabilities, rtol=1e-4, atol=1e-6)


def test_its_loss_is_the_packages_own_and_reaches_the_heads(tmp_path: Path) -> None:
    saved("yolov8n", tmp_path / "best.pt")
    detector = build_network(NetworkSpec(network=str(tmp_path / "best.pt")), num_classes=3).train()
    answer = detector(IMAGES)
    there = (torch.tensor([1]), torch.tensor([[8.0, 8, 40, 48]]))
    none = (torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    loss = answer.loss(answer.heads, [there, none])
    loss.backward()
    assert all(parameter.grad is not None for parameter in bare(detector).model[0].parameters())
    found = answer.boxes[0, answer.scores[0].amax(1).argmax()].detach()
    near = answer.loss(answer.heads, [(torch.tensor([1]), found[None]), none])
    assert torch.isfinite(near)
    assert answer.loss(answer.heads, [none, none]) < loss


def test_inspect_says_what_it_is(tmp_path: Path) -> None:
    saved("yolov8n", tmp_path / "best.pt")
    found = inspect_teacher(str(tmp_path / "best.pt"), size="64x64")
    assert (found.task.value, found.classes.value, found.trained) == ("detection", 3, True)
    assert found.batchnorm.live > 50
    assert found.sources["diode"].applies


def test_a_file_teaches_a_smaller_one_of_its_kind(tmp_path: Path) -> None:
    saved("yolov8s", tmp_path / "best.pt")
    content = {
        "task": {"kind": "detection", "num_classes": 3, "image_size": [SIDE, SIDE]},
        "teacher": {"network": str(tmp_path / "best.pt")},
        "student": {"network": "ultralytics/yolov8n"},
        "source": {"method": "noise"},
        "training": {"steps": 2, "batch_size": 2},
    }
    assert (run_recipe(load(tmp_path, content), tmp_path / "run").run / "student.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_line_makes_a_smaller_scale_of_a_file_its_page_and_its_onnx_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    saved("yolov8s", tmp_path / "best.pt")
    short = (
        "--source",
        "noise",
        "training.time=null",
        "training.steps=2",
        "training.batch_size=2",
        "student.init=random",
    )
    monkeypatch.setattr(sys, "argv", ["datafree", "distill", "best.pt", "--size", "64", "--device", "cpu", *short])
    with contextlib.suppress(SystemExit):
        main()
    said = capfd.readouterr().err
    assert (tmp_path / "runs/best/student.safetensors").is_file(), said
    assert (tmp_path / "runs/best/report.html").is_file()
    assert "images of 64 x 64 pixels (--size), mean 0, 0, 0 and std 1, 1, 1 (Ultralytics' own preprocessing)" in said
    recipe = yaml.parse((tmp_path / "runs/best/recipe.yaml").read_text(), "recipe")
    assert recipe["student"]["network"] == "ultralytics/yolov8n"
    assert "times fewer (of the teacher's family); it starts from the teacher's weights" in said
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(sys, "argv", ["datafree", "export", "runs/best"])
    with contextlib.suppress(SystemExit):
        main()
    file = tmp_path / "runs/best/export/student.onnx"
    assert file.is_file(), capfd.readouterr().err
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    answers = session.run(None, {session.get_inputs()[0].name: IMAGES[:, :, :SIDE, :SIDE].numpy()})
    assert {answer.shape[1] for answer in answers} == {84}  # locations of 64 x 64 pixels: 8 x 8 + 4 x 4 + 2 x 2


def test_the_size_of_its_training_is_known(tmp_path: Path) -> None:
    saved("yolov8n", tmp_path / "best.pt", lambda network: setattr(network, "args", {"imgsz": 96}))
    found = known(NetworkSpec(network=str(tmp_path / "best.pt")))
    assert found is not None
    assert (found.input_size, found.mean, found.std) == ((96, 96), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


# --- descriptions that are not trusted ---


def layers(network: Any, edit: Callable[[list[Any]], None]) -> None:
    edit(network.yaml["backbone"])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda rows: rows[0].__setitem__(2, "load_checkpoint"), "none of ultralytics'"),
        (lambda rows: rows[0].__setitem__(2, "TorchVision"), "none of ultralytics'"),
        (lambda rows: rows[0].__setitem__(2, "nn.functional"), "none of ultralytics'"),
        (lambda rows: rows[0].__setitem__(2, "nn.Module.__init__"), "none of ultralytics'"),
        (lambda rows: rows[0].__setitem__(1, 10**6), "times over"),
        (lambda rows: rows[0].__setitem__(3, [10**6, 3, 2]), "no plain argument"),
        (lambda rows: rows[0].__setitem__(3, ["__import__('os').system('touch canary')"]), "no plain argument"),
        (lambda rows: rows.extend([rows[0]] * 1000), "layers; 300 are built"),
        (lambda rows: rows.__setitem__(0, "Conv"), "describes a layer by"),
    ],
)
def test_a_description_that_is_no_table_of_layers_is_one_line(
    edit: Callable[[list[Any]], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved("yolov8n", tmp_path / "best.pt", lambda network: layers(network, edit))
    with pytest.raises(WeightsError, match=said) as caught:
        build_network(NetworkSpec(network=str(tmp_path / "best.pt")), num_classes=3)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_an_expression_for_the_activation_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "best.pt"
    saved("yolov8n", file, lambda network: network.yaml.update(activation="__import__('os').system('touch canary')"))
    build_network(NetworkSpec(network=str(file)), num_classes=3)
    assert not (tmp_path / "canary").exists()


def test_tensors_that_do_not_fit_the_description_are_refused(tmp_path: Path) -> None:
    saved(
        "yolov8n",
        tmp_path / "best.pt",
        lambda network: layers(network, lambda rows: rows[0].__setitem__(3, [32, 3, 2])),
    )
    module = read_module(tmp_path / "best.pt")
    assert module is not None
    with pytest.raises(WeightsError, match="as described"):
        open_ultralytics(tmp_path / "best.pt", module)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("ultralytics/yolov8", "such are"),
        ("ultralytics/../x", "such are"),
        ("ultralytics/yolov8n?a=1", "no arguments"),
    ],
)
def test_names_that_are_none_are_one_line(network: str, said: str) -> None:
    with pytest.raises(NetworkError, match=said) as caught:
        build_network(NetworkSpec(network=network), num_classes=3)
    assert "\n" not in str(caught.value)
