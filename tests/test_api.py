"""api.py: the same runs from Python, with objects in place of names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import datafree
from datafree.deploy.export_run import export_run
from datafree.engine.progress import Progress
from datafree.errors import DatafreeError, Interrupted, NetworkError, RecipeError, RunError
from datafree.evaluation.scoring import evaluate_run
from datafree.networks.detectors import Detector
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.ops.predictions import Predictions
from datafree.recipe.recipe import load_recipe
from datafree.run import run_recipe
from datafree.sources import Mixed, Noise
from recipes import write

TASK = {"kind": "classification", "num_classes": 4, "image_size": (16, 16)}
LOOK = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
SHORT = {"steps": 6, "batch_size": 4, "save_every": 2, "log_every": 1}


class Tiny(nn.Module):
    """A classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, TASK["num_classes"])  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.head(self.body(images).mean((2, 3)))
        return answer


def make_teacher(seed: int = 7) -> Tiny:
    """Trained, as far as its BatchNorm can tell; always the same one."""
    torch.manual_seed(seed)
    network = Tiny()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, 3, 16, 16))
        network.head.weight *= 5
    return network


def make_student() -> Tiny:
    torch.manual_seed(1)
    return Tiny(4)


def distil(folder: Path, **changes: Any) -> datafree.Result:
    """A run of two objects on noise, with changes."""
    given: dict[str, Any] = {
        "teacher": {"network": make_teacher(), **LOOK},
        "student": make_student(),
        "task": TASK,
        "source": "noise",
        "training": SHORT,
        "out": folder / "run",
        **changes,
    }
    return datafree.distill(**given)


def labelled(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in "abcd":
        (folder / name).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name / f"{index}.png")
    return folder


def same(one: nn.Module, other: nn.Module | dict[str, Tensor]) -> bool:
    a, b = one.state_dict(), other.state_dict() if isinstance(other, nn.Module) else other
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the package ---


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, datafree; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pydantic')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_functions_of_the_package_are_those_of_its_api() -> None:
    for name in ("distill", "evaluate", "export"):
        assert getattr(datafree, name) is getattr(sys.modules["datafree.api"], name)
        assert f"datafree.{name}" not in sys.modules  # a module of that name would take its place
    assert all(callable(getattr(datafree, name)) for name in datafree.__all__)
    assert datafree.__all__ == sorted(datafree.__all__)
    assert set(datafree.__all__) <= set(dir(datafree))
    with pytest.raises(AttributeError, match="'distil'"):
        datafree.distil  # noqa: B018


# --- distill ---


def test_a_run_of_objects_is_complete(tmp_path: Path) -> None:
    teacher, student = make_teacher(), make_student()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    untrained = {name: value.clone() for name, value in student.state_dict().items()}
    seen: list[Progress] = []
    result = distil(
        tmp_path,
        teacher={"network": teacher, **LOOK},
        student=student,
        data=labelled(tmp_path / "data"),
        progress=seen.append,
    )
    steps = [progress.step for progress in seen if progress.phase == "training"]
    assert steps == [0, 1, 2, 3, 4, 5, 6] or steps == [1, 2, 3, 4, 5, 6]
    assert {progress.phase for progress in seen} == {"training", "scores"}
    assert result.student is student
    assert not student.training
    assert not same(student, untrained)  # it has learnt
    assert same(student, load_file(result.paths["student.safetensors"]))
    assert same(teacher, before)
    assert teacher.training  # as it was given
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert set(result.scores) == {"teacher", "student"}
    assert result.step == 6
    images = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(LOOK[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        assert torch.equal(result.network(images), student((images - mean) / std))
    save_file(student.state_dict(), tmp_path / "mine.safetensors")  # refuses tensors that are not contiguous


def test_a_network_trained_in_bf16_answers_in_full_precision_as_its_file_does(tmp_path: Path) -> None:
    result = distil(tmp_path, training={**SHORT, "precision": "bf16"})
    images = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(LOOK[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        assert torch.equal(result.network(images), result.student((images - mean) / std))


def test_python_and_command_do_the_same(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    save_file(resnet(4, depth=8, width=4).state_dict(), teacher)
    content = {
        "task": {**TASK, "image_size": [16, 16]},
        "teacher": {"network": "datafree/resnet", "args": {"depth": 8, "width": 4}, "weights": str(teacher)},
        "student": {"network": "datafree/resnet?depth=8&width=2"},
        "source": {"method": "noise"},
        "training": SHORT,
    }
    by_command = run_recipe(load_recipe(write(tmp_path, content, "python.yaml")), tmp_path / "command")
    by_python = datafree.distill(
        **{**content, "teacher": {**content["teacher"], "weights": teacher}},  # type: ignore[dict-item]
        out=tmp_path / "python",
    )
    assert same(by_python.student, load_file(by_command.run / "student.safetensors"))
    recipes = [(run / "recipe.yaml").read_text() for run in (by_command.run, by_python.run)]
    assert recipes[0] == recipes[1]


def test_a_number_is_as_good_as_a_list_for_mean_and_std_and_seconds_for_time(tmp_path: Path) -> None:
    teacher = {"network": make_teacher(), "mean": 0.5, "std": 0.25}
    found = datafree.distill(teacher, out=tmp_path / "run", size=16, source="noise", time=8)
    recipe = load_recipe(str(found.run / "recipe.yaml"))
    assert (recipe.teacher.mean, recipe.teacher.std) == ((0.5,) * 3, (0.25,) * 3)
    assert recipe.training.time == "8s"


def test_objects_of_options_are_as_good_as_mappings(tmp_path: Path) -> None:
    task = datafree.Classification(num_classes=4, image_size=(16, 16))
    source = Mixed(parts=[Noise(), Noise(kind="gaussian")])
    first = distil(tmp_path / "a", task=task, source=source, training=datafree.Training(**SHORT))
    again = distil(tmp_path / "b", task=task, source=source, training=datafree.Training(**SHORT))  # the same objects
    section = {"method": "mixed", "parts": [{"method": "noise"}, {"method": "noise", "kind": "gaussian"}]}
    mapped = distil(tmp_path / "c", source=section)
    assert same(first.student, again.student)
    assert same(first.student, mapped.student)


def stop_after(steps: int) -> Callable[[Any], None]:
    def note(progress: Any) -> None:
        if progress.step == steps:
            raise KeyboardInterrupt

    return note


def test_a_stopped_run_of_objects_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = distil(tmp_path / "whole")
    teacher, student = make_teacher(), make_student()
    section = {"network": teacher, **LOOK}
    with pytest.raises(KeyboardInterrupt):
        distil(tmp_path / "broken", teacher=section, student=student, progress=stop_after(5))
    assert teacher.training  # put back, also then
    again = distil(tmp_path / "broken", teacher=section, student=student)
    assert same(again.student, whole.student)
    assert not again.already_finished
    last = distil(tmp_path / "broken", student=(fresh := make_student()))
    assert last.already_finished
    assert same(fresh, whole.student)


def test_a_time_limit_stops_cleanly(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped at step"):
        distil(tmp_path, max_time=1e-9)
    assert distil(tmp_path).step == 6


def test_another_teacher_of_the_same_class_is_another_run(tmp_path: Path) -> None:
    distil(tmp_path)
    with pytest.raises(RunError, match=r"teacher\.network: 'live/test_api\.Tiny@"):
        distil(tmp_path, teacher={"network": make_teacher(seed=8), **LOOK})


def test_random_states_are_left_as_they_were(tmp_path: Path) -> None:
    teacher, student = make_teacher(), make_student()
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(3), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    datafree.distill(teacher, student, task=TASK, source="noise", training=SHORT, out=tmp_path / "run")
    assert torch.equal(torch.rand(3), expected[0])
    assert np.random.rand() == expected[1]


def test_a_live_network_is_recorded_by_class_and_digest_only(tmp_path: Path) -> None:
    run = distil(tmp_path).run
    described = json.loads((run / "student.json").read_text())
    assert described["network"]["network"].startswith("live/test_api.Tiny@")
    assert described["teacher"]["network"].startswith("live/test_api.Tiny@")
    assert described["teacher"]["sha256_of"] == "tensors"
    with pytest.raises(NetworkError, match=r"was given as an object.*test_api:Tiny"):
        evaluate_run(run, labelled(tmp_path / "data"))
    with pytest.raises(NetworkError, match="was given as an object"):
        run_recipe(load_recipe(str(run / "recipe.yaml")), tmp_path / "again")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"task": "classify"}, NetworkError, "there is no task 'classify' (did you mean classification?)"),
        ({"task": {"kind": "classification"}}, NetworkError, "nobody says how large the images"),
        ({"task": {**TASK, "num_clases": 4}}, RecipeError, "task.num_clases: no such option"),
        ({"source": "nois"}, RecipeError, "source.method: 'nois' is not one of"),
        ({"source": "diode"}, RecipeError, "makes images for task.kind=detection"),
        ({"training": {"step": 3}}, RecipeError, "training.step: no such option"),
        ({"student": "datafree/resnt"}, RecipeError, "student.network: there is no network"),
        ({"student": 7}, NetworkError, "a network is 7: give its name"),
        ({"teacher": None}, NetworkError, "a network is None: give its name"),
        ({"student": Tiny}, NetworkError, "'Tiny' is a class, not a network: give an instance"),
        ({"time": -3}, RecipeError, "time is -3: give seconds above 0"),
        ({"time": float("nan")}, RecipeError, "time is nan: give seconds above 0"),
        ({"student": {"network": nn.Identity()}}, NetworkError, "Identity has no parameters"),
        ({"student": {"network": Tiny(), "args": {"width": 3}}}, NetworkError, "args is given beside"),
        ({"teacher": "datafree/resnet"}, NetworkError, "has no weights, so it has nothing to teach"),
        ({"max_time": "soon"}, RecipeError, "max_time is 'soon': give seconds"),
        ({"max_time": 0}, RecipeError, "seconds above 0"),
        ({"data": "/no/such/folder"}, DatafreeError, "/no/such/folder"),
    ],
)
def test_a_mistake_is_a_line_and_nothing_is_written(
    changes: dict[str, Any], error: type[DatafreeError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        distil(tmp_path, **changes)
    assert said in str(caught.value)
    assert all(line.strip() for line in str(caught.value).splitlines())
    assert not (tmp_path / "run").exists()


class Raises(nn.Module):
    """Raises what a network of anyone's may."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error", [KeyError("mask"), AssertionError(), NotImplementedError("two\nlines"), OSError(2, "x")]
)
def test_whatever_a_network_raises_is_one_line(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(
        NetworkError, match=f"teacher live/test_api.Raises@.*16 x 16 pixels: {type(error).__name__}"
    ) as caught:
        distil(tmp_path, teacher=Raises(error))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# --- evaluate and export ---


def test_scores_are_those_of_the_run(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data")
    result = distil(tmp_path, data=data)
    assert datafree.evaluate(result.run, data, student=make_student()) == result.scores["student"]
    assert datafree.evaluate({"network": result.student, **LOOK}, data, task=TASK) == result.scores["student"]
    assert datafree.evaluate({"network": make_teacher(), **LOOK}, data, task=TASK) == result.scores["teacher"]
    spec = NetworkSpec(network="test_api:make_teacher", **LOOK)  # type: ignore[arg-type]
    assert datafree.evaluate(spec, data, task=TASK) == result.scores["teacher"]


def test_evaluate_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="give task="):
        datafree.evaluate(make_teacher(), tmp_path)
    with pytest.raises(NetworkError, match="leave task out"):
        datafree.evaluate(tmp_path, tmp_path, task=TASK)


def test_evaluate_reads_a_task_and_one_network_and_says_all_their_faults(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        datafree.evaluate({"network": "datafree/unett"}, tmp_path, task={"kind": "classification", "classes": 4})
    keys = [problem.partition(":")[0] for problem in caught.value.problems]
    assert keys == ["task.classes", "task.num_classes", "task.image_size", "teacher.network"]


def test_a_live_student_is_exported(tmp_path: Path) -> None:
    result = distil(tmp_path)
    done = datafree.export(result.run, tmp_path / "shipped", onnx=False, student=make_student())
    assert same(result.student, load_file(done.folder / "student.safetensors"))
    config = json.loads((done.folder / "config.json").read_text())
    assert config["library"] == "own code"
    card = (done.folder / "README.md").read_text()
    assert "from test_api import Tiny" in card
    with pytest.raises(NetworkError, match="given as an object"):
        export_run(result.run, tmp_path / "other", onnx=False)


class Boxes(Detector):
    """A detector of one location for each cell of 8 x 8 pixels."""

    backbone = "0"

    def forward(self, images: Tensor) -> Predictions:
        raw = self.network(images)  # (B, 4 + C, h, w)
        values = raw.flatten(2).transpose(1, 2)
        rows, columns = torch.meshgrid(*(torch.arange(side) for side in raw.shape[-2:]), indexing="ij")
        centres = ((torch.stack([columns, rows], -1).flatten(0, 1) + 0.5) * 8).expand(len(raw), -1, -1)
        half = 6 * values[..., 2:4].clamp(-2, 2).exp()
        middle = centres + 4 * values[..., :2].tanh()
        return Predictions(
            class_logits=values[..., 4:],
            scores=values[..., 4:].sigmoid(),
            boxes=torch.cat([middle - half, middle + half], -1),
            centres=centres,
            heads=(raw,),
            loss=lambda heads, targets: heads[0].square().mean(),
        )


def test_a_live_detector_is_distilled(tmp_path: Path) -> None:
    def make() -> Boxes:
        return Boxes(nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.Conv2d(8, 4 + 2, 1)))

    task = {"kind": "detection", "num_classes": 2, "image_size": (32, 32)}
    result = distil(tmp_path, teacher=make(), student=make(), task=task)
    assert isinstance(result.network, Normalized)
    assert isinstance(result.network(torch.rand(1, 3, 32, 32)), Predictions)
    assert same(result.student, load_file(result.paths["student.safetensors"]))
