"""Full disks and lost permissions: one line, what was saved before stays good, and the run goes on when it can."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.errors import Interrupted, RunError
from datafree.run import run_recipe
from datafree.storage import checkpoint
from datafree.storage.atomic import Growing, cannot_write, write_whole
from datafree.storage.run_directory import Run
from small_runs import assert_same, everything, recipe_for, stop_after

Write = Callable[..., None]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 900 kB; the test is skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)  # lazily: safetensors has mapped a file


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves so many bytes of the disk."""
    stuff = disk / "stuff"
    with stuff.open("wb") as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        file.write(bytes(max(0, free - leave)))
    return stuff


@pytest.mark.thorough
def test_a_full_disk_keeps_the_last_state_says_what_it_needs_and_the_same_command_goes_on(
    tmp_path: Path, small_disk: Path
) -> None:
    run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), small_disk / "run", stop=stop_after(6))
    stuff = fill(small_disk, leave=20_000)
    said: list[str] = []
    with pytest.raises(
        RunError, match=r"No space left on device \(needs 0\.\d MB, 0\.\d MB are free\); the last checkpoint"
    ) as e:
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), small_disk / "run", say=said.append)
    assert "\n" not in str(e.value)
    assert any("the run continues and saves later" in line for line in said)  # step 10; step 12 was the last
    assert not list((small_disk / "run").rglob("*.part"))
    assert checkpoint.read(small_disk / "run" / "state" / "state.pt")["step"] == 6
    stuff.unlink()
    run_recipe(recipe_for(tmp_path, {"method": "noise"}), small_disk / "run")
    unbroken, resumed = everything(tmp_path / "unbroken"), everything(small_disk / "run")
    for part in ("student", "state", "metrics"):
        assert_same(unbroken[part], resumed[part], part)


def refusing(times: int) -> tuple[Write, list[int]]:
    """`checkpoint.write`, which after its first call finds no room so many times; how often it was refused."""
    write, calls, refused = checkpoint.write, [0], [0]

    def full(file: Path, content: dict[str, Any], keep: Path | None = None) -> None:
        calls[0] += 1
        if calls[0] > 1 and refused[0] < times:
            refused[0] += 1
            raise checkpoint.NoRoom(OSError(errno.ENOSPC, "No space left on device"), 12_300_000)
        write(file, content, keep)

    return full, refused


@pytest.mark.thorough
def test_a_disk_that_is_full_for_a_while_costs_a_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_recipe(recipe_for(tmp_path, {"method": "noise"}, save_every=2), tmp_path / "unbroken")
    full, refused = refusing(2)
    monkeypatch.setattr(checkpoint, "write", full)
    said: list[str] = []
    run_recipe(recipe_for(tmp_path, {"method": "noise"}, save_every=2), tmp_path / "run", say=said.append)
    assert refused == [2]
    assert sum("needs 12.3 MB" in line and "saves later" in line for line in said) == 2
    assert_same(everything(tmp_path / "unbroken"), everything(tmp_path / "run"))


def test_a_third_save_in_a_row_without_room_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, refused = refusing(100)
    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(RunError, match="the last checkpoint is intact: fix that and run the same command to resume"):
        run_recipe(recipe_for(tmp_path, {"method": "noise"}, save_every=2), tmp_path / "run")
    assert refused == [3]


def test_a_stop_that_cannot_save_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "write", refusing(1)[0])
    with pytest.raises(RunError, match=r"cannot write .*: No space left on device"):
        run_recipe(recipe_for(tmp_path, {"method": "noise"}), tmp_path / "run", stop=stop_after(3))


@pytest.mark.parametrize(
    ("number", "ways"),
    [
        (errno.ENOSPC, "free some space, or choose another --out"),
        (errno.EROFS, "make that place writable, or choose another --out"),
        (errno.ENOTDIR, "choose another --out"),
    ],
)
def test_what_is_advised_fits_what_the_system_said(number: int, ways: str) -> None:
    error = OSError(number, os.strerror(number))
    assert cannot_write(Path("a"), error, "choose another --out") == f"cannot write a: {os.strerror(number)}; {ways}"
    alone = cannot_write(Path("a"), error)
    assert alone.endswith("; " + (ways.rpartition(", or ")[0] or "mend that"))


def test_a_line_that_found_no_room_is_written_with_the_next_and_never_in_part(small_disk: Path) -> None:
    stuff = fill(small_disk, leave=4096)
    file = Growing(small_disk / "metrics.jsonl")
    lines = [json.dumps({"line": number, "stuffing": "x" * 3000}) + "\n" for number in range(4)]
    file.add(lines[0].encode())
    for line in lines[1:3]:
        with pytest.raises(OSError, match="No space left"):
            file.add(line.encode())
        assert file.path.read_text() == lines[0]
    stuff.unlink()
    file.add(lines[3].encode())
    file.close()
    assert file.path.read_text() == "".join(lines)


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(small_disk: Path) -> None:
    write_whole(small_disk / "a.json", b"old")
    fill(small_disk, leave=4096)
    with pytest.raises(OSError, match="No space left"):
        write_whole(small_disk / "a.json", bytes(50_000))
    assert (small_disk / "a.json").read_bytes() == b"old"
    assert sorted(file.name for file in small_disk.iterdir()) == ["a.json", "stuff"]


def test_a_disk_that_becomes_read_only_keeps_the_state(small_disk: Path) -> None:
    run = Run(small_disk / "run", {"name": "a"})
    run.start(0)
    state = {"step": 1, "weights": torch.ones(10), "recovery": {}}
    run.save_state(state)
    said: list[str] = []
    run.start(1, said.append)
    run.log(1, 1, {"loss": 1.0})
    run.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, capture_output=True)
    with pytest.raises(RunError, match=r"cannot write .*: Read-only file system"):
        Run(small_disk / "run", {"name": "a"})
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True, capture_output=True)
    again = Run(small_disk / "run", {"name": "a"})
    assert again.saved is not None and again.saved["step"] == 1
    again.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; benchmarks/reliability.py drops its rights")
def test_lost_permission_is_one_line(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"name": "a"})
    run.start(0)
    run.save_state({"step": 1, "recovery": {}})
    (tmp_path / "run" / "state").chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"):
        run.save_state({"step": 2, "recovery": {}}, must=True)
    (tmp_path / "run" / "state").chmod(0o700)
    run.close()
