"""A command killed at any call by which it writes: the old output or the new one is there, and no leftover stays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from dying import die_at

import set_recipes
from datafree.deploy.export_run import export_run
from datafree.errors import Interrupted
from datafree.report.page import save
from datafree.run import run_recipe
from datafree.storage import made_set, scratch, whole_folder
from datafree.storage.atomic import write_whole
from datafree.storage.scratch import Scratch
from datafree.storage.whole_folder import exchanged, made_whole
from datafree.synthesis.synthesize import synthesize, verify
from run_directories import write_run
from small_runs import assert_same, everything, labelled, recipe_for, stop_after
from thorough import some


def files(folder: Path, *, whole: bool = False) -> dict[str, bytes]:
    """Its files, or all below it, too."""
    found = folder.rglob("*") if whole else folder.iterdir()
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(found) if file.is_file()}


def fill(folder: Path, what: str) -> None:
    for name in ("a", "b"):
        write_whole(folder / name, what.encode())


def make(out: Path, what: str) -> None:
    with made_whole(out) as stage:
        fill(stage, what)


def deaths(work: Callable[[], object], look: Callable[[bool], None]) -> int:
    """Kill `work` at its first call, its second and so on, and `look` after each; how many calls there were."""
    number = 0
    while die_at(number, work):
        look(True)
        number += 1
    look(False)
    return number


@pytest.mark.parametrize(
    ("there", "can_exchange"), some([(a, b) for a in (False, True) for b in (True, False)], (True, True))
)
def test_a_folder_is_the_old_or_the_new_one_after_each_death(
    there: bool, can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, old = tmp_path / "out", {"a": b"old", "b": b"old"}
    if not can_exchange:
        monkeypatch.setattr(whole_folder, "exchanged", lambda one, other: False)

    def again() -> None:
        for entry in tmp_path.iterdir():
            assert entry == out or entry.name.endswith(".part")
        if there:
            make(out, "old")

    seen = []

    def look(died: bool) -> None:
        found = files(out) if out.exists() else None
        seen.append(found)
        if can_exchange or not there:
            assert found in (old if there else None, {"a": b"new", "b": b"new"})
        elif found is None:  # between the two renames: the next command puts the old one back before anything else
            with pytest.raises(ZeroDivisionError), made_whole(out):
                assert files(out) == old
                raise ZeroDivisionError
            assert files(out) == old
        if died:
            if out.exists() and not there:
                out.rename(tmp_path.parent / f"moved-{len(seen)}-{tmp_path.name}")
            again()
        elif there:
            assert [entry.name for entry in tmp_path.iterdir()] == ["out"]

    again()
    assert deaths(lambda: make(out, "new"), look) > 10
    assert files(out) == {"a": b"new", "b": b"new"}
    make(out, "newer")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_two_folders_are_exchanged_in_one_call_where_the_disk_can(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, name)
    if not exchanged(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system knows no exchange")
    assert files(tmp_path / "one") == {"a": b"other", "b": b"other"}
    with pytest.raises(FileNotFoundError):
        exchanged(tmp_path / "one", tmp_path / "nowhere")


@pytest.mark.thorough
def test_an_export_is_the_old_or_the_new_one_after_each_death(tmp_path: Path) -> None:
    run = write_run(tmp_path, "classification")
    export_run(run, onnx=False)
    old = files(run / "export")
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("seed: 3", "seed: 4"))

    def look(died: bool) -> None:
        found = files(run / "export")
        assert set(found) == set(old)
        sums = json.loads(found["config.json"])["sha256"]
        assert sums == {"student.safetensors": hashlib.sha256(found["student.safetensors"]).hexdigest()}
        assert (b"Seed 4." in found["README.md"]) or found == old

    assert deaths(lambda: export_run(run, onnx=False), look) > 20
    assert b"Seed 4." in files(run / "export")["README.md"]
    assert not list(run.glob(".*"))


@pytest.mark.thorough
def test_a_page_is_the_old_or_the_new_one_after_each_death_and_leftovers_are_cleared(tmp_path: Path) -> None:
    place, old, new = tmp_path / "page.html", "<!doctype html>old", "<!doctype html>new"
    save(old, place)

    def look(died: bool) -> None:
        assert place.read_text() in (old, new)

    assert deaths(lambda: save(new, place), look) > 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_leftovers_of_others_are_not_cleared(tmp_path: Path) -> None:
    mine = tmp_path / ".notes.part"
    mine.touch()
    (tmp_path / ".page.html.orig").touch()
    save("new", tmp_path / "page.html")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".notes.part", ".page.html.orig", "page.html"]


@pytest.mark.thorough
def test_temporary_folders_of_killed_commands_are_cleared_by_the_next_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "datafree-results").mkdir()

    def work() -> None:
        with Scratch() as made:
            fill(made.path, "something")

    assert deaths(work, lambda died: None) > 5
    with Scratch() as alive:
        fill(alive.path, "alive")
        work()
        assert files(alive.path) == {"a": b"alive", "b": b"alive"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["datafree-results"]


def test_a_temporary_folder_that_another_command_clears_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    make, made = tempfile.mkdtemp, list[Path]()

    def made_and_cleared(prefix: str) -> str:
        made.append(Path(make(prefix=prefix)))
        if len(made) == 1:
            made[0].rmdir()
        return str(made[-1])

    monkeypatch.setattr(scratch.tempfile, "mkdtemp", made_and_cleared)
    with Scratch() as kept:
        assert kept.path == made[1]
        assert kept.path.is_dir()
    assert not list(tmp_path.iterdir())


def leftovers(folder: Path) -> list[str]:
    """What is aside or hidden, but for the lock and the claims of a set."""
    hidden = {entry.name for entry in folder.rglob(".*")} - {".lock", ".claims"}
    return sorted(hidden | {entry.name for entry in folder.rglob("*.part")})


@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", some([(5,), (61,)], (61,)))
def test_a_run_killed_at_its_end_is_finished_by_the_same_command(every: int, tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"}, steps=3, save_every=1, picture_every=3)
    recipe = dataclasses.replace(recipe, data=labelled(tmp_path / "labelled"))
    with pytest.raises(Interrupted):
        run_recipe(recipe, tmp_path / "base", stop=stop_after(2))  # before the last step
    shutil.copytree(tmp_path / "base", tmp_path / "unbroken")
    run_recipe(recipe, tmp_path / "unbroken")
    wanted = everything(tmp_path / "unbroken")

    def names(run: Path) -> list[str]:  # TensorBoard begins a file with each piece of a run
        return sorted(name for name in files(run, whole=True) if not name.startswith("tensorboard/"))

    number = 0
    while True:
        out = tmp_path / f"killed-{number}"
        shutil.copytree(tmp_path / "base", out)
        died = die_at(number, lambda out=out: run_recipe(recipe, out), writes=2)
        finished = (out / "result.json").exists()
        assert finished or died
        if finished:  # all that it names is there
            assert_same(wanted, everything(out))
        outcome = run_recipe(recipe, out)
        assert outcome.already_finished == finished
        assert_same(wanted, everything(out))
        assert (leftovers(out), names(out)) == ([], names(tmp_path / "unbroken"))
        assert (out / "report.html").stat().st_mtime_ns >= (out / "result.json").stat().st_mtime_ns
        shutil.rmtree(out)
        if not died:
            break
        number += every
    assert number > 40, number


@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", some([(5,), (61,)]))
def test_a_set_killed_at_its_end_is_finished_by_the_same_command(every: int, tmp_path: Path) -> None:
    recipe, images = set_recipes.recipe_for(tmp_path, set_recipes.INVERSION, "detection"), 10
    with pytest.raises(Interrupted):
        synthesize(recipe, tmp_path / "base", images, stop=set_recipes.stop_after(1))  # before the last shard
    shutil.copytree(tmp_path / "base", tmp_path / "unbroken")
    synthesize(recipe, tmp_path / "unbroken", images)
    wanted = set_recipes.everything(tmp_path / "unbroken")
    number = 0
    while True:
        out = tmp_path / f"killed-{number}"
        shutil.copytree(tmp_path / "base", out)
        died = die_at(number, lambda out=out: synthesize(recipe, out, images), writes=2)
        assert died or made_set.is_finished(out)
        assert list(made_set.damages(out)) == []  # the shards that are there are whole
        synthesize(recipe, out, images)
        verify(recipe, out)
        assert (set_recipes.everything(out), leftovers(out)) == (wanted, [])
        shutil.rmtree(out)
        if not died:
            break
        number += every
    assert number > 40, number
