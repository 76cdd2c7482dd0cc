"""`datafree distill TEACHER` and `datafree init TEACHER`: one line from a teacher to a student."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
import torchvision
from torch import nn

from datafree.cli import main
from datafree.config import yaml
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet


class Result(NamedTuple):
    code: int
    out: str
    err: str


Datafree = Callable[..., Result]

SEEN = ("--size", "16", "--mean", "0.5", "--std", "0.25", "--device", "cpu")
SHORT = ("--source", "noise", "training.time=null", "training.steps=4", "training.batch_size=4")


@pytest.fixture
def datafree(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Datafree:
    """The command, run in this process in a directory that holds weights of a small network, small.safetensors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.manual_seed(0)
    network = resnet(4, depth=8, width=8)
    network(torch.rand(64, 3, 16, 16))
    save_weights(network, tmp_path / "small.safetensors")

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["datafree", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main()
        captured = capfd.readouterr()
        return Result(int(left.value.code or 0), captured.out, captured.err)

    return run


def test_a_weights_file_becomes_a_student_and_its_recipe_is_kept(datafree: Datafree, tmp_path: Path) -> None:
    result = datafree("distill", "small.safetensors", *SEEN, *SHORT)
    assert result.code == 0, result.err
    run = Path("runs/small")
    assert result.out.startswith(f"run: {run}\npage: {run / 'report.html'}\nrecipe: {run / 'chosen.yaml'}\n")
    said = result.err.splitlines()
    assert [line.partition(":")[0] for line in said[:4]] == ["teacher", "task", "student", "source"]
    assert (run / "student.safetensors").is_file()
    assert (run / "report.html").is_file()
    assert f"# {said[0]}" in (run / "chosen.yaml").read_text()
    again = datafree("distill", "small.safetensors", *SEEN, *SHORT)
    assert again.code == 0
    assert "this run had finished before" in again.err


@pytest.mark.thorough
def test_both_recipes_of_a_run_can_be_run_again_from_anywhere(
    datafree: Datafree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert datafree("distill", "small.safetensors", *SEEN, *SHORT).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("recipe", "chosen"):
        result = datafree("distill", f"../runs/small/{name}.yaml", "training.seed=1", "--out", name)
        assert result.code == 0, result.err
        assert Path(name, "student.safetensors").is_file()
    first, second = (yaml.parse(Path(name, "recipe.yaml").read_text(), name) for name in ("recipe", "chosen"))
    assert first == second


@pytest.mark.thorough
def test_init_prints_the_recipe_that_distill_would_choose(datafree: Datafree) -> None:
    made = datafree("init", "small.safetensors", *SEEN, *SHORT, "name=mine")
    assert made.code == 0, made.err
    assert made.err.startswith("teacher: datafree/resnet, ")
    assert not Path("runs").exists()
    Path("my.yaml").write_text(made.out)
    assert datafree("distill", "my.yaml").code == 0
    assert Path("runs/mine/student.safetensors").is_file()
    assert datafree("distill", "small.safetensors", *SEEN, *SHORT, "--out", "direct").code == 0
    recipes = [yaml.parse(Path(run, "recipe.yaml").read_text(), run) for run in ("runs/mine", "direct")]
    assert recipes[0] == {**recipes[1], "name": "mine"}
    refused = datafree("init", "my.yaml")
    assert refused.code == 2
    assert "my.yaml is a recipe" in refused.err


@pytest.mark.thorough
def test_a_recipe_takes_the_same_options(datafree: Datafree) -> None:
    Path("my.yaml").write_text(datafree("init", "small.safetensors", *SEEN, *SHORT).out)
    save_weights(resnet(6, depth=8, width=8), Path("other.safetensors"))
    options = ("--weights", "other.safetensors", "--classes", "6", "--size", "24x16", "--seed", "5", "--mean", "0.4")
    result = datafree("distill", "my.yaml", *options, "--source", "procedural", "--student", "datafree/resnet?width=3")
    assert result.code == 0, result.err
    recipe = yaml.parse(Path("runs/small/recipe.yaml").read_text(), "recipe")
    assert recipe["task"]["num_classes"] == 6
    assert recipe["task"]["image_size"] == [24, 16]
    assert recipe["teacher"]["mean"] == recipe["student"]["mean"] == [0.4, 0.4, 0.4]
    assert recipe["training"]["seed"] == 5
    assert recipe["source"]["method"] == "procedural"
    assert "recipe:" not in result.out


@pytest.mark.parametrize("verb", ["distill", "init"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["small.safetensors"], "give --size HEIGHTxWIDTH"),
        (["small.safetensors", "--size", "big"], "not a size in pixels"),
        (["timm/test_resnet"], "give --weights FILE"),
        (["model.onnx"], "there is no file model.onnx"),
        (["resnet18"], "did you mean torchvision/resnet18 or timm/resnet18?"),
        (["small.safetensors", *SEEN, "--source", "nothing"], "'nothing' is not one of"),
        (["small.safetensors", *SEEN, "training.stps=3"], "did you mean steps?"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_give(
    verb: str, arguments: list[str], words: str, datafree: Datafree
) -> None:
    result = datafree(verb, *arguments)
    assert (result.code, result.out) == (2, "")
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", [["init"], ["inspect"], ["distill", "--dry-run"], ["distill"]])
def test_a_signal_while_it_is_still_looking_ends_it_at_once(
    command: list[str], datafree: Datafree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*args: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("datafree.preflight.examination.build_network", build)
    result = datafree(command[0], "small.safetensors", "--size", "16", *command[1:])
    assert (result.code, result.out) == (75, "")
    kept = {
        "distill": "stopped before the first step (SIGTERM); run the same command to begin again",
        "init": "stopped (SIGTERM): it writes nothing; run the same command to begin again",
        "inspect": "stopped (SIGTERM): it writes nothing; run the same command to look again",
    }
    assert result.err == f"{kept[command[0]]}\n"
    assert not Path("runs").exists()


def test_weights_beside_a_weights_file_are_refused(datafree: Datafree) -> None:
    for verb in ("inspect", "init"):
        result = datafree(verb, "small.safetensors", "--weights", "small.safetensors", "--size", "16")
        assert (result.code, result.out) == (2, "")
        assert "small.safetensors is a weights file, and so is --weights small.safetensors" in result.err


def test_inspect_takes_a_weights_file_alone(datafree: Datafree) -> None:
    result = datafree("inspect", "small.safetensors", "--size", "16", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["network"], found["args"]) == ("datafree/resnet", {"depth": 8, "width": 8})
    assert found["classes"]["value"] == 4


def seen_something(network: nn.Module, side: int) -> nn.Module:
    for _ in range(3):
        network(torch.rand(8, 3, side, side))
    return network


@pytest.mark.slow
@pytest.mark.timeout(900)  # of which a minute or so is processor time
@pytest.mark.parametrize("kind", ["torchvision", "timm", "program", "onnx", "directory"])
def test_twenty_seconds_make_a_student_of_any_teacher(kind: str, datafree: Datafree) -> None:
    """The whole line: source, student and schedule are chosen; agreement and the page are there, and the ONNX file."""
    torch.manual_seed(0)
    if kind == "torchvision":
        save_weights(seen_something(torchvision.models.squeezenet1_1(num_classes=4), 32), Path("teacher.safetensors"))
        words = ["teacher.safetensors", "--size", "32"]
    elif kind == "timm":
        save_weights(seen_something(timm.create_model("test_resnet", num_classes=4), 32), Path("own.safetensors"))
        words = ["timm/test_resnet", "--weights", "own.safetensors", "--size", "32"]
    elif kind == "onnx":
        pytest.importorskip("onnxscript")
        batch = ({0: torch.export.Dim("batch")},)
        network = seen_something(resnet(4, depth=8, width=16), 32).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own
            torch.onnx.export(network, (torch.rand(2, 3, 32, 32),), "teacher.onnx", dynamo=True, dynamic_shapes=batch)
        words = ["teacher.onnx"]
    elif kind == "directory":
        transformers = pytest.importorskip("transformers")
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
        config = transformers.ResNetConfig(num_labels=4, **sizes)
        seen_something(transformers.ResNetForImageClassification(config), 32).save_pretrained("teacher")
        words = ["teacher", "--size", "32"]
    else:
        network = seen_something(unet(3, width=4, depth=2), 32).eval()
        batch = ({0: torch.export.Dim("batch")},)
        torch.export.save(
            torch.export.export(network, (torch.rand(2, 3, 32, 32),), dynamic_shapes=batch), "teacher.pt2"
        )
        words = ["teacher.pt2"]
    result = datafree("distill", *words, "--mean", "0.5", "--std", "0.25", "--time", "20s", "--out", "run")
    assert result.code == 0, result.err
    assert "training.time=20s: " in result.err
    assert json.loads(Path("run/result.json").read_text())["chosen"]["step"] > 0
    assert "not verified on real data" in Path("run/report.html").read_text()
    if find_spec("onnxscript") is not None:
        place = (
            ["--student", f"hf/{Path('teacher').absolute()}"] if kind == "directory" else []
        )  # read if the user says so
        exported = datafree("export", "run", *place)
        assert exported.code == 0, exported.err
        assert Path("run/export/student.onnx").is_file()
