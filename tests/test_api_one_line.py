"""`datafree.distill` where student, task or source are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import datafree
from datafree.config import yaml
from datafree.errors import DatafreeError
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.load import NetworkSpec
from datafree.networks.resnet import resnet
from datafree.recipe.recipe import load_recipe
from datafree.run import run_recipe

SHORT: dict[str, Any] = {"time": None, "steps": 3, "batch_size": 4, "device": "cpu"}
LOOK: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a small network, in the current directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = resnet(4, depth=8, width=8)
    network(torch.rand(64, 3, 16, 16))
    save_weights(network, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_a_name_and_its_weights_are_enough(weights: Path) -> None:
    said: list[str] = []
    result = datafree.distill(
        {"network": "datafree/resnet?depth=8&width=8", **LOOK},
        weights=weights,
        size=16,
        source="noise",
        training=SHORT,
        seed=4,
        say=said.append,
    )
    assert result.run == Path("runs/small")
    assert result.student(torch.rand(2, 3, 16, 16)).shape == (2, 4)
    assert said[0].startswith("teacher: datafree/resnet, ")
    recipe = yaml.parse((result.run / "recipe.yaml").read_text(), "recipe")
    assert recipe["student"]["args"] == {"depth": 8, "width": 4}
    assert recipe["student"]["init"] == "teacher"
    assert (recipe["training"]["steps"], recipe["training"]["seed"]) == (3, 4)


def test_the_recipe_that_is_kept_runs_as_the_call_did(weights: Path) -> None:
    given = {"network": "small.safetensors", **LOOK}
    result = datafree.distill(given, size="16x16", source="noise", training=SHORT, out="first")
    recipe = load_recipe("first/chosen.yaml")
    again = run_recipe(recipe, Path("again"))
    for name, value in result.student.state_dict().items():
        assert torch.equal(value, again.student.network.state_dict()[name])


def test_an_object_needs_only_its_images(weights: Path) -> None:
    teacher = resnet(4, depth=8, width=8)
    result = datafree.distill({"network": teacher, **LOOK}, size=(16, 24), source="noise", training=SHORT, out="run")
    assert result.student(torch.rand(1, 3, 16, 24)).shape == (1, 4)
    assert not (result.run / "chosen.yaml").exists()  # it could not be run by its name


def test_a_student_that_is_given_is_the_one_that_is_trained(weights: Path) -> None:
    student = resnet(4, depth=8, width=2)
    before = student.linear.weight.detach().clone()
    result = datafree.distill(
        {"network": "small.safetensors", **LOOK}, student, size=16, source="noise", training=SHORT, out="run"
    )
    assert result.student is student
    assert not torch.equal(before, student.linear.weight)


def test_a_spec_and_parts_of_a_task_are_kept(weights: Path) -> None:
    spec = NetworkSpec(network="datafree/resnet?depth=8&width=8", weights=weights, licence="MIT", **LOOK)
    task = {"kind": "classification", "image_size": [16, 16], "temperature": 2.0}
    result = datafree.distill(
        spec, "datafree/resnet?depth=8&width=2", task=task, training=SHORT, source="noise", out="run"
    )
    recipe = yaml.parse((result.run / "recipe.yaml").read_text(), "recipe")
    assert recipe["teacher"]["licence"] == "MIT"
    assert recipe["task"]["temperature"] == 2.0
    assert recipe["student"]["args"] == {"depth": 8, "width": 2}


def test_a_teachers_section_counts_whole_where_a_student_is_left_out(weights: Path) -> None:
    """Options that the command has none for are kept; the same network in 0 to 255 is the same network."""
    section = {"network": "datafree/resnet?depth=8&width=8", "weights": weights, "licence": "MIT"}
    call: dict[str, Any] = {"size": 24, "source": "noise", "training": SHORT}
    made = datafree.distill({**section, **LOOK, "input_size": (16, 16)}, out="one", **call)
    scaled = {"mean": (127.5,) * 3, "std": (63.75,) * 3, "pixel_range": 255, "input_size": [16, 16]}
    again = datafree.distill({**section, **scaled}, out="other", **call)
    spec = NetworkSpec(**{**section, **LOOK}, input_size=(16, 16))
    third = datafree.distill(spec, out="third", **call)
    recipe, other, last = (load_recipe(str(run / "recipe.yaml")) for run in (made.run, again.run, third.run))
    assert (recipe.teacher.input_size, recipe.teacher.licence) == ((16, 16), "MIT")
    assert recipe.teacher == other.teacher == last.teacher
    for name, value in made.student.state_dict().items():
        assert torch.equal(value, again.student.state_dict()[name])


@pytest.mark.parametrize(
    ("said", "given", "words"),
    [
        ({"men": 0.5}, {}, r"teacher\.men: no such option \(did you mean mean\?\)"),
        ({"args": None}, {}, r"teacher\.args: None is not a section"),
        ({"network": resnet(4, depth=8, width=2)}, {"weights": "small.safetensors"}, "weights is given beside"),
        ({"init": "teacher"}, {}, r"teacher\.init: is a student's"),
        ({}, {"size": 16.0}, "--size '16.0' is not a size"),
        ({}, {"seed": "a"}, "--seed is 'a'"),
        ({}, {"classes": "4"}, "--classes is '4'"),
        ({}, {"time": [3]}, r"time is \[3\]: give seconds"),
        ({}, {"max_time": "9"}, "max_time is '9': give seconds"),
    ],
)
def test_a_slip_in_a_call_is_an_error_of_ours(
    said: dict[str, Any], given: dict[str, Any], words: str, weights: Path
) -> None:
    with pytest.raises(DatafreeError, match=words):
        datafree.distill({"network": "small.safetensors", **LOOK, **said}, **{"size": 16, **given})
    assert not Path("runs").exists()


def test_short_options_of_training_hold_where_all_is_given(weights: Path) -> None:
    section = {"network": "datafree/resnet", "args": {"depth": 8, "width": 8}, **LOOK}
    task = {"kind": "classification", "num_classes": 4, "image_size": (16, 16)}
    whole: dict[str, Any] = {"task": task, "source": "noise", "training": datafree.Training(steps=2, batch_size=2)}
    result = datafree.distill(section, "datafree/resnet", weights=weights, seed=7, device="cpu", out="run", **whole)
    recipe = yaml.parse((result.run / "recipe.yaml").read_text(), "recipe")
    assert (recipe["training"]["seed"], recipe["training"]["steps"]) == (7, 2)
    with pytest.raises(DatafreeError, match="compress='4x' has no effect"):
        datafree.distill(section, "datafree/resnet", weights=weights, compress="4x", out="other", **whole)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"teacher": "small.safetensors"}, "give --size"),
        ({"teacher": "none.pth"}, "there is no file none.pth"),
        ({"teacher": "timm/test_resnet"}, "give --weights FILE"),
        ({"teacher": resnet(4, depth=8, width=2), "size": 16}, "give --mean R,G,B"),
    ],
)
def test_what_cannot_be_told_is_asked_for(given: dict[str, Any], words: str, weights: Path) -> None:
    with pytest.raises(DatafreeError, match=words) as caught:
        datafree.distill(**given)
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()
