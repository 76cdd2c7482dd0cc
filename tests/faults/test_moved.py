"""A folder renamed or removed under a running command: one line, exit code 2, and nothing new of its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.deploy import export_run as export_module
from datafree.deploy.export_run import export_run
from datafree.errors import DatafreeError, RunError
from datafree.report import page
from datafree.run import run_recipe
from datafree.storage import held_folders
from datafree.storage.held_folders import Gone
from datafree.storage.run_directory import Run
from datafree.synthesis.shards import Shards
from datafree.synthesis.synthesize import synthesize
from datafree.tasks.detection import Detection
from run_directories import write_run
from small_runs import recipe_for
from small_shards import DETECTION, RECIPE, batch_of
from thorough import some


def renamed(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def parent_renamed(folder: Path) -> None:
    folder.parent.rename(folder.parent.with_name("elsewhere"))


def replaced(folder: Path) -> None:
    """Another empty folder has its name."""
    folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()


def become_a_file(folder: Path) -> None:
    """A file has its name."""
    folder.rename(folder.with_name("elsewhere"))
    folder.touch()


WAYS: dict[str, Callable[[Path], object]] = {
    "renamed": renamed,
    "parent renamed": parent_renamed,
    "removed": shutil.rmtree,
    "replaced": replaced,
    "a file": become_a_file,
}
ways = pytest.mark.parametrize("way", some(WAYS, "renamed", "replaced"))


def held_below(folder: Path) -> list[Path]:
    """The folders below `folder` that are held; other tests of this process may hold theirs."""
    return [one.place for one in held_folders._held if one.place.is_relative_to(folder)]


def assert_gone(folder: Path, way: str, caught: pytest.ExceptionInfo[DatafreeError]) -> None:
    text = str(caught.value)
    assert caught.type is Gone and caught.value.exit_code == 2
    assert text.startswith(f"{folder} was renamed or removed ") and "\n" not in text
    if way == "replaced":
        assert not list(folder.iterdir())
    else:
        assert folder.is_file() if way == "a file" else not folder.exists()
    assert not held_below(folder.parent)


class Once:
    """Does something at its n-th call."""

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        self.left, self.act = number, act

    def __call__(self, *ignored: Any, **also: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


@ways
@pytest.mark.parametrize("line", [1, 4])
def test_a_run_that_is_taken_away_ends(way: str, line: int, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    taken = Once(line, lambda: WAYS[way](run))
    said: list[str] = []
    with pytest.raises(DatafreeError) as caught:
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), run, log=taken, say=said.append)
    assert_gone(run, way, caught)
    assert not any("page of the run" in line for line in said)


@pytest.mark.parametrize("what", ["save_weights", "save_artefacts", "save_calibration", "measure"])
def test_a_run_that_is_taken_away_at_its_end_is_not_finished_elsewhere(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datafree.run as module

    run, call = tmp_path / "runs" / "run", getattr(module, what)
    monkeypatch.setattr(module, what, lambda *given: (renamed(run), call(*given))[1])
    with pytest.raises(DatafreeError) as caught:
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), run)
    assert_gone(run, "renamed", caught)


@ways
def test_a_save_into_a_run_that_was_taken_away_is_no_full_disk(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "run"
    run = Run(folder, {"name": "a"})
    run.start(0)
    WAYS[way](folder)
    for write in (
        lambda: run.save_state({"step": 1}),
        lambda: run.save_fault(1, {}),
        lambda: run.save_picture(1, torch.rand(3, 4, 4)),
        lambda: run.save_json("a.json", {}),
        lambda: run.log(1, 1, {"loss": 1.0}),
    ):
        with pytest.raises(Gone):
            write()
    run.close()
    assert not held_below(tmp_path)


@ways
@pytest.mark.parametrize("image", [1, 4, 6])
def test_a_set_that_is_taken_away_ends(way: str, image: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sets" / "set"
    taken, write = Once(image, lambda: WAYS[way](out)), Detection.write_example

    def written(*given: Any) -> Any:
        taken()
        return write(*given)

    monkeypatch.setattr(Detection, "write_example", written)
    with pytest.raises(DatafreeError) as caught:
        made = Shards(out, RECIPE)
        try:
            made.begin(["cat", "dog"])
            for number in range(2):
                assert made.claim(8) == number
                made.write(number, DETECTION, batch_of(DETECTION, 3))
        finally:
            made.close()
    assert_gone(out, way, caught)


@ways
@pytest.mark.parametrize("what", ["begin", "claim", "finish", "save_state"])
def test_nothing_of_a_set_that_was_taken_away_is_begun_anew(way: str, what: str, tmp_path: Path) -> None:
    out = tmp_path / "sets" / "set"
    made = Shards(out, RECIPE)
    made.begin(["cat", "dog"])
    WAYS[way](out)
    given: dict[str, tuple[Any, ...]] = {"begin": (["cat", "dog"],), "claim": (9,), "finish": (DETECTION,)}
    with pytest.raises(DatafreeError) as caught:
        try:
            getattr(made, what)(*given.get(what, ("a.pt", {})))
        finally:
            made.close()
    assert_gone(out, way, caught)


@ways
def test_a_set_that_is_taken_away_between_two_shards_ends(way: str, tmp_path: Path) -> None:
    out = tmp_path / "sets" / "set"
    recipe = recipe_for(tmp_path, {"method": "inversion", "iterations": 1, "batch_size": 2})
    with pytest.raises(DatafreeError) as caught:
        synthesize(recipe, out, 8, log=Once(2, lambda: WAYS[way](out)))
    assert_gone(out, way, caught)


@ways
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("what", some(["save_weights", "config", "model_card", "sha256_of"], "config"))
def test_an_export_whose_place_is_taken_away_is_not_made(
    way: str, inside: bool, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "runs", "classification")
    place = run if inside else tmp_path / "exports" / "place"
    place.mkdir(parents=True, exist_ok=True)
    taken, call = Once(1, lambda: WAYS[way](place)), getattr(export_module, what)

    def called(*given: Any) -> Any:
        taken()
        return call(*given)

    monkeypatch.setattr(export_module, what, called)
    with pytest.raises(DatafreeError) as caught:
        export_run(run, None if inside else place / "out", onnx=False)
    assert_gone(place, way, caught)


@ways
def test_a_page_of_a_run_that_is_taken_away_begins_none(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, render = write_run(tmp_path / "runs"), page.render
    monkeypatch.setattr(page, "render", lambda seen: (render(seen), WAYS[way](run))[0])
    with pytest.raises(DatafreeError) as caught:
        page.write_page(run)
    assert_gone(run, way, caught)


def test_an_export_says_what_the_run_said_when_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record is read once: a run that goes away meanwhile does not become one of which nothing is recorded."""
    run, save = write_run(tmp_path, "classification"), export_module.save_weights
    monkeypatch.setattr(export_module, "save_weights", lambda *given: (renamed(run), save(*given))[1])
    export_run(run, tmp_path / "out", onnx=False)
    assert "Seed 3." in (tmp_path / "out" / "README.md").read_text()


def test_a_working_directory_that_is_removed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(RunError) as caught:
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), Path("run"), log=Once(2, lambda: shutil.rmtree(here)))
    assert "\n" not in str(caught.value)
    os.chdir(tmp_path)
    assert not here.exists()
