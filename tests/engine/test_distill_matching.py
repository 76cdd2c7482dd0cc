"""What a student learns besides the teacher's answers: its attention maps and the source's own targets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn

from datafree.cli import main
from datafree.config import yaml
from datafree.engine.loop import distill
from datafree.errors import NetworkError, TrainingError
from datafree.networks.checkpoints.weights import load_weights, save_weights
from datafree.networks.features import attention_loss, watched
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet
from datafree.recipe.recipe import Recipe
from datafree.recipe.training import Training
from datafree.run import run_recipe
from datafree.sources.base import Batch, ImageSource, SourceContext
from datafree.storage.run_directory import Run
from datafree.tasks.base import Task
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation
from recipes import load

C, SIZE = 4, (32, 32)
STAGES = {"layer3": "layer3", "layer2": "layer2", "layer1": "layer1"}


@final
@dataclass(kw_only=True)
class Fixed(ImageSource):
    """The same images at every step, with targets or without."""

    images: Tensor
    targets: Tensor | None = None

    def attach(self, context: SourceContext) -> None: ...

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        return {}

    def sample(self, n: int) -> Batch:
        return Batch(images=self.images, targets=self.targets)

    def validation_images(self, n: int) -> Tensor:
        return self.images[:0]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def classifier(seed: int, width: int = 4) -> Normalized:
    torch.manual_seed(seed)
    network = Normalized(resnet(C, depth=8, width=width))
    for _ in range(5):
        network(torch.rand(16, 3, *SIZE))
    return network


def batch(labelled: bool = True) -> Fixed:
    torch.manual_seed(0)
    return Fixed(images=torch.rand(8, 3, *SIZE), targets=torch.arange(8) % C if labelled else None)


def learn(
    folder: Path,
    student: nn.Module,
    source: Fixed,
    teacher: nn.Module | None = None,
    task: Task | None = None,
    **how: Any,
) -> list[dict[str, float]]:
    """Distil in place; the logged figures of every step."""
    training = Training(**{"batch_size": 8, "log_every": 1, "device": "cpu", "precision": "fp32", **how})
    run = Run(folder / "run", {})
    try:
        distill(
            task=task or Classification(num_classes=C, image_size=SIZE, temperature=2.0),
            teacher=classifier(1) if teacher is None else teacher,
            student=student,
            source=source,
            training=training,
            run=run,
        )
    finally:
        run.close()
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def attention(teacher: nn.Module, student: nn.Module, images: Tensor, pairs: dict[str, str]) -> Tensor:
    """Sum over pairs of the mean squared difference of Q / ||Q||_2, Q the mean over channels of squares."""
    with torch.no_grad(), watched(teacher, pairs) as taught, watched(student, pairs.values()) as learnt:
        teacher(images), student(images)
    total = torch.zeros(())
    for theirs, ours in pairs.items():
        maps = []
        for features in (taught[theirs], learnt[ours]):
            energy = (features**2).mean(1).flatten(1)
            maps.append(energy / (energy**2).sum(1, keepdim=True).sqrt())
        total += ((maps[0] - maps[1]) ** 2).mean()
    return total


# The sum.


@pytest.mark.parametrize(("label_weight", "attention_weight"), [(0.0, 0.0), (0.5, 0.0), (0.0, 200.0), (0.5, 200.0)])
def test_the_students_loss_is_the_weighted_sum_of_its_parts(
    tmp_path: Path, label_weight: float, attention_weight: float
) -> None:
    teacher, student, source = classifier(1).eval(), classifier(2), batch()
    assert source.targets is not None
    logits = classifier(2).train()(source.images)
    p, q = (torch.softmax(x / 2, 1) for x in (teacher(source.images), logits))
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    expected = expected - label_weight * torch.log_softmax(logits, 1)[range(8), source.targets].mean()
    matched = attention(teacher.network, classifier(2).train().network, source.images, STAGES)
    expected = expected + attention_weight * matched
    (line,) = learn(tmp_path, student, source, steps=1, label_weight=label_weight, attention_weight=attention_weight)
    assert line["loss"] == pytest.approx(expected.item(), rel=1e-4)
    if attention_weight:
        assert line["attention"] == pytest.approx(matched.item(), rel=1e-4)
    else:
        assert "attention" not in line


def test_layers_that_are_named_are_matched_and_no_others(tmp_path: Path) -> None:
    pairs = {"layer3": "layer2", "layer1.0.conv1": "layer1"}  # of two sizes, too
    teacher, student, same, source = classifier(1).eval(), classifier(2), classifier(2), batch()
    with torch.no_grad(), watched(teacher.network, pairs) as taught, watched(same.network, pairs.values()) as learnt:
        teacher(source.images), same(source.images)
    expected = attention_loss(learnt, taught, pairs)
    (line,) = learn(tmp_path, student, source, steps=1, attention_weight=10.0, attention_layers=pairs)
    assert line["attention"] == pytest.approx(expected.item(), rel=1e-4)


def test_targets_are_learnt_with_a_label_weight_and_only_with_it(tmp_path: Path) -> None:
    """A teacher that is as sure of every class: what the student knows of the targets comes from them."""
    even = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, C, bias=False))
    nn.init.zeros_(even[1].weight)  # type: ignore[arg-type]
    right = {}
    for weight in (0.0, 20.0):
        student, source = classifier(2), batch()
        learn(tmp_path / str(weight), student, source, teacher=even, steps=30, lr=1e-2, label_weight=weight)
        assert source.targets is not None
        right[weight] = (student.eval()(source.images).softmax(1)[range(8), source.targets]).mean().item()
    assert right[0.0] == pytest.approx(1 / C, abs=0.1)
    assert right[20.0] > 0.8


@pytest.mark.thorough
def test_matching_brings_the_students_attention_to_the_teachers(tmp_path: Path) -> None:
    distance = {}
    for weight in (0.0, 1000.0):
        teacher, student, source = classifier(1).eval(), classifier(2, width=3), batch(labelled=False)
        learn(tmp_path / str(weight), student, source, teacher=teacher, steps=30, lr=1e-2, attention_weight=weight)
        distance[weight] = attention(teacher.network, student.train().network, source.images, STAGES).item()
    assert distance[1000.0] < 0.5 * distance[0.0]


def test_a_source_without_targets_is_learnt_from_all_the_same(tmp_path: Path) -> None:
    lines = learn(tmp_path, classifier(2), batch(labelled=False), steps=2, label_weight=1.0)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_dense_networks_are_matched_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = (Normalized(unet(3, width=w, depth=3)) for w in (4, 2))
    teacher(torch.rand(8, 3, *SIZE))
    source = Fixed(images=torch.rand(4, 3, *SIZE), targets=torch.randint(0, 3, (4, *SIZE)))
    task = Segmentation(num_classes=3, image_size=SIZE)
    lines = learn(
        tmp_path,
        student,
        source,
        teacher=teacher,
        task=task,
        steps=20,
        lr=1e-2,
        attention_weight=1000.0,
        label_weight=0.1,
    )
    assert lines[-1]["attention"] < 0.7 * lines[0]["attention"]


def test_networks_in_bf16_are_matched_in_float32(tmp_path: Path) -> None:
    figures = []
    for dtype in (torch.float32, torch.bfloat16):
        networks = [classifier(seed) for seed in (1, 2)]
        for network in networks:
            network.dtype = dtype
        (line,) = learn(tmp_path / str(dtype), networks[1], batch(), teacher=networks[0], steps=1, attention_weight=1.0)
        figures.append(line["attention"])
    assert figures[0] != figures[1]
    assert figures[0] == pytest.approx(figures[1], rel=0.1)


# What is left behind.


def hooks(*networks: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for n in networks for m in n.modules())


def test_teacher_and_hooks_are_as_before_also_after_an_error(tmp_path: Path) -> None:
    teacher, student = classifier(1), classifier(2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    learn(tmp_path / "a", student, batch(), teacher=teacher, steps=3, attention_weight=10.0, label_weight=1.0)
    broken = batch()
    broken.targets = torch.full((8,), C)  # a class that is none
    with pytest.raises(IndexError):
        learn(tmp_path / "b", student, broken, teacher=teacher, steps=3, attention_weight=10.0, label_weight=1.0)
    with pytest.raises(TrainingError):
        learn(
            tmp_path / "c", student, batch(), teacher=teacher, steps=50, attention_weight=10.0, optimizer="sgd", lr=1e30
        )
    assert hooks(teacher, student) == 0
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.training


# What goes wrong, found before anything is written.


def save_classifier(folder: Path) -> Path:
    file = folder / "classifier.safetensors"
    if not file.exists():
        save_weights(classifier(1).network, file)
    return file


def content(folder: Path, **sections: Any) -> dict[str, Any]:
    small = {"depth": 8, "width": 4}
    return {
        "task": {"kind": "classification", "num_classes": C, "image_size": list(SIZE)},
        "teacher": {"network": "datafree/resnet", "args": small, "weights": str(save_classifier(folder))},
        "student": {"network": "datafree/resnet", "args": {"depth": 8, "width": 2}},
        "source": {"method": "noise"},
        "training": {"steps": 2, "batch_size": 2, "device": "cpu", "attention_weight": 10.0},
        **sections,
    }


def test_a_run_of_a_recipe_matches_and_its_student_loads_on_its_own(tmp_path: Path) -> None:
    training = {"steps": 4, "batch_size": 4, "log_every": 2, "attention_weight": 100.0, "label_weight": 0.5}
    source = {"method": "cgdd", "width": 2, "latent": 4, "batch_size": 8, "warmup": 1}
    recipe: Recipe = load(tmp_path, content(tmp_path, training=training, source=source))
    run = run_recipe(recipe, tmp_path / "run").run
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all("attention" in line for line in lines if line["step"] > 0 and "loss" in line)
    network = build_network(NetworkSpec(network="datafree/resnet", args={"depth": 8, "width": 2}), num_classes=C)
    load_weights(network, run / "student.safetensors")


FLAT = """
from torch import nn
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
"""


@pytest.mark.parametrize(
    ("match", "said"),
    [
        ({"layer4": "layer3"}, "no layer 'layer4' in the teacher; did you mean layer3"),
        ({"layer3": "layer9.0"}, "no layer 'layer9.0' in the student; did you mean"),
        ({"linear": "layer3"}, "the teacher's layer 'linear' of training.attention_layers answers no feature map"),
        ({"layer3": "linear"}, "the student's layer 'linear' of training.attention_layers answers no feature map"),
    ],
)
def test_a_layer_that_cannot_be_matched_is_one_line(tmp_path: Path, match: dict[str, str], said: str) -> None:
    sections = content(tmp_path)
    sections["training"]["attention_layers"] = match
    with pytest.raises(NetworkError, match=said) as caught:
        run_recipe(load(tmp_path, sections), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_layers_that_are_named_without_a_weight_are_said_to_be_of_no_effect(tmp_path: Path) -> None:
    sections, said = content(tmp_path), list[str]()
    sections["training"] |= {"attention_weight": 0.0, "attention_layers": {"layer3": "layer2"}}
    run = run_recipe(load(tmp_path, sections), tmp_path / "run", say=said.append).run
    assert "note: training.attention_layers has no effect, training.attention_weight is 0" in said
    assert not any("attention" in line for line in (run / "metrics.jsonl").read_text().splitlines())
    sections["training"]["attention_layers"] = {"layer4": "layer3"}
    with pytest.raises(NetworkError, match="no layer 'layer4' in the teacher"):
        run_recipe(load(tmp_path, sections), tmp_path / "other")


def test_networks_with_nothing_to_pair_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flat_for_matching.py").write_text(FLAT)
    monkeypatch.chdir(tmp_path)
    sections = content(tmp_path, student={"network": "flat_for_matching:make"})
    with pytest.raises(NetworkError, match=r"no feature maps of equal size .*training\.attention_weight=0"):
        run_recipe(load(tmp_path, sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The same, and answers of another form, through the command.


OWN = """
import torch
from torch import nn
class Own(nn.Module):
    def __init__(self, classes, answer):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
        self.answer = answer
    def forward(self, images):
        logits = self.body(images)
        return {
            "logits": logits,
            "tuple": (logits, logits),
            "dict": {"features": logits},
            "probabilities": logits.softmax(1),
            "maps": logits[:, :, None, None],
        }[self.answer]
def make(classes=4, answer="logits"):
    return Own(classes, answer)
"""


@pytest.fixture
def datafree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`datafree distill` of the content given, in a directory with own_for_matching.py: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_for_matching.py").write_text(OWN)

    def run(sections: dict[str, Any], *overrides: str) -> tuple[int, str, str]:
        Path("tiny.yaml").write_text(yaml.render(sections), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["datafree", "distill", "tiny.yaml", *overrides])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main()
        captured = capfd.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


@pytest.mark.parametrize("which", ["teacher", "student"])
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"classes": 5}, "answers 5 classes, but the task has 4"),
        ({"answer": "tuple"}, "a tuple of 2"),
        ({"answer": "dict"}, "a dict with the keys ['features']"),
        ({"answer": "probabilities"}, "probabilities"),
        ({"answer": "maps"}, "flatten it"),
    ],
)
def test_a_network_that_answers_otherwise_is_one_line_and_exit_code_2(
    tmp_path: Path, datafree: Callable[..., tuple[int, str, str]], which: str, args: dict[str, Any], said: str
) -> None:
    sections = content(tmp_path, **{which: {"network": "own_for_matching:make", "args": args}})
    sections["training"]["attention_weight"] = 0.0
    code, out, err = datafree(sections)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists()


def test_the_same_network_with_a_right_answer_runs(
    tmp_path: Path, datafree: Callable[..., tuple[int, str, str]]
) -> None:
    sections = content(tmp_path, teacher={"network": "own_for_matching:make"})
    code, _, err = datafree(sections, "training.attention_weight=0")
    assert code == 0, err


def test_weights_of_another_number_of_classes_are_one_line(
    tmp_path: Path, datafree: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = datafree(content(tmp_path), "task.num_classes=7")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "linear" in err
    assert not Path("runs").exists()


def test_a_match_on_the_command_line_that_names_no_layer_is_one_line(
    tmp_path: Path, datafree: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = datafree(content(tmp_path), "training.attention_layers={layer33: layer3}")
    assert (code, out) == (2, "")
    assert err.startswith("error: there is no layer 'layer33'")
    assert "did you mean layer3" in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists()
    code, out, err = datafree(content(tmp_path), "training.attention_layers={layer3: 3}")
    assert code == 2
    assert "training.attention_layers" in err
