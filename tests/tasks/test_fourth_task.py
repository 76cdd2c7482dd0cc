"""A task that nobody here knows, in a module of the user's: run, page, files to ship and inspection take it as it is.

The task is classification of several labels at once: an image shows any of C classes, each by a sigmoid of its own.
"""

import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datafree.deploy.export_run import export_run
from datafree.evaluation.finished_run import load_student
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.onnx import OnnxNetwork
from datafree.networks.resnet import resnet
from datafree.preflight.inspection import inspect_teacher
from datafree.recipe.recipe import load_recipe
from datafree.report.page import write_report
from datafree.run import run_recipe
from datafree.synthesis.synthesize import synthesize
from datafree.tasks import TASKS
from recipes import write

C, SIZE = 3, (16, 16)
RESNET = {"network": "datafree/resnet", "args": {"depth": 8, "width": 4}}

CODE = '''
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F

from datafree.data.images import read_image, to_image, to_tensor
from datafree.data.labelled import save_image
from datafree.tasks.base import Scores, Task, check_logits


@final
@dataclass(kw_only=True)
class MultiLabel(Task):
    """Any of C classes in an image: logits (B, C), targets (B, C) of 0 and 1."""

    weight: float = 1.0  # of the loss

    def check(self, outputs, what):
        return check_logits(outputs, what, dims=2, wanted=f"(B, {self.num_classes})", num_classes=self.num_classes)

    def sample_targets(self, n, device, generator=None):
        return torch.randint(2, (n, self.num_classes), generator=generator).to(device)

    def move_targets(self, targets, move):
        return targets

    def class_maps(self, targets):
        return targets.float()[:, :, None, None]

    def distill_loss(self, student, teacher):
        return self.weight * F.binary_cross_entropy_with_logits(student.float(), teacher.float().sigmoid())

    def target_loss(self, outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs.float(), targets.float())

    def pseudo_targets(self, outputs):
        return (outputs > 0).long()

    def class_probs(self, outputs):
        scores = outputs.float().sigmoid() + 1e-6
        return scores / scores.sum(1, keepdim=True)

    def disagreement(self, student, teacher):
        return (student - teacher).abs().mean()

    def agreement(self, student, teacher):
        return float(((student > 0) == (teacher > 0)).float().mean())

    def new_metric(self, class_names=None):
        return Exact()

    def open_dataset(self, path):
        return Tagged(path)

    def write_example(self, folder, name, image, target, class_names):
        save_image(to_image(image), folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(" ".join(map(str, target.tolist())))

    def draw_outputs(self, images, outputs):
        return images * outputs.sigmoid().amax(1)[:, None, None, None]


@dataclass(kw_only=True)
class Exact:
    """Exact match: images of which every label is right."""

    right: list = field(default_factory=list)

    def update(self, outputs, targets):
        self.right += ((outputs > 0) == (targets > 0)).all(1).tolist()

    def compute(self):
        return Scores(values={"exact_match": sum(self.right) / len(self.right)})


class Tagged:
    """NAME.png and NAME.txt beside it."""

    skipped = []

    def __init__(self, path):
        self.files, self.class_names = sorted(path.rglob("*.png")), ["red", "round", "large"]

    def __len__(self):
        return len(self.files)

    def batches(self, batch_size):
        for file in self.files:
            target = torch.tensor([[int(word) for word in file.with_suffix(".txt").read_text().split()]])
            yield to_tensor(read_image(file))[None], target
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the user's module in it, a trained teacher, some tagged images and a recipe."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "mypkg").mkdir()
    (folder / "mypkg" / "__init__.py").touch()
    (folder / "mypkg" / "mytask.py").write_text(CODE)
    torch.manual_seed(0)
    network = resnet(C, depth=8, width=4)
    for _ in range(3):  # BatchNorm that has seen something
        network(torch.rand(8, 3, *SIZE))
    save_weights(network, folder / "teacher.safetensors")
    (folder / "tagged").mkdir()
    for index in range(4):
        Image.new("RGB", SIZE, (60 * index, 9, 200)).save(folder / "tagged" / f"{index}.png")
        (folder / "tagged" / f"{index}.txt").write_text(f"{index % 2} 1 0")
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in ("mypkg.mytask", "mypkg"):
        sys.modules.pop(name, None)


def recipe_of(home: Path, name: str, **sections: Any) -> str:
    content = {
        "task": {"kind": "mypkg.mytask:MultiLabel", "num_classes": C, "image_size": list(SIZE)},
        "teacher": {**RESNET, "weights": str(home / "teacher.safetensors")},
        "student": RESNET,
        "source": {"method": "inversion", "batch_size": 4, "iterations": 2, "warmup": 1},
        "training": {"steps": 4, "batch_size": 4, "log_every": 2, "picture_every": 2, "save_every": 2},
        "data": str(home / "tagged"),
        **sections,
    }
    return write(home, content, f"{name}.yaml")


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    return run_recipe(load_recipe(recipe_of(home, "several")), home / "run").run


def test_a_run_of_the_users_own_task_learns_from_its_loss_and_is_scored_by_its_metric(home: Path, run: Path) -> None:
    assert not [name for name in TASKS if "MultiLabel" in name or "mypkg" in name]
    assert (run / "recipe.yaml").read_text().count("mypkg.mytask:MultiLabel") == 1
    result = json.loads((run / "result.json").read_text())
    assert set(result["scores"]) == {"teacher", "student"}
    assert set(result["scores"]["student"]["values"]) == {"exact_match"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["step"] > 0 and "loss" in line]
    assert losses and all(0 < loss < 5 for loss in losses)  # a mean of binary cross-entropies
    torch.manual_seed(0)
    before = resnet(C, depth=8, width=4).state_dict()
    after = load_file(run / "student.safetensors")
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    assert sorted(file.name for file in (run / "samples").iterdir())


def test_its_page_is_written_without_importing_the_users_code(
    home: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mypkg.mytask", "mypkg"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(home)])
    page = write_report([run], home / "report.html").read_text()
    assert "exact match" in page and "data:image" in page
    assert "mypkg.mytask" not in sys.modules


def test_its_student_is_exported_with_a_card(home: Path, run: Path) -> None:
    own = "mypkg.mytask:MultiLabel"
    done = export_run(run, home / "weights", onnx=False, task=own, data=home / "tagged")
    assert set(done.scores["student.safetensors"].values) == {"exact_match"}
    card = (done.folder / "README.md").read_text()
    assert "A network of" in card and "pipeline_tag" not in card


@pytest.mark.thorough
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the packages of datafree[onnx] are not installed",
)
def test_its_student_is_exported_with_a_card_onnx_and_int8(home: Path, run: Path) -> None:
    own = "mypkg.mytask:MultiLabel"
    done = export_run(run, home / "export", int8=True, task=own, data=home / "tagged")
    assert {"student.onnx", "student.int8.onnx"} <= done.sizes.keys()
    assert set(done.scores["student.onnx"].values) == {"exact_match"}
    student = load_student(run, task=own)
    images = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = student.network.eval()(images)
    torch.testing.assert_close(OnnxNetwork(done.folder / "student.onnx")(images), wanted, atol=1e-4, rtol=1e-3)
    card = (done.folder / "README.md").read_text()
    assert "A network of" in card and "pipeline_tag" not in card and "(logits,) = session.run" in card


@pytest.mark.thorough
def test_it_is_inspected_by_the_recipe_that_names_it(home: Path) -> None:
    found = inspect_teacher(recipe_of(home, "look", training={"steps": 2, "batch_size": 2}))
    assert (found.task.value, found.task.provenance) == ("mypkg.mytask:MultiLabel", "stated")
    assert (found.problem, found.classes.value, found.output) == (None, C, f"one tensor (B, {C})")
    assert found.run is not None and found.run.steps == 2


def test_a_data_set_is_made_and_read_back_in_its_own_layout_without_a_picture_of_targets(home: Path) -> None:
    recipe = load_recipe(recipe_of(home, "set", source={"method": "inversion", "batch_size": 4, "iterations": 2}))
    made = synthesize(recipe, home / "made", 8)
    data = recipe.task.open_dataset(Path(made.path))
    assert made.images == len(data) == 8
    assert all(targets.shape == (1, C) for _, targets in data.batches(1))
    assert not (home / "made" / "shards" / "preview.png").exists()  # `draw_targets` has no default
    assert sorted(json.loads((home / "made" / "index.json").read_text())["files"]) == ["classes.txt"]


def test_the_loss_that_is_minimised_is_the_tasks(home: Path) -> None:
    section = {"kind": "mypkg.mytask:MultiLabel", "num_classes": C, "image_size": list(SIZE), "weight": 3.0}
    task = load_recipe(recipe_of(home, "loss", task=section)).task
    ours, theirs = torch.randn(5, C), torch.randn(5, C)
    p, q = theirs.sigmoid(), ours.sigmoid()
    by_hand = -3 * (p * q.log() + (1 - p) * (1 - q).log()).mean()
    torch.testing.assert_close(task.distill_loss(ours, theirs), by_hand)
