"""Networks of files beside networks on a device that is not the CPU: files answer on the host, whatever the device."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import datafree
from datafree.deploy.calibration.int8 import agreements
from datafree.networks.darknet.yolov3 import yolov3
from datafree.networks.foreign import onnx_gradients
from datafree.networks.normalized import Normalized
from datafree.networks.onnx import write_onnx
from datafree.networks.resnet import resnet
from datafree.preflight.draft import draft
from datafree.preflight.plan import plan
from datafree.preflight.wishes import Wishes
from datafree.tasks.detection import Detection
from pretended_device import pretended
from recipes import load

TASK: dict[str, Any] = {"kind": "classification", "num_classes": 4, "image_size": (32, 32)}


def network(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    made = resnet(4, depth=8, width=width)
    made(torch.rand(16, 3, 32, 32))
    return made.eval()


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ONNX file that only answers: without the package through which it would have gradients."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_gradients, "find_spec", lambda name: None)
    write_onnx(Normalized(network()), tmp_path / "t.onnx", TASK["image_size"], {})
    return tmp_path / "t.onnx"


def labelled(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in "abcd":
        (folder / name).mkdir(parents=True)
        for index in range(4):
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_a_detector_on_the_device_is_compared_with_a_file_as_one_on_the_cpu_is() -> None:
    torch.manual_seed(0)
    task = Detection(num_classes=3, image_size=(32, 32), score_threshold=0.0)
    detector = Normalized(yolov3(3, width=1 / 32)).eval()
    file = copy.deepcopy(detector)  # answers on the host about images of the host
    images = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    wanted = agreements(detector, {"int8": file}, task, images)
    assert wanted["int8"] is not None
    with pretended() as device:
        assert agreements(detector.to(device), {"int8": file}, task, images) == wanted


@pytest.mark.timeout(600)
def test_a_file_is_calibrated_and_scored_on_labelled_images(teacher: Path, tmp_path: Path) -> None:
    data = labelled(tmp_path / "data")
    with pretended() as device:
        done = datafree.calibrate(
            {"network": str(teacher), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
            tmp_path / "out",
            images=8,
            task=TASK,
            source="noise",
            data=data,
            device=str(device),
        )
    assert done.int8 is not None
    assert done.agreement["real"]["made"] is not None


def test_a_recipe_is_drafted_and_a_run_is_planned_for_a_file_that_only_answers(teacher: Path, tmp_path: Path) -> None:
    with pretended() as device:
        made = draft(str(teacher), Wishes(time="1m", device=str(device), mean="0", std="1"))
        assert any(line.startswith("student: ") for line in made.lines)
        content = {
            "task": {**TASK, "image_size": [32, 32]},
            "teacher": {"network": str(teacher)},
            "student": {"network": "datafree/resnet", "args": {"depth": 8, "width": 2}},
            "source": {"method": "noise"},
            "training": {"steps": 5, "batch_size": 4, "precision": "fp32", "device": str(device)},
        }
        assert plan(load(tmp_path, content)).device.startswith(device.type)


@pytest.mark.parametrize("given", ["on the host", "on the device", "by name"])
def test_the_network_of_a_result_is_whole_where_its_student_is(given: str, tmp_path: Path) -> None:
    """Of a student that was an object where that was, else on the host."""
    with pretended() as device:
        place = device if given == "on the device" else torch.device("cpu")
        named = {"network": "datafree/resnet", "args": {"depth": 8, "width": 2}}
        result = datafree.distill(
            teacher={"network": network(), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)},
            student=named if given == "by name" else network(2).to(place),
            task=TASK,
            source="noise",
            training={"steps": 2, "batch_size": 4, "precision": "fp32", "device": str(device), "track": []},
            out=tmp_path / "run",
        )
        held = [*result.network.parameters(), *result.network.buffers()]
        assert {value.device for value in held} == {place}
        images = torch.rand(2, 3, 32, 32).to(place)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(place) for values in ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)))
        with torch.no_grad():
            assert torch.equal(result.network(images), result.student((images - mean) / std))
