"""`evaluate` on a run directory: what it needs, and what it will not do for one that is not trusted."""

import json
from pathlib import Path

import pytest
import torch

from datafree.errors import DatafreeError, NetworkError, RunError, WeightsError
from datafree.job import run_recipe
from datafree.networks.normalized import Normalized
from datafree.networks.small import unet
from datafree.scoring import evaluate, evaluate_run
from datafree.tasks.segmentation import Segmentation
from recipes import load, write_teacher
from small_runs import SMALL, labelled


@pytest.fixture
def run(tmp_path: Path) -> Path:
    content = {
        "task": {"kind": "segmentation", "num_classes": 3, "image_size": [32, 32]},
        "teacher": {"network": "datafree/unet", "args": SMALL, "weights": str(write_teacher(tmp_path, **SMALL))},
        "student": {"network": "datafree/unet", "args": SMALL},
        "source": {"method": "noise"},
        "training": {"steps": 2, "batch_size": 2},
    }
    return run_recipe(load(tmp_path, content), tmp_path / "run").run


def test_perfect_and_opposite_networks_score_one_and_zero(tmp_path: Path) -> None:
    class Reader(torch.nn.Module):
        """Reads the class off the red channel, as `labelled` wrote it."""

        def __init__(self, shift: int) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            ids = (images[:, 0] * 255).round().long() % 3
            return 5 * torch.nn.functional.one_hot((ids + self.shift) % 3, 3).movedim(-1, 1).float()

    task = Segmentation(num_classes=3, image_size=(32, 32))
    data = task.open_labelled(labelled(tmp_path / "data"))
    for shift, expected in ((0, 1.0), (1, 0.0)):
        scores = evaluate(Normalized(Reader(shift)), task, data, device=torch.device("cpu"))
        assert scores.values == {"miou": expected, "pixel_accuracy": expected}


def test_evaluation_leaves_the_network_in_its_mode(tmp_path: Path) -> None:
    network = Normalized(unet(3, width=2, depth=2)).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    task = Segmentation(num_classes=3, image_size=(32, 32))
    evaluate(network, task, task.open_labelled(labelled(tmp_path / "data")), device=torch.device("cpu"))
    assert all(m.training for m in network.modules())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_run_directory_may_not_name_code_to_import(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "canary_module.py").write_text("open('canary', 'w').close()\ndef make():\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    described = json.loads((run / "student.json").read_text())
    described["network"]["network"] = "canary_module:make"
    (run / "student.json").write_text(json.dumps(described))
    with pytest.raises(NetworkError, match="--student"):
        evaluate_run(run, labelled(tmp_path / "data"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("student.json", b"{", RunError),
        ("student.json", b"[]", RunError),
        ("student.json", b'{"network": {}, "task": {}}', RunError),
        ("student.json", b'{"network": {"network": "datafree/unet"}, "task": {"kind": "os:system"}}', RunError),
        ("student.safetensors", b"\xff" * 40, WeightsError),
    ],
)
def test_damaged_run_is_one_line(
    file: str, content: bytes, error: type[DatafreeError], run: Path, tmp_path: Path
) -> None:
    (run / file).write_bytes(content)
    with pytest.raises(error) as caught:
        evaluate_run(run, labelled(tmp_path / "data"))
    assert "\n" not in str(caught.value)


def test_run_directory_has_nothing_downloaded(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = json.loads((run / "student.json").read_text())
    described["network"] |= {"network": "smp/unet", "args": {"encoder": "mobilenet_v2", "encoder_weights": "imagenet"}}
    (run / "student.json").write_text(json.dumps(described))
    asked: list[object] = []
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *a, **k: asked.append(a))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: asked.append(a))
    with pytest.raises(WeightsError, match="do not fit"):  # it was built, without the library's weights
        evaluate_run(run, labelled(tmp_path / "data"))
    assert asked == []


@pytest.mark.parametrize("in_name", [True, False])
def test_run_directory_has_no_file_read(in_name: bool, run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("[net]\na secret\n")
    described = json.loads((run / "student.json").read_text())
    described["network"] |= {"network": "datafree/yolov3", "args": {"cfg": str(secret)}}
    if in_name:
        described["network"] |= {"network": f"datafree/yolov3?cfg={secret}", "args": {}}
    (run / "student.json").write_text(json.dumps(described))
    data = labelled(tmp_path / "data")
    for student in (None, "datafree/yolov3"):  # a library's name again is no word on the file
        with pytest.raises(NetworkError, match=r"never done.*--student 'datafree/yolov3\?cfg=FILE'") as caught:
            evaluate_run(run, data, student=student)
        assert "line 2" not in str(caught.value)
    with pytest.raises(NetworkError, match="line 2"):  # the user's own word: it is read
        evaluate_run(run, data, student=f"datafree/yolov3?cfg={secret}")


def test_very_long_description_of_a_student_is_not_read(run: Path, tmp_path: Path) -> None:
    with (run / "student.json").open("r+b") as file:
        file.truncate(200_000_000)  # takes no space, but would take memory
    with pytest.raises(RunError, match=r"student\.json is larger than 10,000,000 bytes"):
        evaluate_run(run, tmp_path)


def test_run_of_an_own_task_asks_for_it(run: Path, tmp_path: Path) -> None:
    described = json.loads((run / "student.json").read_text())
    described["task"]["kind"] = "elsewhere:Mine"
    (run / "student.json").write_text(json.dumps(described))
    with pytest.raises(RunError, match="give yours with --task"):
        evaluate_run(run, labelled(tmp_path / "data"))
    own = "datafree.tasks.segmentation:Segmentation"
    assert evaluate_run(run, tmp_path / "data", task=own)["student"].values["miou"] >= 0


def test_unfinished_or_missing_run_says_what_to_do(run: Path, tmp_path: Path) -> None:
    (run / "student.json").unlink()
    with pytest.raises(RunError, match="run the same `datafree distill` again"):
        evaluate_run(run, tmp_path)
    with pytest.raises(RunError, match="is not a run directory"):
        evaluate_run(tmp_path / "nowhere", tmp_path)
