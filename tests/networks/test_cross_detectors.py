"""Another architecture learns a detector without data, by the command: RetinaNet teaches SSDLite, anchors others."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_torchvision_detectors import model, ssd

from datafree.cli import main
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.darknet.yolov3 import yolov3
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import bare


def small_retinanet() -> torch.nn.Module:
    return model("retinanet").eval()  # the very weights that the file has


def small_ssdlite() -> torch.nn.Module:
    torch.manual_seed(5)
    return ssd(lite=True)


RECIPE = """\
task:
  kind: detection
  num_classes: {classes}
  image_size: [{size}, {size}]
  min_teacher_score: 0.02
  score_threshold: 0.02
teacher: {{network: "{teacher}", weights: teacher.safetensors}}
student: {{network: "{student}"}}
source:
  method: diode
  stages: [{{iterations: {iterations}, lr: 0.05, jitter: 4, detection_weight: 0.1}}]
  batch_size: 4
  warmup: {warmup}
training: {{steps: {steps}, batch_size: 8, lr: 0.02, log_every: 4, device: cpu, attention_weight: {match}}}
"""


def distilled(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, float]]:
    """`datafree distill cross.yaml`; what it logged."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["datafree", "distill", "cross.yaml", "--out", "run", "--quiet"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert not left.value.code
    assert "not verified on real data" in capfd.readouterr().out
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


@pytest.mark.thorough
def test_a_small_retinanet_teaches_a_small_ssdlite(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(model("retinanet"), tmp_path / "teacher.safetensors")
    networks = {"teacher": f"{__name__}:small_retinanet", "student": f"{__name__}:small_ssdlite"}
    text = RECIPE.format(classes=3, size=64, iterations=4, warmup=3, steps=24, match=10, **networks)
    (tmp_path / "cross.yaml").write_text(text)
    losses = [line["loss"] for line in distilled(tmp_path, capfd, monkeypatch) if line["step"] > 0 and "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    learnt, fresh = load_file("run/student.safetensors"), small_ssdlite().state_dict()
    assert learnt.keys() == fresh.keys() and not all(torch.equal(learnt[name], fresh[name]) for name in learnt)


OTHER_ANCHORS = """\
task: {{kind: detection, num_classes: 3, image_size: [64, 64], distill: {distill}, min_teacher_score: 0.01}}
teacher:
  network: datafree/yolov3
  args: {{width: 0.1, anchors: [[10, 20], [14, 36], [24, 30], [30, 30], [36, 36], [40, 24]]}}
  weights: teacher.safetensors
student: {{network: datafree/yolov3, args: {{width: 0.1}}}}
source: {{method: noise}}
training: {{steps: 2, batch_size: 4, log_every: 1, device: cpu}}
"""


@pytest.mark.thorough
def test_a_student_of_other_anchors_learns_boxes_and_never_raw_heads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(bare(yolov3(3, width=0.1)), tmp_path / "teacher.safetensors")
    logged = {}
    for distill in ("auto", "boxes"):
        (tmp_path / "cross.yaml").write_text(OTHER_ANCHORS.format(distill=distill))
        logged[distill] = [line["loss"] for line in distilled(tmp_path, capfd, monkeypatch) if "loss" in line]
        (tmp_path / "run").rename(tmp_path / distill)
    assert logged["auto"] == logged["boxes"] and len(logged["auto"]) == 2
    (tmp_path / "cross.yaml").write_text(OTHER_ANCHORS.format(distill="heads"))
    monkeypatch.setattr(sys, "argv", ["datafree", "distill", "cross.yaml", "--out", "run", "--quiet"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "task.distill=heads" in line]
    assert "differ in anchors, (30.0, 30.0) of the teacher's and (81.0, 82.0) of the student's" in line
    assert "use task.distill=boxes" in line and "Traceback" not in line


@pytest.mark.slow
def test_torchvisions_retinanet_teaches_its_ssdlite(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = {"teacher": "torchvision/retinanet_resnet50_fpn", "student": "torchvision/ssdlite320_mobilenet_v3_large"}
    torch.manual_seed(0)
    save_weights(
        bare(build_network(NetworkSpec(network=networks["teacher"]), num_classes=3)), tmp_path / "teacher.safetensors"
    )
    text = RECIPE.format(classes=3, size=160, iterations=2, warmup=2, steps=2, match=0, **networks)
    (tmp_path / "cross.yaml").write_text(text)
    assert distilled(tmp_path, capfd, monkeypatch)
    assert load_file("run/student.safetensors")
