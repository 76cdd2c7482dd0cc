"""Values and networks that a recipe can name and no run can use: one line before any work, nothing written."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import datafree
from datafree.engine.rehearsal import as_it_was, rehearse
from datafree.errors import DatafreeError, NetworkError, RecipeError
from datafree.networks.resnet import resnet
from datafree.ops import modes
from datafree.preflight.inspection import inspect_teacher
from datafree.recipe.recipe import make_recipe
from datafree.recipe.training import Training
from datafree.tasks.classification import Classification
from small_runs import recipe_for

SIZE = [16, 16]
TASK = {"kind": "classification", "num_classes": 3, "image_size": SIZE}


class Net(nn.Module):
    """A small classifier, whose relatives below are each broken in one way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.last(self.norm(self.conv(images)).relu().mean((2, 3)))
        return answer


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(4, 3)


class OnMeta(Net):
    def __init__(self) -> None:
        with torch.device("meta"):
            super().__init__()


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class WithoutParameters(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class BuffersAlone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(3, 3))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) @ self.weight  # type: ignore[operator]


class OfVideos(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 3)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.conv(images).mean((2, 3, 4))
        return answer


class Detached(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


class WithoutGradients(Net):
    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(images)


class RaisesWhileItLearns(Net):
    def forward(self, images: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and self.conv.weight.requires_grad:
            raise ValueError("broken\nin two")
        return super().forward(images)


class Sparse(Net):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(3, 3, sparse=True)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.rows(torch.zeros(len(images), dtype=torch.long))


class NotSaved(Net):
    def get_extra_state(self) -> Any:
        return lambda: 1

    def set_extra_state(self, state: Any) -> None:
        pass


class Masked(Net):
    """With a buffer that no checkpoint may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


class Remembering(Net):
    """With a value beside its tensors that is saved with them."""

    def get_extra_state(self) -> Any:
        return {"classes": ["a", "b"]}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"classes": ["a", "b"]}


class NotFinite(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * float("nan")


def distil(out: Path, student: nn.Module, teacher: nn.Module | None = None, **training: Any) -> None:
    options = {"steps": 2, "batch_size": 2, "device": "cpu", "precision": "fp32", **training}
    given = (Net() if teacher is None else teacher).eval()
    datafree.distill(given, student, task=TASK, source="noise", training=options, out=out)


def refused(work: Callable[[], object], out: Path, kind: type[DatafreeError] = DatafreeError) -> str:
    with pytest.raises(kind) as caught:
        work()
    assert not out.exists() and "\n" not in str(caught.value)
    return str(caught.value)


STUDENTS: dict[type[nn.Module], str] = {
    Lazy: "has no shape yet; pass an image through its lazy layers first",
    OnMeta: "has no values, being on the device meta",
    Frozen: "has no parameter that is trained: requires_grad is False for all of them",
    WithoutParameters: "has no parameters",
    BuffersAlone: "has no parameters",
    OfVideos: "has 3-D convolutions, so it takes volumes or video",
    Detached: "cannot learn: no gradient comes back from its answers to its parameters",
    WithoutGradients: "cannot learn: no gradient comes back from its answers to its parameters",
    RaisesWhileItLearns: "cannot learn: ValueError: broken",
    Sparse: "cannot learn: RuntimeError: ",
    NotSaved: "cannot be saved: 'network._extra_state' of its state is <function ",
    NotFinite: "answers numbers that are not finite",
    Masked: "begins with numbers that are not finite, in 'network.mask': ",
}


@pytest.mark.parametrize("student", STUDENTS)
def test_a_student_that_cannot_learn_is_refused_before_any_work(student: type[nn.Module], tmp_path: Path) -> None:
    assert STUDENTS[student] in refused(lambda: distil(tmp_path / "run", student()), tmp_path / "run", NetworkError)


@pytest.mark.parametrize("teacher", [Lazy, OnMeta, WithoutParameters, BuffersAlone, OfVideos, NotFinite])
def test_a_teacher_that_cannot_answer_is_refused_before_any_work(teacher: type[nn.Module], tmp_path: Path) -> None:
    line = refused(lambda: distil(tmp_path / "run", Net(), teacher()), tmp_path / "run", NetworkError)
    assert STUDENTS[teacher] in line


@pytest.mark.parametrize("options", [{"ema": 0.5}, {"select": "agreement"}, {"ema": 0.5, "select": "agreement"}])
def test_what_a_student_saves_beside_its_tensors_has_no_average(options: dict[str, Any], tmp_path: Path) -> None:
    distil(tmp_path / "run", Remembering(), **options)


def test_one_network_is_not_both_teacher_and_student(tmp_path: Path) -> None:
    network, other, part = Net(), Net(), Net()
    part.last = network.last
    for student in (network, part, nn.Sequential(network)):
        line = refused(lambda student=student: distil(tmp_path / "run", student, network), tmp_path / "run")  # type: ignore[misc]
        assert "share tensors" in line and "copy.deepcopy" in line
    distil(tmp_path / "run", other, network)


class Pooled(Net):
    """As DeepLab's pooling branch: BatchNorm over one value of each image."""

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.last(self.norm(self.conv(images).mean((2, 3), keepdim=True)).flatten(1))
        return answer


def test_batchnorm_of_one_value_is_refused_with_batches_of_one_image_alone(tmp_path: Path) -> None:
    line = refused(lambda: distil(tmp_path / "run", Pooled(), batch_size=1), tmp_path / "run")
    assert "Expected more than 1 value per channel" in line and "raise training.batch_size, now 1" in line
    distil(tmp_path / "run", Pooled(), batch_size=2)


def test_a_batch_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    line = refused(lambda: distil(tmp_path / "run", Net(), batch_size=10**12), tmp_path / "run")
    assert "training.batch_size is 1,000,000,000,000: that many images of 16 x 16 pixels take 3072 TB" in line


VALUES: dict[str, list[Any]] = {
    "task.temperature": [1e200, 1e9, 1e-300, 0.0, -1.0, True, "1"],
    "training.lr": [1e300, 1e31, 0.0, True],
    "training.weight_decay": [1e300],
    "training.attention_weight": [1e300, -1.0],
    "training.label_weight": [1e39],
    "training.steps": [2**63, 0, True, 1.0],
    "training.batch_size": [0, True, "Auto"],
    "training.device": ["meta", "cuda:99", "mps", "", "x" * 400, "cpu\0", "cpu:-2"],
    "training.seed": [-1, 2**63, True],
    "teacher.channels": [True, 1.0, "1", 2],
    "student.channels": [True, 3.0],
    "teacher.std": [[0.0, 1.0, 1.0], [1.0, True, 1.0], [1.0, 1.0]],
    "teacher.mean": [[1e300, 0.0, 0.0], [0.0, 0.0]],
    "task.image_size": [[True, 32], [0, 16], [16], [2**40, 2**40], [10**5, 10**5]],
    "task.num_classes": [True, 1, 0, 2**63],
    "name": ["a" * 256, "é", "a/b", "", "..", "a\n"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_a_value_that_no_run_can_use_is_one_line_before_any_work(key: str, value: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sections: dict[str, Any] = {
        "task": {"kind": "segmentation", "num_classes": 3, "image_size": [32, 32]},
        "teacher": {"network": "datafree/unet", "args": {"width": 2, "depth": 2}},
        "student": {"network": "datafree/unet", "args": {"width": 2, "depth": 2}},
        "source": {"method": "noise"},
        "training": {"steps": 2, "batch_size": 2, "device": "cpu"},
    }
    sections["teacher"]["weights"] = str(recipe_for(tmp_path, {"method": "noise"}).teacher.weights)
    *section, option = key.split(".")
    (sections[section[0]] if section else sections)[option] = value

    def work() -> None:
        from datafree.config.schema import Invalid
        from datafree.run import run_recipe

        try:
            recipe = make_recipe(sections, "python")
        except Invalid as error:
            raise RecipeError([str(fault) for fault in error.faults]) from error
        run_recipe(recipe, run)

    refused(work, run)


def test_a_rehearsal_leaves_everything_as_it_was() -> None:
    torch.manual_seed(0)
    teacher, student = (resnet(3, depth=8, width=2) for _ in range(2))
    task = Classification(num_classes=3, image_size=(16, 16))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    random = modes.random_state()
    for optimizer in ("sgd", "adam"):
        rehearse(task, teacher, student, Training(steps=1, optimizer=optimizer, lr=1.0, label_weight=1.0), "it")  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
    assert student.training
    assert torch.equal(modes.random_state()["torch"], random["torch"])


def test_a_buffer_that_is_replaced_is_put_back() -> None:
    network = nn.BatchNorm2d(3)
    mean = network.running_mean
    with as_it_was(network):
        network.running_mean = torch.ones(3)
        torch.rand(5)
    assert network.running_mean is mean
    assert torch.equal(mean, torch.zeros(3))


def test_inspect_says_in_one_line_that_a_detectors_loss_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynets.py").write_text(
        "import torchvision\n"
        "class Broken(torchvision.models.detection.SSD): pass\n"
        "def make():\n"
        "    net = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)\n"
        "    def raises(*args, **more): raise KeyError('loss')\n"
        "    net.compute_loss = raises\n"
        "    return net\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        inspect_teacher("mynets:make", size="64", task="detection", classes=90)
    except DatafreeError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("kind", [None, "builtins.tuple", "builtins.dict"])
def test_a_program_without_outputs_is_refused(kind: str | None, tmp_path: Path) -> None:
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Net().eval(), (torch.rand(2, 3, 16, 16),), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "whole.pt2")
    with zipfile.ZipFile(tmp_path / "whole.pt2") as old, zipfile.ZipFile(tmp_path / "silent.pt2", "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if "/models/" in member.filename and member.filename.endswith(".json"):
                table = json.loads(content)
                table["graph_module"]["signature"]["output_specs"] = []
                top = next(call for call in table["graph_module"]["module_call_graph"] if call["fqn"] == "")
                form = json.loads(top["signature"]["out_spec"])
                form[1] |= {"type": kind, "context": "[]", "children_spec": []}
                top["signature"]["out_spec"] = json.dumps(form)
                content = json.dumps(table).encode()
            new.writestr(member.filename, content)
    with pytest.raises(DatafreeError, match="answers nothing; export a network that answers its logits"):
        inspect_teacher(str(tmp_path / "silent.pt2"), size="16")
