"""The pages' commands and code, run as they stand: in a folder that holds what they name, and with fewer steps.

Every `datafree` command and every Python block is run; NOT_RUN says which other commands are not, and why.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from datafree.cli import main
from datafree.config import yaml
from datafree.config.paths import expand
from datafree.engine.artifacts import save_calibration
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.detectors import Detector
from datafree.networks.load import build_network
from datafree.recipe.recipe import load_recipe
from recipes import VALID
from run_directories import write_run

ROOT = Path(__file__).resolve().parent.parent
NOT_RUN = {
    "pip": "installs; what it installs is what runs here",
    "python": "benchmarks take hours, and have tests of their own; `-m venv` makes what runs here",
    "torchrun": "several machines; tests/distributed/test_launch.py runs several processes",
    "export": "sets a variable, which the test sets itself",
    "pytest": "these tests",
    "ruff": "a submission's checks",
    "mypy": "a submission's checks",
    "make": "a submission's checks, and benchmarks that take hours",
    "aws": "the store's own command",
    ".": "enters an environment",
}
# Pages whose commands take a second or two; those of the others take minutes.
FAST = ("docs/teachers.md", "docs/report.md")
SHORTER = {  # of a command's words
    "--images 120000": "--images 4",
    "--images 10000": "--images 4",
    "--images 1000": "--images 4",
    "training.steps=500": "training.steps=2",
    "s3://bucket": "memory://bucket",
    "--data DIR": "--data labelled",
    "--data /path/to/labelled": "--data labelled",
    " RECIPE": " tiny.yaml",
    "export runs/garments-demo": "export runs/garments-demo-quick",
}
FEW = ("training.steps=2", "training.batch_size=2", "training.save_every=1")

pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="the pages are only in the repository")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's `sh` and `bash` blocks in their order, `&&` taken apart."""
    found: list[list[str]] = []
    for line in "".join(blocks(page, "(?:sh|bash)")).splitlines():
        for part in " ".join(map(shlex.quote, shlex.split(line, comments=True))).split(" '&&' "):
            found += [shlex.split(part)] if part else []
    return found


def ours(page: Path) -> list[list[str]]:
    return [words[1:] for words in commands(page) if words[0] == "datafree"]


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WITH_COMMANDS = [
    pytest.param(page, id=page.name, marks=[] if str(page.relative_to(ROOT)) in FAST else [pytest.mark.slow])
    for page in PAGES
    if ours(page)
]


def test_every_command_is_run_or_says_why_not() -> None:
    for page in PAGES:
        for words in commands(page):
            assert words[0] == "datafree" or words[0] in NOT_RUN, f"{page.name}: {words}"
    assert len(WITH_COMMANDS) > 6


def shortened(words: list[str]) -> list[str]:
    """A command that says the same with fewer steps."""
    text = shlex.join(words)
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    words = shlex.split(text)
    if words[0] == "demo":
        return words if "--quick" in words else [*words, "--quick"]
    if words[0] == "calibrate":  # of an option that is given twice the last counts
        return [*words, "--images", "8", "source.warmup=1"]
    if words[0] not in ("distill", "synthesize"):
        return words
    name = words[1]
    if name == "teacher.safetensors":  # a time is planned for, in which steps cannot be few
        words = [*words, "training.time=null"]
    content = yaml.parse(Path(name).read_text("utf-8"), name) if name.endswith(".yaml") else {}
    replaced = any(word.startswith("source=") for word in words)
    parts = content.get("source", {}).get("parts")
    warm = [f"source.parts.{index}.warmup=1" for index in range(len(parts))] if parts else ["source.warmup=1"]
    few = [word for word in FEW if not any(given.startswith(word.split("=")[0]) for given in words)]
    return [*words, *few, *(["source.warmup=1"] if replaced else warm)]


def prepare(page: Path, folder: Path) -> None:
    """What a page's commands name: its recipe, the teacher's weights, photos, labelled images, runs."""
    rng = np.random.default_rng(0)
    complete = [text for text in blocks(page, "yaml") if {"task", "source"} <= set(yaml.parse(text, "page"))]
    text = complete[0] if complete else yaml.render({**VALID, "training": {"steps": 2}})
    content = yaml.parse(text, "page")
    height, width = content["task"].get("image_size", (32, 32))
    for name in ("my.yaml", "street.yaml", "tiny.yaml"):
        (folder / name).write_text(text, encoding="utf-8")
    for photos in (folder / "photos", folder / "sets" / "photos"):
        photos.mkdir(parents=True)
        for index in range(24):
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(photos / f"{index}.png")
    for labelled in (folder / "labelled", folder / "sets" / "camvid" / "val"):
        for name, shape in (("images", (height, width, 3)), ("masks", (height, width))):
            (labelled / name).mkdir(parents=True)
            values = rng.integers(0, 3, shape, dtype=np.uint8) * (80 if name == "images" else 1)
            Image.fromarray(values).save(labelled / name / "0.png")
    weights = expand(str(content["teacher"].get("weights") or "teacher.safetensors"))
    weights.parent.mkdir(parents=True, exist_ok=True)
    for name in ("teacher.safetensors", weights):
        Path(name).touch()
    if not complete:
        content["teacher"]["weights"] = "teacher.safetensors"
        (folder / "tiny.yaml").write_text(yaml.render(content), encoding="utf-8")
    recipe = load_recipe("tiny.yaml")
    torch.manual_seed(0)
    network = build_network(replace(recipe.teacher, weights=None), num_classes=recipe.task.num_classes)
    network(torch.rand(4, 3, 64, 64))  # BatchNorm has seen something
    save_weights(network, weights)
    if page.name == "security.md":
        torch.save(network, folder / "old.pt")
    if page.name == "teachers.md":
        write_classifier(folder / "classifier.onnx")
    if page.name == "export.md":
        run = write_run(folder / "made").rename(folder / "runs" / "first")
        save_calibration(torch.rand(8, 3, 32, 40), run)
    for name in ("garments-demo-quick", "garments-noise-quick"):
        write_run(folder / name).rename(folder / "runs" / name) if page.name == "report.md" else None


def write_classifier(file: Path) -> None:
    """An ONNX file as torch writes it, of a tiny classifier of images of 224 x 224 pixels."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    torch.onnx.export(network.eval(), (torch.rand(1, 3, 224, 224),), file, dynamo=True, verbose=False)


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_the_commands_of_a_page_do_what_they_say(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATAFREE_DATA", str(tmp_path / "sets"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(HTTPServer, "serve_forever", interrupted)  # Ctrl-C, as soon as it serves
    (tmp_path / "runs").mkdir()
    prepare(page, tmp_path)
    for words in ours(page):
        monkeypatch.setattr(sys, "argv", ["datafree", *shortened(words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main()
        assert not left.value.code, f"{page.name}: {words}: {capfd.readouterr()}"
        assert capfd.readouterr().out, words


def interrupted(*args: Any, **options: Any) -> None:
    raise KeyboardInterrupt


# Python.


def python_of(name: str) -> list[str]:
    return blocks(ROOT / "docs" / name, "python")


def test_every_python_block_is_on_a_page_that_is_run_here() -> None:
    with_python = {page.name for page in PAGES if blocks(page, "python")}
    assert with_python == {"detection.md", "python.md"}


def test_the_detector_of_the_page_is_one() -> None:
    (code,) = python_of("detection.md")
    names: dict[str, Any] = {}
    exec(code, names)  # what is the reader's own is looked up when it is called
    assert issubclass(names["MyDetector"], Detector)
    assert {"forward", "loss"} <= set(vars(names["MyDetector"]))


@pytest.mark.slow
def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("my_nets.py").write_text(
        "from datafree.networks.resnet import resnet\n"
        "teacher, student = resnet(10, depth=8), resnet(10, depth=8, width=4)\n"
    )
    for label in range(10):
        (tmp_path / "photos" / f"class-{label}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (25 * label, 0, 0)).save(tmp_path / "photos" / f"class-{label}" / "0.png")
    first, short, second = python_of("python.md")
    assert '"steps": 2000, "batch_size": 64' in first
    names: dict[str, Any] = {}
    save_weights(timm.create_model("test_resnet", num_classes=10), tmp_path / "x.safetensors")
    assert 'time="30m"' in short
    quick = short.replace('time="30m"', 'source="noise", training={"steps": 2, "batch_size": 4, "time": None}')
    exec(f"import datafree\n{quick}", {})
    assert Path("runs/x/chosen.yaml").is_file()
    exec(first.replace('"steps": 2000, "batch_size": 64', '"steps": 2, "batch_size": 4'), names)
    assert names["result"].run == Path("runs/mine")
    from my_nets import student

    save_weights(timm.create_model("resnet34", num_classes=10), tmp_path / "mine.safetensors")
    calls: Mapping[str, Any] = {"datafree": names["datafree"], "student": student}
    made = second.replace(
        'datafree.evaluate("runs/mine", "photos")', 'datafree.evaluate("runs/mine", "photos", student=student)'
    )
    exec(made.replace('"shipped", int8=True', '"shipped", int8=True, student=student'), dict(calls))
    assert (tmp_path / "shipped" / "student.int8.onnx").is_file()
