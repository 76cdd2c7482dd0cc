"""A run's state: every damage is seen, the one before serves, older versions are read, one process at a time writes."""

from __future__ import annotations

import os
import shutil
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from dying import die_at
from safetensors.torch import load_file

from datafree.config import yaml
from datafree.engine.build_networks import with_source
from datafree.errors import Interrupted, RunError
from datafree.health.verdict import State
from datafree.recipe.recipe import dump
from datafree.run import run_recipe
from datafree.storage import checkpoint
from datafree.storage.lock import Lock
from datafree.storage.migrations import MIGRATIONS, STATE_VERSION, migrated
from datafree.storage.run_directory import Run
from small_runs import assert_same, everything, recipe_for, stop_after
from thorough import some

STATES = Path(__file__).parent / "states"
SMALL: dict[str, Any] = {"version": 2, "step": 7, "weights": torch.arange(40.0), "names": ["a", None, 1.5]}


def test_a_state_comes_back_as_it_was_and_torch_reads_it_too(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "state.pt", SMALL)
    assert_same(checkpoint.read(tmp_path / "state.pt"), SMALL)
    assert_same(torch.load(tmp_path / "state.pt", weights_only=True), SMALL)


def test_every_flipped_bit_and_every_cut_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    checkpoint.write(file, SMALL)
    whole = file.read_bytes()
    for place in range(0, len(whole), 5):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(checkpoint.Damaged):
            checkpoint.read(file)
    for length in range(0, len(whole), 31):
        file.write_bytes(whole[:length])
        with pytest.raises(checkpoint.Damaged):
            checkpoint.read(file)


def test_a_state_that_holds_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"version": 1, "step": Evil()}, tmp_path / "state.pt")
    with pytest.raises(checkpoint.Damaged):
        checkpoint.read(tmp_path / "state.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.thorough
def test_a_damaged_state_falls_back_to_the_one_before_and_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    recipe = recipe_for(tmp_path, {"method": "dfad"})
    run_recipe(recipe, tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        run_recipe(recipe_for(tmp_path, {"method": "dfad"}), tmp_path / "run", stop=stop_after(9))
    state = tmp_path / "run" / "state" / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    said: list[str] = []
    run_recipe(recipe_for(tmp_path, {"method": "dfad"}), tmp_path / "run", say=said.append)
    assert said[0] == f"resuming {tmp_path / 'run'} at step 5 of 12"
    assert said[1] == (
        f"warning: {state} is damaged (its checksum does not match): resuming from the previous checkpoint, of step 5"
    )
    assert_same(everything(tmp_path / "unbroken"), everything(tmp_path / "run"))


def test_a_damaged_state_never_takes_the_place_of_a_good_one(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "run", stop=stop_after(9))
    state = tmp_path / "run" / "state" / "state.pt"
    state.write_bytes(b"torn")
    with pytest.raises(Interrupted):  # stopped at once: it saves again
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "run", stop=lambda: "enough")
    assert checkpoint.read(state)["step"] == checkpoint.read(state.with_name("previous.pt"))["step"] == 5


@pytest.mark.parametrize("version", some([file.stem for file in sorted(STATES.iterdir())], "version-1"))
def test_states_of_older_versions_are_gone_on_with(version: str, tmp_path: Path) -> None:
    """Each was saved by the code of its time, at step 7 of the run of `recipe_for` with dfad:

    run_recipe(recipe_for(tmp_path, {"method": "dfad"}), tmp_path / "run", stop=stop_after(7)), then run/state/state.pt.
    """
    recipe = recipe_for(tmp_path, {"method": "dfad"}, precision="fp32")
    (tmp_path / "run" / "state").mkdir(parents=True)
    resolved, _ = with_source(recipe, torch.device("cpu"), torch.float32)
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.render(dump(resolved)))
    shutil.copy(STATES / f"{version}.pt", tmp_path / "run" / "state" / "state.pt")
    said: list[str] = []
    run_recipe(recipe, tmp_path / "run", say=said.append)
    assert said[0] == f"resuming {tmp_path / 'run'} at step 7 of 12"
    run_recipe(recipe, tmp_path / "unbroken")
    resumed, unbroken = (load_file(tmp_path / name / "student.safetensors") for name in ("run", "unbroken"))
    for name, weight in unbroken.items():  # made on another processor: near, not equal
        torch.testing.assert_close(resumed[name], weight, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_does_not_repeat_the_health_warning(tmp_path: Path) -> None:
    """Images of an untrained generator are all alike: said at the first save point, step 5, and not again at 10."""
    said: list[str] = []
    with pytest.raises(Interrupted):
        run_recipe(recipe_for(tmp_path, {"method": "dfad"}), tmp_path / "run", stop=stop_after(7), say=said.append)
    assert [line[:39] for line in said if "health" in line] == ["warning: step 5: health: collapsed: the"]
    said.clear()
    run_recipe(recipe_for(tmp_path, {"method": "dfad"}), tmp_path / "run", say=said.append)
    assert said[0].startswith("resuming ")
    assert not any("health" in line for line in said)


def test_a_run_that_ends_collapsed_says_so_among_its_notes(tmp_path: Path) -> None:
    outcome = run_recipe(recipe_for(tmp_path, {"method": "dfad"}), tmp_path / "run")
    assert any(note.startswith("health: collapsed at the last look") for note in outcome.notes)


def test_what_was_told_of_health_is_unknown_of_older_states_and_nothing_else_changes(tmp_path: Path) -> None:
    old = checkpoint.read(STATES / "version-2.pt")
    new = migrated(old, STATES / "version-2.pt")
    assert new["verdict"] == State.HEALTHY  # as a new run begins
    assert_same(new["recovery"], old["coping"])
    same = old.keys() - {"coping", "version"}
    assert new.keys() == same | {"recovery", "verdict", "version"}
    assert_same({key: new[key] for key in same}, {key: old[key] for key in same})


def test_there_is_a_state_of_each_version_and_a_way_from_it(tmp_path: Path) -> None:
    found = {int(file.stem.removeprefix("version-")) for file in STATES.iterdir()}
    assert found == set(range(1, STATE_VERSION + 1))
    assert set(MIGRATIONS) == set(range(1, STATE_VERSION))


def test_a_state_of_a_later_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "run", stop=stop_after(3))
    checkpoint.write(tmp_path / "run" / "state" / "state.pt", {**SMALL, "version": STATE_VERSION + 1})
    with pytest.raises(RunError, match=f"has state version {STATE_VERSION + 1}, this datafree reads 1 to"):
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "run")


@pytest.mark.thorough
def test_killed_at_any_call_of_a_save_the_state_or_the_one_before_is_whole(tmp_path: Path) -> None:
    folder, state = tmp_path / "state", tmp_path / "state" / "state.pt"
    for step in (1, 2):
        checkpoint.write(state, {**SMALL, "step": step}, folder / "previous.pt")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    calls, found = 0, []
    while True:
        for name, content in before.items():
            (folder / name).write_bytes(content)
        died = die_at(calls, lambda: checkpoint.write(state, {**SMALL, "step": 3}, folder / "previous.pt"))
        whole = [checkpoint.read(file)["step"] for file in (state, folder / "previous.pt") if file.exists()]
        found.append(whole)
        if not died:
            break
        calls += 1
    assert calls > 10  # writes, each torn in its middle; syncs; renames
    assert all(steps in ([2, 1], [2], [3, 2]) for steps in found)  # [2]: between the two renames
    assert found[0] == [2, 1]
    assert found[-1] == [3, 2]


def test_a_second_run_in_a_directory_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"name": "a"})
    run.start(0)
    with pytest.raises(RunError, match=rf"being written by another process \(process {os.getpid()} on .*\); wait") as e:
        Run(tmp_path / "run", {"name": "a"})
    assert "\n" not in str(e.value)
    run.close()
    Run(tmp_path / "run", {"name": "a"}).close()


def test_two_that_begin_at_once_do_not_both_write(tmp_path: Path) -> None:
    first, second = (Run(tmp_path / "run", {"name": "a"}) for _ in range(2))
    first.start(0)
    with pytest.raises(RunError, match="being written by another process"):
        second.start(0)
    first.close()
    with pytest.raises(RunError, match=r"has started a run .*; run the same command again to resume it"):
        second.start(0)
    second.close()


def test_a_lock_ends_with_its_owner_however_that_ends(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads
        child = os.fork()
    if not child:
        Lock(tmp_path).take()
        (tmp_path / "taken").touch()
        time.sleep(60)
        os._exit(0)
    while not (tmp_path / "taken").exists():
        time.sleep(0.01)
    with pytest.raises(RunError, match=f"process {child} on"):
        Lock(tmp_path).take()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lock = Lock(tmp_path)
    assert lock.take()
    lock.release()


def test_a_directory_left_by_a_process_that_was_killed_before_its_first_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".recipe.yaml.123.part").write_text("name: ha")
    run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.part"))
