"""Odd surroundings: a home that nobody knows, clocks that jump, stopped processes, many classes, two at once."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datafree.config import paths
from datafree.deploy.export_run import export_run
from datafree.errors import Interrupted
from datafree.recipe.recipe import load_recipe
from datafree.report.page import render
from datafree.report.run_reader import read_run
from datafree.run import run_recipe
from run_directories import write_json, write_run
from small_runs import assert_same, everything, recipe_for, stop_after


def test_a_home_that_nobody_knows_stays_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    assert paths.expand("~/x").name == "x"
    with pytest.raises(Exception, match="there is no file") as caught:
        load_recipe("~/nowhere.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.thorough
def test_a_clock_that_jumps_changes_no_bit_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "even")
    jumps, real = iter([10**9, -(10**9), 0, 3600, -3600] * 1000), time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: 1)  # the same name for every file of events
    with pytest.raises(Interrupted):
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "jumping", stop=stop_after(5))
    run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "jumping")
    even, jumping = everything(tmp_path / "even"), everything(tmp_path / "jumping")
    for part in ("student", "state", "metrics"):
        assert_same(even[part], jumping[part], part)


def test_a_run_that_is_stopped_and_continued_ends_with_the_same_bits(tmp_path: Path) -> None:
    run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "even")
    mine = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads
        child = os.fork()
    if not child:
        try:
            for _ in range(3):
                time.sleep(0.1)
                os.kill(mine, signal.SIGSTOP)
                time.sleep(0.1)
                os.kill(mine, signal.SIGCONT)
        finally:
            os.kill(mine, signal.SIGCONT)
            os._exit(0)
    run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "stopped")
    os.waitpid(child, 0)
    assert_same(everything(tmp_path / "even"), everything(tmp_path / "stopped"))


@pytest.mark.parametrize("classes", [201, 10_000])
def test_many_classes_make_a_page_of_a_sensible_size(classes: int, tmp_path: Path) -> None:
    run = write_run(tmp_path, "classification")
    names = [f"class of the number {index}" for index in range(classes)]
    about = json.loads((run / "student.json").read_text())
    recipe = (run / "recipe.yaml").read_text().replace("num_classes: 3", f"num_classes: {classes}")
    (run / "recipe.yaml").write_text(recipe)
    about["task"]["num_classes"], about["class_names"] = classes, names
    write_json(run / "student.json", about)
    result = json.loads((run / "result.json").read_text())
    each = {"values": {"top1": 0.5}, "per_class": {"accuracy": dict.fromkeys(names, 0.5)}}
    write_json(run / "result.json", result | {"scores": {"teacher": each, "student": each}})
    write_json(run / "measured.json", {"class_agreement": [0.5] * classes})
    began = time.process_time()
    page = render(read_run(run))
    assert len(page) < 1_500_000
    assert time.process_time() - began < 20
    assert "top-1" in page


def test_two_exports_into_one_folder_at_once_leave_one_whole(tmp_path: Path) -> None:
    run, made = write_run(tmp_path, "classification"), []

    def second(*ignored: Any) -> None:
        if not made:
            made.append(True)
            export_run(run, tmp_path / "out", onnx=False)

    labelled = tmp_path / "data"
    for name in ("a", "b", "c"):
        (labelled / name).mkdir(parents=True)

        Image.new("RGB", (40, 32)).save(labelled / name / "0.png")
    export_run(run, tmp_path / "out", onnx=False, data=labelled, say=second)
    assert made and "measured on" in (tmp_path / "out" / "README.md").read_text()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "my-classification", "out"]
